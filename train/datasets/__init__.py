"""Readers of datasets, one a file: from a folder to labelled recordings with folds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import Dataset
from train.datasets import esc10, esc10_devices, table, tau2022

DATA_VARIABLE = "ASC_DATA"

READERS: Mapping[str, Callable[[Path], Dataset]] = {
    "esc10": esc10.read,
    "esc10-devices": esc10_devices.read,
    "tau2022": tau2022.read,
}


def data_folder(argument: str | None) -> Path:
    """The folder of the recordings: ``--data``, or the environment variable ``ASC_DATA``."""
    folder = argument or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise InputError(f"no recordings named; give --data DIR or set {DATA_VARIABLE}=DIR")
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"data folder {folder!r} does not exist; mend --data or {DATA_VARIABLE}")
    return path


def load_dataset(name: str, folder: Path) -> Dataset:
    """Read a dataset's index: by its name, or any ``.csv`` by its path under ``folder``."""
    if name.endswith(".csv"):
        return table.read(folder / name, folder)
    if name not in READERS:
        raise InputError(
            f"data.dataset={name!r} is unknown; allowed: {', '.join(READERS)}, or the path of a "
            ".csv with columns filename and scene_label"
        )
    return READERS[name](folder)
