"""Rows of an index file, checked: what every reader of a dataset shares."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from firmware_ref.errors import InputError, read_bytes

LARGEST_BYTES = 256 * 2**20
LONGEST_CELL = 1024


def rows(
    index: Path, columns: Sequence[str], delimiter: str | None = None
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each row by column, with where it stands, for messages; a missing cell is empty.

    Without a ``delimiter`` the first line tells: a tab, a semicolon or a comma. Lines end in LF or
    CRLF. Raises `InputError` where the file is not such a table in UTF-8, where ``columns`` are not
    all there or are empty in a row, where a column is there twice, and for a cell of more than
    `LONGEST_CELL` characters.
    """
    text = _text(index)
    if delimiter is None:
        first = text.partition("\n")[0]
        delimiter = next((d for d in "\t;" if d in first), ",")
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restval="")
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        # Spreadsheets end lines in columns without a name.
        named = Counter(name for name in reader.fieldnames if name)
        if twice := [name for name, count in named.items() if count > 1]:
            raise InputError(f"{str(index)!r} has two columns {twice[0]!r}; keep one of them")
        missing = [c for c in columns if c not in named]
        if missing:
            raise InputError(
                f"{str(index)!r} has no column {missing[0]!r}; it needs {', '.join(columns)}"
            )
        for row in reader:
            where = f"{str(index)!r} line {reader.line_num}"
            cells = {key: (value or "").strip() for key, value in row.items() if key is not None}
            if empty := [c for c in columns if not cells[c]]:
                raise InputError(f"{where}: column {empty[0]!r} is empty; restore the file")
            if long := [c for c, cell in cells.items() if len(cell) > LONGEST_CELL]:
                raise InputError(
                    f"{where}: column {long[0][:LONGEST_CELL]!r} holds {len(cells[long[0]]):,} "
                    f"characters; at most {LONGEST_CELL:,} are accepted"
                )
            yield where, cells
    except csv.Error as error:
        raise InputError(f"{str(index)!r} is not CSV: {error}; restore the file") from None


def _text(index: Path) -> str:
    data = read_bytes(index, LARGEST_BYTES, "index")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Guessed at, its names would be those of other labels and files.
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{str(index)!r} line {line} is not UTF-8; save it as UTF-8") from None


def all_or_none(cells: Iterable[str], column: str, index: Path) -> None:
    """Refuse a column that is filled in some rows alone: of the others it says nothing."""
    if len({bool(cell) for cell in cells}) > 1:
        raise InputError(
            f"{str(index)!r} fills column {column!r} in some rows alone; fill it in all, or in none"
        )


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of ``name`` under ``folder``, without ``..``; one that points outside is refused.

    Links are followed: who owns the folder may keep recordings elsewhere.
    """
    path = os.path.normpath(name)
    if "\0" in path or os.path.isabs(path) or path.split(os.sep)[0] in (os.pardir, os.curdir):
        raise InputError(f"{where}: {name!r} points outside the data folder; restore the file")
    return folder / path


def whole_number(text: str, column: str, where: str) -> int:
    """A cell as an integer of at least 0."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(f"{where}: {column}={text!r} must be a whole number; restore the file")
    return int(text)


class Names:
    """Refuses a name that an index gives twice."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def add(self, name: str, where: str) -> None:
        """Remember a name; `InputError` where it was there before."""
        if name in self._seen:
            raise InputError(f"{where}: {name!r} is there twice; restore the file")
        self._seen.add(name)
