"""ESC-10-Devices: every clip through every device, unseen ones in testing alone."""

from __future__ import annotations

import collections
import csv
from pathlib import Path

import pytest

from tests.train.refusals import refused
from tests.train.trees import table
from train.dataset import Dataset
from train.datasets import load_dataset
from train.datasets.esc10_devices import NINE_DEVICES

HEADER = "device,impulse_response,split"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two clips in two folds, three devices; no sound is read."""
    clips = ["a.wav,Rain,0,1,s1", "b.wav,Rain,0,2,s2"]
    table(tmp_path / "esc10" / "meta.csv", ["filename,label,label_id,fold,source_id", *clips])
    devices = ["A,,seen", "S1,ir/one.wav,seen", "S4,ir/two.wav,unseen"]
    table(tmp_path / "devices.csv", [HEADER, *devices])
    return tmp_path


def devices(dataset: Dataset, fold: int) -> tuple[set[str], set[str]]:
    train, test = dataset.split(fold)
    return {r.device for r in train}, {r.device for r in test}


def test_every_clip_is_heard_through_every_device(tree: Path) -> None:
    dataset = load_dataset("esc10-devices", tree)
    assert dataset.name == "ESC-10-Devices" and dataset.labels == ("Rain",)
    assert dataset.devices == ("A", "S1", "S4") and dataset.unseen_devices == {"S4"}
    found = {r.name: r for r in dataset.recordings}
    expected = ["a.wav", "a.wav@S1", "a.wav@S4", "b.wav", "b.wav@S1", "b.wav@S4"]
    assert sorted(found) == expected
    clip = found["b.wav@S4"]
    assert clip.path == tree / "esc10" / "b.wav" and clip.response == tree / "ir" / "two.wav"
    assert (clip.device, clip.moment, clip.source, clip.fold) == ("S4", "b.wav", "s2", 2)
    assert found["b.wav"].response is None and found["b.wav"].moment == "b.wav"


def test_unseen_devices_are_only_tested(tree: Path) -> None:
    dataset = load_dataset("esc10-devices", tree)
    for fold in (1, 2):
        assert devices(dataset, fold) == ({"A", "S1"}, {"A", "S1", "S4"})


def test_the_column_of_responses_may_be_missing(tree: Path) -> None:
    table(tree / "devices.csv", ["device;split", "A;seen"])
    dataset = load_dataset("esc10-devices", tree)
    assert [r.name for r in dataset.recordings] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no column 'device'"),
        ([HEADER], "has no device of split 'seen'"),
        ([HEADER, "S4,ir/two.wav,unseen"], "has no device of split 'seen'"),
        ([HEADER, "A,,heard"], "line 2: split='heard'; allowed: seen, unseen"),
        ([HEADER, "A,,"], "line 2: column 'split' is empty"),
        ([HEADER, "A,,seen", "A,ir/one.wav,seen"], "line 3: 'A' is there twice"),
        ([HEADER, "A,../one.wav,seen"], "line 2: '../one.wav' points outside"),
    ],
)
def test_a_wrong_table_of_devices_is_refused(tree: Path, lines: list[str], message: str) -> None:
    table(tree / "devices.csv", lines)
    refused(lambda: load_dataset("esc10-devices", tree), message, "devices.csv")


def test_without_a_table_the_devices_are_those_of_the_benchmark(tree: Path) -> None:
    (tree / "devices.csv").unlink()
    dataset = load_dataset("esc10-devices", tree)
    assert dataset.devices == ("A", "B", "C", "S1", "S2", "S3", "S4", "S5", "S6")
    assert dataset.unseen_devices == {"S4", "S5", "S6"}
    found = {r.device: r.response for r in dataset.recordings}
    assert found["A"] is None and found["B"] == tree / "micirp" / "American_R331.wav"


def test_the_nine_devices_of_the_benchmark(audio_data: Path) -> None:
    dataset = load_dataset("esc10-devices", audio_data)
    with (audio_data / "devices.csv").open(encoding="utf-8") as stream:
        rows = {row["device"]: row for row in csv.DictReader(stream)}
    assert dataset.devices == ("A", "B", "C", "S1", "S2", "S3", "S4", "S5", "S6")
    assert set(rows) == set(dataset.devices)
    assert dataset.unseen_devices == {"S4", "S5", "S6"}
    for recording in dataset.recordings:
        file = rows[recording.device]["impulse_response"]
        assert recording.response == (audio_data / file if file else None)
        assert recording.response is None or recording.response.is_file()
    assert (audio_data / "devices.csv").read_text() == NINE_DEVICES.read_text()
    for fold in range(1, 6):
        train, test = dataset.split(fold)
        heard = collections.Counter(r.device for r in train)
        tested = collections.Counter(r.device for r in test)
        assert heard == dict.fromkeys(("A", "B", "C", "S1", "S2", "S3"), 320)
        assert tested == dict.fromkeys(dataset.devices, 80)
