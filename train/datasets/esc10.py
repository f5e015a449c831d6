"""ESC-10: 400 clips of ten sound events in five official folds (Piczak, ACM MM 2015)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import Dataset, Recording
from train.datasets.index import Names, all_or_none, inside, rows, whole_number

INDEX = "meta.csv"
COLUMNS = ("filename", "label", "label_id", "fold")
# As in the archive of the dataset: number and name of the class, fold, Freesound clip, take.
FILE_NAME = re.compile(r"(\d{3}) - ([^/]+)/(\d)-(\d+)-[A-Z]\.ogg")
EXAMPLE = "001 - Dog bark/1-100032-A.ogg"


def read(folder: Path) -> Dataset:
    """ESC-10 in ``folder`` or its ``esc10/``: as its archive unpacks, or by a ``meta.csv``.

    Columns filename, label, label_id, fold, and in all rows or none source_id, without which every
    clip is a source of its own. Without that file, the names of the recordings say all of it.
    """
    folder = folder / "esc10" if (folder / "esc10").is_dir() else folder
    index = folder / INDEX
    recordings: list[Recording] = []
    labels: dict[int, str] = {}
    sources: list[str] = []
    names = Names()
    for where, row in rows(index, COLUMNS) if index.exists() else _named(folder):
        name = row["filename"]
        path = inside(folder, name, where)
        names.add(str(path), where)
        number = whole_number(row["label_id"], "label_id", where)
        fold = whole_number(row["fold"], "fold", where)
        if labels.setdefault(number, row["label"]) != row["label"]:
            raise InputError(f"{where}: label_id {number} has two names; restore the file")
        sources.append(row.get("source_id", ""))
        source = sources[-1] or name
        recordings.append(Recording(name, path, number, fold, source, moment=name))
    all_or_none(sources, "source_id", index)
    if not recordings or sorted(labels) != list(range(len(labels))):
        raise InputError(f"{str(index)!r} must number its labels 0, 1, 2, ...; restore the file")
    ordered = tuple(labels[i] for i in range(len(labels)))
    if len(set(ordered)) < len(ordered):
        raise InputError(f"{str(index)!r} gives two labels one name: {ordered}; restore the file")
    return Dataset("ESC-10", ordered, tuple(recordings), same_folds=("ESC-10-Devices",))


def _named(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The rows of an index, from the names of the recordings."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.ogg"))
    if not found:
        raise InputError(
            f"{str(folder)!r} holds neither {INDEX} nor recordings such as {EXAMPLE!r}; give the "
            "folder of the unpacked ESC-10, or the one around it where it is called esc10"
        )
    for name in found:
        parts = FILE_NAME.fullmatch(name)
        if parts is None:
            raise InputError(
                f"{str(folder / name)!r} is not named as ESC-10's recordings are, {EXAMPLE!r}; "
                f"move it, or write a {INDEX} with columns {', '.join(COLUMNS)}"
            )
        number, label, fold, source = parts.groups()
        row = {"filename": name, "label": label, "fold": fold, "source_id": source}
        yield f"{str(folder)!r} {name!r}", {**row, "label_id": str(int(number) - 1)}
