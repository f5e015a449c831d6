"""Any collection by a CSV file: what columns mean, and how sources are dealt to folds."""

from __future__ import annotations

import collections
import hashlib
from pathlib import Path

import pytest

from tests.train.refusals import refused
from tests.train.trees import table
from train.dataset import Dataset
from train.datasets import load_dataset

HEADER = "filename,scene_label"
FULL = "filename,scene_label,source_label,identifier,fold"


def read(folder: Path, *lines: str) -> Dataset:
    table(folder / "mine.csv", lines)
    return load_dataset("mine.csv", folder)


def test_two_columns_are_enough(tmp_path: Path) -> None:
    dataset = read(tmp_path, HEADER, "x/a.wav,street", "b.flac,park", "c,street")
    assert dataset.name == "mine" and dataset.labels == ("park", "street")
    assert dataset.devices == ("A",) and not dataset.unseen_devices
    assert [r.name for r in dataset.recordings] == ["x/a.wav", "b.flac", "c"]
    assert [r.path for r in dataset.recordings] == [
        tmp_path / name for name in ("x/a.wav", "b.flac", "c")
    ]
    assert [r.label for r in dataset.recordings] == [1, 0, 1]
    assert [r.source for r in dataset.recordings] == ["x/a", "b", "c"]


def test_the_optional_columns_are_device_place_and_fold(tmp_path: Path) -> None:
    lines = ("a-s1.wav,park,s1,lisbon-1,3", "a-b.wav,park,b,lisbon-1,3", "c.wav,tram,b,lyon-2,4")
    dataset = read(tmp_path, FULL, *lines)
    assert dataset.devices == ("b", "s1")
    found = [(r.device, r.source, r.fold, r.moment) for r in dataset.recordings]
    assert found == [
        ("s1", "lisbon-1", 3, "a"),
        ("b", "lisbon-1", 3, "a"),
        ("b", "lyon-2", 4, "c"),
    ]
    train, test = dataset.split(4)
    assert [r.name for r in train] == ["a-s1.wav", "a-b.wav"] and len(test) == 1


def test_recordings_are_aligned_by_the_ending_of_their_names(tmp_path: Path) -> None:
    names = {"x/1-a.wav": "a", "x/1-b.wav": "b", "y/1-b.wav": "b", "x/1-a-b.flac": "b", "2.wav": ""}
    lines = [f"{name},{'park' if device else 'tram'},{device}" for name, device in names.items()]
    dataset = read(tmp_path, "filename,scene_label,source_label", *lines)
    moments = [r.moment for r in dataset.recordings]
    assert moments == ["x/1", "x/1", "y/1", "x/1-a", "2"]
    assert [r.source for r in dataset.recordings] == moments, "aligned clips share a source"


def test_sources_are_dealt_to_five_folds_by_their_digest(tmp_path: Path) -> None:
    lines = [
        f"{n}-{d}.wav,{'park' if n % 2 else 'tram'},{d},p{n // 2}" for n in range(400) for d in "ab"
    ]
    dataset = read(tmp_path, "filename,scene_label,source_label,identifier", *lines)
    for r in dataset.recordings:
        assert r.fold == 1 + int(hashlib.sha256(r.source.encode()).hexdigest(), 16) % 5
    counts = collections.Counter(r.fold for r in dataset.recordings)
    assert set(counts) == {1, 2, 3, 4, 5} and min(counts.values()) > 800 / 5 / 2
    for fold in range(1, 6):
        dataset.split(fold)  # which refuses a source on both sides


def test_the_order_of_rows_moves_no_fold_or_label(tmp_path: Path) -> None:
    lines = [f"{n}.wav,{'park' if n % 3 else 'tram'}" for n in range(30)]
    ours = read(tmp_path, HEADER, *lines)
    theirs = read(tmp_path, HEADER, *reversed(lines))
    assert ours.labels == theirs.labels and set(ours.recordings) == set(theirs.recordings)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no column 'filename'"),
        (["filename,label", "a.wav,x"], "has no column 'scene_label'"),
        ([HEADER], "names 0 scenes; two at least"),
        ([HEADER, "a.wav,x", "b.wav,x"], "names 1 scenes; two at least"),
        ([HEADER, "a.wav,x", "a.wav,y"], "a.wav' is there twice"),
        ([HEADER, "a.wav,x", "./a.wav,y"], "a.wav' is there twice"),
        ([HEADER, "../a.wav,x"], "line 2: '../a.wav' points outside"),
        ([HEADER, "/a.wav,x"], "line 2: '/a.wav' points outside"),
        ([HEADER, "a.wav,"], "line 2: column 'scene_label' is empty"),
        ([FULL, "a.wav,x,a,p,1", "b.wav,y,a,q,"], "fills column 'fold' in some rows alone"),
        ([FULL, "a.wav,x,a,p,1", "b.wav,y,a,,1"], "fills column 'identifier' in some rows alone"),
        ([FULL, "a.wav,x,a,,", "b.wav,y,a,q,"], "'identifier' in some rows alone; fill it in all"),
        ([FULL, "a.wav,x,a,p,one"], "line 2: fold='one' must be a whole number"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    refused(lambda: read(tmp_path, *lines), message, "mine.csv")


def test_a_place_in_two_folds_is_refused(tmp_path: Path) -> None:
    dataset = read(tmp_path, FULL, "a.wav,x,a,p,1", "b.wav,y,a,p,2", "c.wav,y,a,q,2")
    refused(lambda: dataset.split(1), "fold=1 leaks: 1 sources", "'p' among them")


def test_optional_columns_may_be_empty(tmp_path: Path) -> None:
    """As a spreadsheet writes them that has the header alone; each moment is a source then."""
    lines = ("a.wav,x", "b.wav,y", "c.wav,y")
    bare = read(tmp_path, HEADER, *lines)
    assert read(tmp_path, FULL, *(f"{line},,," for line in lines)) == bare
    assert [r.source for r in bare.recordings] == ["a", "b", "c"]
