"""The reader of ESC-10, on made indexes and on the recordings themselves."""

from __future__ import annotations

import collections
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import InputError
from tests.train.refusals import refused
from train.datasets import load_dataset

HEADER = "filename,label,label_id,fold\n"


def test_the_index_is_read(tiny_esc10: Path) -> None:
    dataset = load_dataset("esc10", tiny_esc10)
    assert dataset.name == "ESC-10"
    assert dataset.labels == ("Dog bark", "Rain", "Sea waves")
    assert len(dataset.recordings) == 12
    assert dataset == load_dataset("esc10", tiny_esc10 / "esc10")
    for recording in dataset.recordings:
        assert recording.path.is_file()
        assert recording.path.parent.name == dataset.labels[recording.label]
        assert recording.path == tiny_esc10 / "esc10" / recording.name
        assert recording.fold == int(recording.path.stem[0])
    assert dataset.devices == ("A",) and not dataset.unseen_devices


def test_a_source_is_the_column_or_else_the_file(tmp_path: Path) -> None:
    def sources(*cells: str) -> list[str]:
        rows = [f"{n}.wav,Rain,0,{1 + n // 2},{cell}" for n, cell in enumerate(cells)]
        text = "\n".join(["filename,label,label_id,fold,source_id", *rows])
        (tmp_path / "meta.csv").write_text(text, encoding="utf-8")
        return [r.source for r in load_dataset("esc10", tmp_path).recordings]

    assert sources("s1", "s1", "s2") == ["s1", "s1", "s2"]
    assert sources("", "", "") == ["0.wav", "1.wav", "2.wav"]
    # The last could be of s1, and lie in another fold.
    refused(lambda: sources("s1", "s1", ""), "fills column 'source_id' in some rows alone; fill")


def test_without_the_column_every_file_is_a_source(make_esc10: Callable[..., Path]) -> None:
    dataset = load_dataset("esc10", make_esc10(classes=2, folds=2, clips=3, seconds=(0.1,)))
    assert len({r.source for r in dataset.recordings}) == len(dataset.recordings) == 12


def named(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "esc10" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "esc10" / name).touch()
    return folder


def test_without_an_index_the_names_of_the_files_say_it(tmp_path: Path) -> None:
    names = (
        "001 - Dog bark/2-118072-A.ogg",
        "002 - Rain/1-17367-A.ogg",
        "002 - Rain/1-17367-B.ogg",
    )
    folder = named(tmp_path, *names)
    for dataset in (load_dataset("esc10", folder), load_dataset("esc10", folder / "esc10")):
        assert dataset.labels == ("Dog bark", "Rain")
        found = [(r.name, r.label, r.fold, r.source) for r in dataset.recordings]
        rows = [(0, 2, "118072"), (1, 1, "17367"), (1, 1, "17367")]
        assert found == [(name, *row) for name, row in zip(names, rows, strict=True)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds neither meta.csv nor recordings such as '001 - Dog bark/1-100032-A.ogg'"),
        (("clip.ogg",), "holds neither meta.csv nor recordings"),
        (("001 - Dog bark/1-100032.ogg",), "1-100032.ogg' is not named as ESC-10's recordings"),
        (("Dog bark/1-100032-A.ogg",), "is not named as ESC-10's recordings are"),
        (("000 - Dog bark/1-100032-A.ogg",), "label_id='-1' must be a whole number"),
        (("002 - Dog bark/1-100032-A.ogg",), "must number its labels 0, 1, 2"),
        (("001 - Dog/1-1-A.ogg", "001 - Cat/1-2-A.ogg"), "label_id 0 has two names"),
        (("001 - Dog/1-1-A.ogg", "002 - Dog/1-2-A.ogg"), "gives two labels one name"),
    ],
    ids=lambda value: repr(value)[-32:],
)
def test_files_of_other_names_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    (tmp_path / "esc10").mkdir()
    refused(lambda: load_dataset("esc10", named(tmp_path, *names)), message, "esc10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'filename'"),
        (HEADER, "must number its labels 0, 1, 2"),
        ("filename,label,fold\na.wav,Rain,1\n", "has no column 'label_id'; it needs filename, l"),
        (HEADER + "a.wav,Rain,zero,1\n", "line 2: label_id='zero' must be a whole number"),
        (HEADER + "a.wav,Rain,-1,1\n", "line 2: label_id='-1' must be a whole number"),
        (HEADER + "a.wav,Rain,0,1.5\n", "line 2: fold='1.5' must be a whole number"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Rain\n", "line 3: column 'label_id' is empty"),
        (HEADER + "a.wav,Rain,1,1\n", "must number its labels 0, 1, 2"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Sea,999999999,1\n", "must number its labels 0, 1, 2"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Sea,0,1\n", "line 3: label_id 0 has two names"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Rain,1,1\n", "gives two labels one name"),
        (HEADER + "a.wav,Rain,0,1\na.wav,Rain,0,2\n", "a.wav' is there twice"),
        (HEADER + "a.wav,Rain,0,1\nx/../a.wav,Rain,0,2\n", "a.wav' is there twice"),
        (HEADER + "../a.wav,Rain,0,1\n", "line 2: '../a.wav' points outside"),
        (HEADER + "/etc/passwd,Rain,0,1\n", "line 2: '/etc/passwd' points outside"),
        (HEADER + "a\0.wav,Rain,0,1\n", "line 2"),
        (HEADER + "a" * 200_000 + ",Rain,0,1\n", "is not CSV"),
        (HEADER + '"a.wav,Rain,0,1\n' * 3, "column 'label' is empty"),
        (HEADER + "a.wav,Rain,0," + "9" * 500 + "\n", "line 2: fold="),
    ],
    ids=lambda text: repr(text)[-32:],
)
def test_a_hostile_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "meta.csv").write_text(text, encoding="utf-8", newline="")
    refused(lambda: load_dataset("esc10", tmp_path), message, "meta.csv")


def test_an_index_of_random_bytes_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    for _ in range(50):
        (tmp_path / "meta.csv").write_bytes(HEADER.encode() + rng.bytes(500))
        with pytest.raises(InputError, match=r"meta\.csv"):
            load_dataset("esc10", tmp_path)


def test_the_recordings_of_esc10(audio_data: Path, tmp_path: Path) -> None:
    dataset = load_dataset("esc10", audio_data)
    bare = named(tmp_path, *(r.name for r in dataset.recordings))
    assert load_dataset("esc10", bare).folds == dataset.folds
    assert len(dataset.recordings) == 400 and len(dataset.labels) == 10
    counts = collections.Counter((r.fold, r.label) for r in dataset.recordings)
    assert counts == {(fold, label): 8 for fold in range(1, 6) for label in range(10)}
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8") as stream:
        source_of = {row["filename"]: row["source_id"] for row in csv.DictReader(stream)}
    assert {r.name: r.source for r in dataset.recordings} == source_of
    for fold in range(1, 6):
        train, test = dataset.split(fold)  # which refuses a source on both sides
        assert (len(train), len(test)) == (320, 80)
