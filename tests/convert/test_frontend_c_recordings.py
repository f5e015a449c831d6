"""What the fixed-point front end changes on real recordings: nearly no code, no accuracy.

By default a few clips of every class; with ``-m slow`` all of ESC-10, and the whole test fold.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.audio import read_audio, windows
from firmware_ref.classify import Classifier
from firmware_ref.fixed_frontend import FixedFrontend, pcm16
from tests.convert.frontend_c import built, shipped_graph

TEST_FOLD = 1
WITHIN_ONE, EQUAL = 0.999, 0.999
POINTS = 0.3


@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples, (N, 44100) int16, and the network inputs of them, in floating point and integers."""

    labels: np.ndarray
    pcm: np.ndarray
    float_codes: np.ndarray
    fixed_codes: np.ndarray

    def share(self, most_steps: int) -> float:
        apart = np.abs(self.fixed_codes.astype(np.int16) - self.float_codes)
        return float((apart <= most_steps).mean())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "meta.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def inputs(chosen: list[dict[str, str]], folder: Path) -> Inputs:
    """The windows of the clips, as a microphone's int16 samples."""
    classifier, frontend = Classifier(shipped_graph()), FixedFrontend.of_graph(shipped_graph())
    definition = classifier.metadata.features
    cuts = [windows(read_audio(folder / row["filename"], 44_100), definition) for row in chosen]
    labels = [int(row["label_id"]) for row in chosen]
    pcm = pcm16(np.concatenate(cuts))
    float_codes = classifier.inputs(pcm / np.float32(2**15))
    return Inputs(np.repeat(labels, [len(c) for c in cuts]), pcm, float_codes, frontend.inputs(pcm))


def accuracies(found: Inputs) -> tuple[float, float]:
    """Percent of windows right, by the float features and in integers."""
    classifier = Classifier(shipped_graph())
    both = (found.float_codes, found.fixed_codes)
    classes = [classifier.probabilities(codes).argmax(axis=1) for codes in both]
    first, second = (100 * float((c == found.labels).mean()) for c in classes)
    return first, second


def test_a_sample_of_the_test_fold(audio_data: Path) -> None:
    folder = audio_data / "esc10"
    chosen = [row for row in rows(folder) if int(row["fold"]) == TEST_FOLD][::8]
    assert len({row["label"] for row in chosen}) == 10
    found = inputs(chosen, folder)
    assert found.share(1) >= WITHIN_ONE and found.share(0) >= EQUAL
    float_accuracy, fixed_accuracy = accuracies(found)
    assert abs(float_accuracy - fixed_accuracy) < POINTS


def test_codes_of_other_samples_are_told_apart(audio_data: Path) -> None:
    folder = audio_data / "esc10"
    found = inputs(rows(folder)[:1], folder)
    shifted = replace(found, fixed_codes=np.roll(found.fixed_codes, 1, axis=2))
    assert shifted.share(1) < WITHIN_ONE


@pytest.mark.slow
def test_the_accuracy_of_the_test_fold(audio_data: Path) -> None:
    folder = audio_data / "esc10"
    found = inputs([row for row in rows(folder) if int(row["fold"]) == TEST_FOLD], folder)
    float_accuracy, fixed_accuracy = accuracies(found)
    assert abs(float_accuracy - fixed_accuracy) < POINTS, (float_accuracy, fixed_accuracy)


@pytest.mark.slow
def test_every_clip_of_esc10(audio_data: Path, tmp_path: Path) -> None:
    """The shares, and the C front end beside the twin, on all windows."""
    folder = audio_data / "esc10"
    compiled = built(FixedFrontend.of_graph(shipped_graph()), tmp_path)
    everything = rows(folder)
    assert len(everything) == 400
    within, equal, total = 0.0, 0.0, 0
    for start in range(0, 400, 40):
        found = inputs(everything[start : start + 40], folder)
        np.testing.assert_array_equal(compiled.inputs(found.pcm), found.fixed_codes)
        count = len(found.pcm)
        within, equal = within + count * found.share(1), equal + count * found.share(0)
        total += count
    assert within / total >= WITHIN_ONE and equal / total >= EQUAL, (within / total, equal / total)
