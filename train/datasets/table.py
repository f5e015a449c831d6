"""Any collection of recordings, by a CSV file."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import ONE_DEVICE, Dataset, Recording
from train.datasets.index import Names, all_or_none, inside, rows, whole_number

FOLDS = 5


def read(index: Path, folder: Path) -> Dataset:
    """Columns filename and scene_label; optionally source_label, identifier and fold.

    ``source_label`` is the device, ``identifier`` the place or original recording; without it
    every moment is a source of its own. Recordings are aligned where their names differ only in an
    ending ``-<source_label>``. Without ``fold``, sources are dealt to five folds by the SHA-256 of
    their names. Raises `InputError` where only some rows have an ``identifier`` or a ``fold``.
    """
    found: list[tuple[str, Recording]] = []
    optional: dict[str, list[str]] = {"identifier": [], "fold": []}
    names = Names()
    for where, row in rows(index, ("filename", "scene_label")):
        name, device = row["filename"], row.get("source_label") or ONE_DEVICE
        path = inside(folder, name, where)
        names.add(str(path), where)
        moment = name.removesuffix(Path(name).suffix).removesuffix(f"-{device}")
        for column, cells in optional.items():
            cells.append(row.get(column, ""))
        source = row.get("identifier") or moment
        fold = row.get("fold")
        number = whole_number(fold, "fold", where) if fold else _fold(source)
        recording = Recording(name, path, 0, number, source, device, moment)
        found.append((row["scene_label"], recording))
    labels = tuple(sorted({label for label, _ in found}))
    if len(labels) < 2:
        raise InputError(f"{str(index)!r} names {len(labels)} scenes; two at least are needed")
    for column, cells in optional.items():
        all_or_none(cells, column, index)
    recordings = tuple(
        dataclasses.replace(recording, label=labels.index(label)) for label, recording in found
    )
    return Dataset(index.stem, labels, recordings)


def _fold(source: str) -> int:
    """A fold from 1 to `FOLDS` that only the source's name decides."""
    return 1 + int(hashlib.sha256(source.encode()).hexdigest(), 16) % FOLDS
