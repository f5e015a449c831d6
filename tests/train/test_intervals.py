"""Confidence intervals: against a plain loop, and against what statistics says of their width."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from train.evaluate import Intervals, intervals, measure

FIGURES = (
    "clip_accuracy",
    "clip_log_loss",
    "macro_accuracy",
    "macro_log_loss",
    "window_accuracy",
    "window_log_loss",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Windows in the form of `measure`, and their sources."""

    probabilities: np.ndarray
    labels: np.ndarray
    clips: np.ndarray
    devices: np.ndarray
    sources: np.ndarray


@pytest.fixture
def data(rng: np.random.Generator) -> Data:
    """Windows in no order: 30 clips of 1 to 4 windows, two devices, 15 sources, three classes."""
    sources = np.repeat(np.arange(15), 2)
    devices = np.tile([0, 1], 15)
    labels = sources % 3
    clip = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 5, 30)))
    probabilities = rng.dirichlet(np.ones(3), len(clip))
    return Data(probabilities, labels[clip], sources[clip], devices[clip], sources[clip] * 10 + 3)


def by_loop(data: Data, resamples: int, seed: int) -> Intervals:
    """Draws whole sources, lays their windows side by side, and measures that data set."""
    rng, names = np.random.default_rng(seed), np.unique(data.sources)
    rows: list[list[float | None]] = []
    for _ in range(resamples):
        drawn = names[rng.integers(len(names), size=len(names))]
        places = [np.flatnonzero(data.sources == name) for name in drawn]
        # The same source drawn twice gives clips of its own each time.
        clips = np.concatenate([data.clips[p] + 1000 * i for i, p in enumerate(places)])
        at = np.concatenate(places)
        found = measure(
            data.probabilities[at], data.labels[at], clips, data.devices[at], (True, True)
        )
        rows.append(
            [
                found.clip_accuracy,
                found.clip_log_loss,
                found.macro.accuracy,
                found.macro.log_loss,
                found.window_accuracy,
                found.window_log_loss,
            ]
        )
    ends = [tuple(np.percentile(column, [2.5, 97.5])) for column in np.array(rows, float).T]
    return Intervals(*ends, sources=len(names), resamples=resamples, seed=seed)


def assert_same(found: Intervals, expected: Intervals) -> None:
    for name in FIGURES:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    for name in ("sources", "resamples", "seed"):
        assert getattr(found, name) == getattr(expected, name)


def drawn(data: Data, resamples: int = 200, seed: int = 0) -> Intervals:
    return intervals(*vars(data).values(), resamples=resamples, seed=seed)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_plain_loop_agrees(data: Data, seed: int) -> None:
    assert_same(drawn(data, seed=seed), by_loop(data, 200, seed))


def test_one_nudged_value_is_found(data: Data) -> None:
    probabilities = data.probabilities.copy()
    probabilities[5, data.labels[5]] *= 1 + 1e-6
    nudged = dataclasses.replace(data, probabilities=probabilities)
    with pytest.raises(AssertionError):
        assert_same(drawn(data), by_loop(nudged, 200, 0))


def test_the_seed_decides(data: Data) -> None:
    assert drawn(data) == drawn(data)
    assert drawn(data) != drawn(data, seed=1)


def test_a_class_that_is_not_drawn_is_left_out() -> None:
    """Two clips of two classes: the mean over the classes drawn is never halved."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = intervals(probabilities, np.array([0, 1]), np.array([0, 1]))
    assert found.macro_accuracy == (1.0, 1.0)


def correct_at(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that choose class 0 where ``correct``, of windows of class 0."""
    probabilities = np.where(correct[:, None], [0.9, 0.1], [0.1, 0.9])
    return probabilities, np.zeros(len(correct), np.int64)


def test_the_width_is_binomial() -> None:
    clips, share = 1000, 0.8
    probabilities, labels = correct_at(np.arange(clips) < share * clips)
    low, high = intervals(probabilities, labels, np.arange(clips)).clip_accuracy
    assert low < share < high
    deviation = np.sqrt(share * (1 - share) / clips)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_windows_of_a_clip_are_not_independent() -> None:
    """Five equal windows a clip tell no more than one."""
    probabilities, labels = correct_at(np.arange(200) < 150)
    once = intervals(probabilities, labels, np.arange(200))
    five = intervals(*(np.repeat(x, 5, axis=0) for x in (probabilities, labels, np.arange(200))))
    assert once.window_accuracy == pytest.approx(five.window_accuracy)


def test_a_clip_through_nine_devices_is_not_nine() -> None:
    probabilities, labels = correct_at(np.arange(200) < 150)
    alone = intervals(probabilities, labels, np.arange(200))
    nine = tuple(np.repeat(x, 9, axis=0) for x in (probabilities, labels))
    source, clips = np.repeat(np.arange(200), 9), np.arange(1800)
    devices = clips % 9
    for found in (
        intervals(*nine, clips, devices, sources=source),
        intervals(*nine, clips=source, devices=devices),
        intervals(*nine, clips, devices, sources=source.astype(str)),
    ):
        assert found.sources == 200
        assert found.clip_log_loss == pytest.approx(alone.clip_log_loss, rel=0.05)
        assert np.ptp(found.clip_accuracy) == pytest.approx(np.ptp(alone.clip_accuracy), rel=0.1)
    low, high = intervals(*nine, clips, devices).clip_accuracy
    assert high - low == pytest.approx(np.ptp(alone.clip_accuracy) / 3, rel=0.15)


def test_the_truth_is_inside_95_times_in_100(rng: np.random.Generator) -> None:
    inside, trials = 0, 200
    for _ in range(trials):
        probabilities, labels = correct_at(rng.random(100) < 0.7)
        low, high = intervals(probabilities, labels, np.arange(100), resamples=300).clip_accuracy
        inside += low <= 0.7 <= high
    # 95 % of 200 is 190, give or take 3; the percentile bootstrap is a little narrow.
    assert 180 <= inside <= 198
