"""ESC-10: 400 clips of ten sound events in five official folds (Piczak, ACM MM 2015)."""

from __future__ import annotations

from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import Dataset, Recording
from train.datasets.index import Names, inside, rows, whole_number

COLUMNS = ("filename", "label", "label_id", "fold")


def read(folder: Path) -> Dataset:
    """ESC-10 by its ``meta.csv``, in ``folder`` or its ``esc10/``.

    Columns filename, label, label_id, fold, and source_id, without which every clip is a source
    of its own.
    """
    folder = folder / "esc10" if (folder / "esc10").is_dir() else folder
    index = folder / "meta.csv"
    recordings: list[Recording] = []
    labels: dict[int, str] = {}
    names = Names()
    for where, row in rows(index, COLUMNS):
        name = row["filename"]
        path = inside(folder, name, where)
        names.add(str(path), where)
        number = whole_number(row["label_id"], "label_id", where)
        fold = whole_number(row["fold"], "fold", where)
        if labels.setdefault(number, row["label"]) != row["label"]:
            raise InputError(f"{where}: label_id {number} has two names; restore the file")
        source = row.get("source_id") or name
        recordings.append(Recording(name, path, number, fold, source, moment=name))
    if not recordings or sorted(labels) != list(range(len(labels))):
        raise InputError(f"{str(index)!r} must number its labels 0, 1, 2, ...; restore the file")
    ordered = tuple(labels[i] for i in range(len(labels)))
    if len(set(ordered)) < len(ordered):
        raise InputError(f"{str(index)!r} gives two labels one name: {ordered}; restore the file")
    return Dataset("ESC-10", ordered, tuple(recordings), same_folds=("ESC-10-Devices",))
