"""The reader of TAU Urban Acoustic Scenes 2022 Mobile, on a small tree of the official layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firmware_ref.audio import read_audio
from tests.train.refusals import refused
from tests.train.trees import RATE_HZ, SECOND, TAU_CLIPS, noise, tau2022
from train.dataset import Recording
from train.datasets import load_dataset
from train.datasets.tau2022 import FOLDER, LABELS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tau2022(tmp_path)


def change(path: Path, old: str, new: str) -> None:
    """Replace the only place where a file says ``old``."""
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))


def test_each_clip_is_read_as_its_name_says(tree: Path) -> None:
    dataset = load_dataset("tau2022", tree)
    assert dataset.name == "TAU Urban Acoustic Scenes 2022 Mobile"
    assert dataset.labels == LABELS and len(LABELS) == 10 and list(LABELS) == sorted(LABELS)
    assert len(dataset.recordings) == 10, "the clip of neither split is left out"
    by_name = {r.name: r for r in dataset.recordings}
    for stem, split in TAU_CLIPS[:-1]:
        scene, city, location, segment, piece, device = stem.split("-")
        assert by_name[f"audio/{stem}.wav"] == Recording(
            name=f"audio/{stem}.wav",
            path=tree / "audio" / f"{stem}.wav",
            label=LABELS.index(scene),
            fold=int(split == "evaluate"),
            source=f"{city}-{location}",
            device=device.upper(),
            moment="-".join((scene, city, location, segment, piece)),
        )


def test_the_official_split_tests_devices_that_training_never_hears(tree: Path) -> None:
    dataset = load_dataset("tau2022", tree)
    assert dataset.devices == ("A", "B", "C", "S1", "S4")
    assert dataset.unseen_devices == {"S4"}
    train, test = dataset.split(1)
    assert {r.device for r in train} == {"A", "B", "C", "S1"} and len(train) == 6
    assert {r.device for r in test} == {"A", "S1", "S4"} and len(test) == 4
    assert not {r.source for r in train} & {r.source for r in test}


def test_devices_of_one_moment_are_aligned(tree: Path) -> None:
    found = load_dataset("tau2022", tree).recordings
    heard = [r.device for r in found if r.moment == "airport-lisbon-1000-40000-0"]
    assert heard == ["A", "B", "S1"]
    assert len({r.moment for r in found}) == 5


def test_the_folder_that_the_archives_unpack_to_is_found(tmp_path: Path) -> None:
    tree = tau2022(tmp_path / FOLDER)
    assert load_dataset("tau2022", tmp_path) == load_dataset("tau2022", tree)


def test_24_bit_recordings_are_read(tmp_path: Path) -> None:
    clip = load_dataset("tau2022", tau2022(tmp_path, audio=True)).recordings[0]
    samples = read_audio(clip.path, RATE_HZ)
    assert len(samples) == SECOND
    assert abs(samples - noise(0)).max() <= 2**-23


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tairport\tlisbon-1000\tb", "\ttram\tlisbon-1000\tb", "scene_label='tram', but"),
        ("\tairport\tlisbon-1000\tb", "\tairport\tlisbon-1001\tb", "identifier='lisbon-1001', but"),
        ("\tairport\tlisbon-1000\tb", "\tairport\t1000\tb", "says 'lisbon-1000'"),
        ("\tairport\tlisbon-1000\tb", "\tairport\tlisbon-1000\tc", "source_label='c', but"),
        ("\tairport\tlisbon-1000\tb", "\tbeach\tlisbon-1000\tb", "'beach'; allowed: airport, bus"),
        ("\tairport\tlisbon-1000\tb", "\tairport\tlisbon-1000", "'source_label' is empty"),
        ("40000-0-b.wav", "40000-b.wav", "must read scene-city-location-segment-piece-device"),
        ("40000-0-b.wav", "40000-0-a.wav", "is there twice"),
        ("audio/airport-lisbon-1000-40000-0-b", "../airport-lisbon-1000-40000-0-b", "outside"),
    ],
)
def test_a_row_of_the_index_that_is_wrong_is_named(
    tree: Path, old: str, new: str, message: str
) -> None:
    change(tree / "meta.csv", old, new)
    refused(lambda: load_dataset("tau2022", tree), "meta.csv' line 3", message)


@pytest.mark.parametrize("split", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{first}.wav\tairport", "{first}.wav\ttram", "='tram', but meta.csv says 'airport'"),
        ("{first}.wav", "{first}x.wav", "is not in meta.csv; restore the files"),
        ("{first}.wav", "{second}.wav", "is there twice"),
    ],
)
def test_a_row_of_a_split_that_is_wrong_is_named(
    tree: Path, split: str, old: str, new: str, message: str
) -> None:
    first, second = [stem for stem, place in TAU_CLIPS if place == split][:2]
    file = tree / "evaluation_setup" / f"fold1_{split}.csv"
    change(file, old.format(first=first), new.format(first=first, second=second))
    line = 3 if "twice" in message else 2
    refused(lambda: load_dataset("tau2022", tree), f"fold1_{split}.csv' line {line}", message)


def test_a_clip_in_both_splits_is_refused(tree: Path) -> None:
    file = tree / "evaluation_setup" / "fold1_evaluate.csv"
    with file.open("a", encoding="utf-8") as stream:
        stream.write("audio/airport-lisbon-1000-40000-1-a.wav\tairport\r\n")
    refused(lambda: load_dataset("tau2022", tree), "fold1_evaluate.csv' line 6", "is there twice")


def test_a_place_on_both_sides_is_refused(tree: Path) -> None:
    """Other clips of a place where it was trained would flatter every figure."""
    setup, line = tree / "evaluation_setup", "audio/airport-lisbon-1000-40000-1-a.wav\tairport\n"
    change(setup / "fold1_train.csv", line, "")
    with (setup / "fold1_evaluate.csv").open("a", encoding="utf-8") as stream:
        stream.write(line)
    refused(
        lambda: load_dataset("tau2022", tree).split(1),
        "fold=1 leaks: 1 sources lie in training and test, 'lisbon-1000' among them",
    )


@pytest.mark.parametrize(
    "file", ["meta.csv", "evaluation_setup/fold1_train.csv", "evaluation_setup/fold1_evaluate.csv"]
)
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\r\n\r\n",
        bytes(range(256)) * 4,
        b"RIFF\x00\x01\x02\x03WAVE",
        b"filename,scene_label,identifier,source_label\na.wav,tram,b-1,a\n",
        b"filename\tlabel\naudio/airport-lisbon-1000-40000-0-a.wav\tairport\n",
        b"filename\tscene_label\tidentifier\tsource_label\n" + b"a" * 200_000,
        b"filename\tscene_label\tidentifier\tsource_label\n" + b"a\tb\tc\td\n",
        b'filename\tscene_label\tidentifier\tsource_label\n"' + b"a\tb\tc\td\n" * 20_000,
    ],
    ids=lambda content: repr(content)[:24],
)
def test_a_damaged_index_is_refused(tree: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (tree / file).unlink()
    else:
        (tree / file).write_bytes(content)
    refused(lambda: load_dataset("tau2022", tree).split(1), Path(file).name)


def test_splits_without_a_recording_are_refused(tree: Path) -> None:
    setup = tree / "evaluation_setup"
    for split, message in (("train", "has only fold 1"), ("evaluate", "names no recordings")):
        text = (setup / f"fold1_{split}.csv").read_text(encoding="utf-8")
        (setup / f"fold1_{split}.csv").write_text(re.split("\r?\n", text)[0], encoding="utf-8")
        refused(lambda: load_dataset("tau2022", tree).split(1), message)
