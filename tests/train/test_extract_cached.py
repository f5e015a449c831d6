"""Extraction through the cache: each recording once, whatever is renamed, changed or stopped."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.extracting import before_each, extracted, rows, same
from tests.train.trees import (
    DEFINITION,
    SECOND,
    device_log_mel,
    noise,
    noise_recordings,
    recording,
    wav,
)
from train import extract as extraction
from train.dataset import Recording
from train.extract import Cut, Variation, extract

ROOT = Path(__file__).parents[2]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that are computed here rather than found."""
    names: list[str] = []
    before_each(monkeypatch, lambda clip: names.append(clip.name))
    return names


def test_what_was_computed_is_found(tmp_path: Path, computed: list[str]) -> None:
    clips = noise_recordings(tmp_path, 3)
    first = extracted(clips[:2], tmp_path / "cache")
    assert computed == ["0.wav", "1.wav"]
    assert same(first, extracted(clips[:2], tmp_path / "cache")) and len(computed) == 2
    second = extracted(clips[::-1], tmp_path / "cache")
    assert computed == ["0.wav", "1.wav", "2.wav"]
    np.testing.assert_array_equal(rows(second, 2), rows(first, 0))


def test_a_renamed_copy_is_found_and_a_changed_file_is_not(
    tmp_path: Path, computed: list[str]
) -> None:
    (clip,) = noise_recordings(tmp_path, 1)
    extracted([clip], tmp_path / "cache")
    copy = recording(Path(shutil.copy(clip.path, tmp_path / "copy.wav")), label=7)
    both = extracted([clip, copy], tmp_path / "cache")
    assert computed == ["0.wav"] and both.entries[0] == both.entries[1]
    at_once = extracted([clip, copy], tmp_path / "new")
    assert at_once.entries[0] == at_once.entries[1] and len(at_once.log_mels) == 1
    del computed[1:]
    wav(clip.path, noise(1))
    changed = extracted([clip, copy], tmp_path / "cache")
    assert computed == ["0.wav"] * 2 and changed.entries[0] != changed.entries[1]
    np.testing.assert_array_equal(rows(changed, 0), device_log_mel(noise(1))[None])
    np.testing.assert_array_equal(rows(changed, 1), device_log_mel(noise(0))[None])


def test_a_changed_impulse_response_is_heard(tmp_path: Path, computed: list[str]) -> None:
    (clip,) = noise_recordings(tmp_path, 1)
    responses = (np.array([1.0]), np.array([0.6, 0.8]))
    found = []
    for response in responses:
        clip = dataclasses.replace(clip, response=wav(tmp_path / "ir.wav", response))
        found.append(rows(extracted([clip], tmp_path / "cache"), 0).copy())
    assert len(computed) == 2 and np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"definition": dataclasses.replace(DEFINITION, mel_bands=64)},
        {"definition": dataclasses.replace(DEFINITION, log_floor=1e-5)},
        {"cut": Cut(SECOND // 2)},
        {"cut": Cut(SECOND, "float16")},
        {"cut": Cut()},
        {"variation": Variation(semitones=1)},
        {"variation": Variation(gains={"A": np.full(1025, 2.0)})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_windows_of_another_kind_are_computed(
    tmp_path: Path, computed: list[str], changes: dict[str, Any]
) -> None:
    clips = noise_recordings(tmp_path, 1)
    half = Cut(dtype="float16")
    plain: dict[str, Any] = {"definition": DEFINITION, "cut": half, "variation": Variation()}
    extract(clips, cache=tmp_path, **plain)
    for _ in range(2):
        extract(clips, cache=tmp_path, **{**plain, **changes})
        assert len(computed) == 2


def test_only_the_gain_of_its_own_device_matters(tmp_path: Path, computed: list[str]) -> None:
    clips = noise_recordings(tmp_path, 1)
    plain = extracted(clips, tmp_path)
    assert same(plain, extracted(clips, tmp_path, gains={"B": np.full(1025, 2.0)}))
    assert len(computed) == 1


def test_every_recording_to_compute_is_shown_as_progress(tmp_path: Path) -> None:
    clips = noise_recordings(tmp_path, 3)
    extracted(clips[:1], tmp_path)
    shown = []

    def progress(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            shown.append((number, title, total))
            yield item

    extract(clips, DEFINITION, Cut(), Variation(), tmp_path, progress)
    reading = [(number, "reading", 3) for number in range(3)]
    assert shown == [*reading, (0, "features", 2), (1, "features", 2)]


# Interruptions and other processes


def test_an_interrupted_extraction_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    clips = noise_recordings(tmp_path, 5)

    def stop(clip: Recording) -> None:
        if clip == clips[3]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_each(patch, stop)
        extracted(clips, tmp_path / "cache")
    assert computed == ["0.wav", "1.wav", "2.wav"]
    del computed[:]
    found = extracted(clips, tmp_path / "cache")
    assert computed == ["3.wav", "4.wav"]
    assert same(found, extracted(clips, tmp_path / "whole"))


def test_in_parallel_an_interrupted_extraction_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = noise_recordings(tmp_path, 6)
    monkeypatch.setattr(extraction, "LOT", 1)

    def stop(items: Iterable[Any], title: str, _: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if (title, number) == ("features", 2):
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        extract(clips, DEFINITION, Cut(), Variation(), tmp_path / "cache", stop)
    counts = []

    def count(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
        counts.append((title, total))
        return items

    found = extract(clips, DEFINITION, Cut(), Variation(), tmp_path / "cache", count)
    assert counts == [("reading", 6), ("features", 4)]
    assert same(found, extracted(clips, tmp_path / "whole"))


def run(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.train.extracting", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_computed_is_found(tmp_path: Path, computed: list[str]) -> None:
    clips = noise_recordings(tmp_path / "sounds", 5)
    killed = run(tmp_path / "sounds", tmp_path / "cache", 2)
    assert killed.communicate(timeout=60)[0] == "" and killed.returncode == 9
    found = extracted(clips, tmp_path / "cache")
    assert computed == ["2.wav", "3.wav", "4.wav"]
    assert same(found, extracted(clips, tmp_path / "whole"))


def test_two_processes_at_once_share_the_work(tmp_path: Path, computed: list[str]) -> None:
    clips = noise_recordings(tmp_path / "sounds", 6)
    two = [run(tmp_path / "sounds", tmp_path / "cache") for _ in range(2)]
    counts = [process.communicate(timeout=60)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    assert sorted(counts) == ["0\n", "6\n"], "what one has computed the other finds"
    found = extracted(clips, tmp_path / "cache")
    assert not computed and same(found, extracted(clips, tmp_path / "whole"))
