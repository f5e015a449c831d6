"""Rows of index files: delimiters, line ends, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import InputError
from tests.train.refusals import refused
from train.datasets.index import LONGEST_CELL, Names, inside, rows, whole_number

ROWS = [("a.wav", "Rain"), ("b.wav", "Sea, calm")]


def read(path: Path, delimiter: str | None = None) -> list[tuple[str, str]]:
    found = rows(path, ("filename", "label"), delimiter)
    return [(row["filename"], row["label"]) for _, row in found]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_delimiter_line_end_and_byte_order_mark_are_found(
    tmp_path: Path, delimiter: str, mark: str, end: str
) -> None:
    lines = [("filename", "label"), *((name, f'"{label}"') for name, label in ROWS)]
    path = tmp_path / "meta.csv"
    text = mark + end.join(delimiter.join(line) for line in lines)
    for tail in ("", end, end * 3):
        path.write_text(text + tail, encoding="utf-8", newline="")
        assert read(path) == read(path, delimiter) == ROWS


def test_line_ends_may_be_mixed_and_columns_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    path.write_bytes(b"fold,label,filename\r\n1, Rain ,a.wav\n2,Sea,b.wav,more\r\n\n,Sun,c.wav")
    assert read(path) == [("a.wav", "Rain"), ("b.wav", "Sea"), ("c.wav", "Sun")]
    found = list(rows(path, ("filename",)))
    assert [row["fold"] for _, row in found] == ["1", "2", ""]
    assert [where for where, _ in found] == [f"'{path}' line {n}" for n in (2, 3, 5)]


def test_columns_may_have_spaces_around_them_or_no_name(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    path.write_text("filename, label ,,\na.wav,Café,,\n", encoding="utf-8")
    assert read(path) == [("a.wav", "Café")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'filename'; it needs filename, label"),
        (b"\n\n", "has no column"),
        (b"filename\na.wav\n", "has no column 'label'"),
        (b"filename,label\na.wav,\n", "line 2: column 'label' is empty"),
        (b"filename,label\na.wav\n", "line 2: column 'label' is empty"),
        (b"filename,label\na.wav,Rain\n  ,Rain\n", "line 3: column 'filename' is empty"),
        (b"filename,label\na\rb.wav,Rain\n", "is not CSV"),
        (b"filename,label\n" + b"a" * 200_000 + b",Rain\n", "is not CSV"),
        (b"filename,label\n" + b"a" * 2000 + b",Rain\n", "column 'filename' holds 2,000 char"),
        (b"filename,label\na.wav,Rain," + b"x" * 9 + b"\n" + b"a,b,c\n" * 2 + b",x\n", "line 5"),
        ("filename,label\na.wav,Rain\n".encode("utf-16"), "line 1 is not UTF-8; save it as UTF-8"),
        ("filename,label\na.wav,Café\n".encode("latin-1"), "line 2 is not UTF-8; save it as UTF"),
        (bytes(range(256)), "meta.csv"),
        (b"filename,label,label\na.wav,Rain,Sea\n", "has two columns 'label'; keep one of them"),
        (b"filename,label,x, x\na.wav,Rain,,\n", "has two columns 'x'"),
    ],
    ids=lambda value: repr(value)[-24:],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "meta.csv"
    path.write_bytes(content)
    refused(lambda: read(path), message, "meta.csv")


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    refused(lambda: read(tmp_path / "meta.csv"), "meta.csv' cannot be read")
    refused(lambda: read(tmp_path), "is not a file")
    with (tmp_path / "meta.csv").open("wb") as stream:
        stream.truncate(2**28 + 1)
    refused(lambda: read(tmp_path / "meta.csv"), "at most 268,435,456 are accepted")


def test_random_bytes_are_read_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "meta.csv"
    for _ in range(200):
        path.write_bytes(b"filename,label\n" + bytes(rng.integers(128, size=300).tolist()))
        try:
            found = read(path)
        except InputError as error:
            assert "\n" not in str(error) and "meta.csv" in str(error)
        else:
            assert all(0 < len(cell) <= LONGEST_CELL for row in found for cell in row)


# Paths


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.wav", "a.wav"), ("x/../b.wav", "b.wav"), ("./x//y.wav", "x/y.wav"), ("..a", "..a")],
)
def test_a_path_lies_under_the_folder(tmp_path: Path, name: str, expected: str) -> None:
    assert inside(tmp_path, name, "here") == tmp_path / expected


@pytest.mark.parametrize(
    "name", ["..", "../a.wav", "x/../../a.wav", "/etc/passwd", "//etc/passwd", ".", "x/..", "a\0b"]
)
def test_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    refused(lambda: inside(tmp_path, name, "here"), "here: ", "points outside the data folder")


def test_recordings_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.wav").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "audio").symlink_to(tmp_path / "disk")
    assert inside(tmp_path / "data", "audio/a.wav", "here").is_file()


# Cells


def test_whole_numbers() -> None:
    assert [whole_number(text, "fold", "here") for text in ("0", "007", "999999999")] == [
        0,
        7,
        999_999_999,
    ]
    for text in ("", "-1", "1.5", "1e3", " 1", "x", "²", "٣", "9" * 10):
        refused(partial(whole_number, text, "fold", "here"), f"here: fold={text!r} must")


def test_names_are_given_once() -> None:
    names = Names()
    names.add("a", "line 2")
    names.add("A", "line 3")
    refused(lambda: names.add("a", "line 4"), "line 4: 'a' is there twice")
