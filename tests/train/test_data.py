"""Windows as training and evaluation see them: their order, normalisation and draws."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.features import stack_deltas
from tests.train.trees import (
    DEFINITION,
    SECOND,
    device_log_mel,
    noise,
    noise_recordings,
    recording,
    wav,
)
from train import data
from train.cache import Entry
from train.data import (
    EpochSampler,
    InputNormalization,
    Source,
    Windows,
    gather,
    over_windows,
)
from train.extract import Cut, Extracted, Variation

TRAIN = Cut(SECOND // 4, "float16")


def made(log_mels: np.ndarray, clips: Sequence[int], dtype: str = "float32") -> Windows:
    """Windows of one variation; clip c has class c % 3."""
    numbers, own = np.arange(len(log_mels)), np.array(clips)
    maps = (log_mels.astype(dtype),)
    return Windows(maps, 0 * numbers, numbers, own % 3, 0 * numbers, own, numbers)


def counted(counts: Sequence[int], variations: int = 1) -> Windows:
    """Windows of clips that have so many, in several variations; log-mels are their rows."""
    entries, first = [], 0
    for count in counts:
        entries.append(Entry(first, (True,) * count))
        first += count
    heard = [
        Extracted(np.full((first, 1, 1), 1000.0 * v) + np.arange(first)[:, None, None], (*entries,))
        for v in range(variations)
    ]
    return gather([recording(Path("a"))] * len(counts), "A", heard, active_only=True)


# Gathering


def test_evaluation_uses_every_window_of_the_deployed_cut(tmp_path: Path) -> None:
    samples = noise(0, 2.6)
    samples[SECOND : 2 * SECOND] = 0  # silence counts, too
    clips = [
        recording(wav(tmp_path / "a.wav", samples), label=2, device="S1"),
        recording(wav(tmp_path / "b.wav", noise(1))),
    ]
    heard = Source(DEFINITION, tmp_path / "cache").extract(clips, Cut())
    windows = gather(clips, ("A", "B", "S1"), [heard], active_only=False)
    assert len(windows) == 4
    assert windows.labels.tolist() == [2, 2, 2, 0] and windows.clips.tolist() == [0, 0, 0, 1]
    assert windows.devices.tolist() == [2, 2, 2, 0] and windows.moments.tolist() == [0, 1, 2, 3]
    padded = np.pad(samples, (0, 3 * SECOND - len(samples))).reshape(3, SECOND)
    expected = device_log_mel(np.concatenate([padded, noise(1)[None]]))
    np.testing.assert_array_equal(windows.log_mels(np.arange(4)), expected)


def test_training_uses_active_windows(tmp_path: Path) -> None:
    """Of a burst at 1 s only windows that hold it; of silence every window, as there is no other.

    Below -60 dBFS is padding.
    """
    samples = np.zeros(4 * SECOND, np.float32)
    samples[SECOND : SECOND + 100] = noise(3)[:100]
    quiet = np.full(2 * SECOND, 0.00099, np.float32)
    quiet[SECOND + SECOND // 2 :] = 0.0011
    silent = np.zeros(2 * SECOND, np.float32)
    sounds = {"burst": samples, "silent": silent, "quiet": quiet}
    clips = [recording(wav(tmp_path / f"{name}.wav", sound)) for name, sound in sounds.items()]
    heard = Source(DEFINITION, tmp_path / "cache").extract(clips, TRAIN)
    windows = gather(clips, "A", [heard], active_only=True)
    # Starts at quarters of a second: 1 to 4; 0 to 4; and those that end after 1.5 s.
    starts = windows.row - np.array([entry.first for entry in heard.entries])[windows.clips]
    assert starts.tolist() == [1, 2, 3, 4, *range(5), 3, 4]
    assert windows.clips.tolist() == [0] * 4 + [1] * 5 + [2] * 2
    assert len(gather(clips, "A", [heard], active_only=False)) == 13 + 5 + 5


def test_variations_of_a_window_share_its_moment(tmp_path: Path) -> None:
    clips = noise_recordings(tmp_path, 3, seconds=1.25)
    source = Source(DEFINITION, tmp_path / "cache")
    variations = (Variation(), Variation(semitones=2), Variation(gains={"A": np.full(1025, 2.0)}))
    # The store of the first and third holds both; rows are not those of a single extraction.
    heard = [source.extract(clips[::step], TRAIN, v) for v in variations for step in (-1, 1)][1::2]
    windows, plain = (gather(clips, "A", part, active_only=True) for part in (heard, heard[:1]))
    assert len(plain) == 6 and len(windows) == 18
    assert windows.moments.tolist() == np.repeat(np.arange(6), 3).tolist()
    assert windows.variation.tolist() == [0, 1, 2] * 6
    assert (windows.clips == plain.clips[windows.moments]).all()
    for number, extracted in enumerate(heard):
        own = np.flatnonzero(windows.variation == number)
        expected = np.concatenate(
            [extracted.log_mels[e.first : e.first + e.count] for e in extracted.entries]
        )
        np.testing.assert_array_equal(windows.log_mels(own), expected)
    # In any order and mixture, each as alone.
    chosen = np.random.default_rng(0).permutation(18)
    alone = np.concatenate([windows.log_mels(np.array([n])) for n in chosen])
    np.testing.assert_array_equal(windows.log_mels(chosen), alone)
    assert windows.log_mels(chosen).dtype == np.float16


@pytest.mark.parametrize("semitones", [-4, 2, 4])
def test_a_shifted_window_holds_the_sound_of_its_moment(tmp_path: Path, semitones: int) -> None:
    """Of a sound that grows by 8 dB a second, every window is as loud as it was recorded.

    The starts are 2 dB apart. Played faster, a recording begins again in the last window.
    """
    grown = noise(0, 5) * 10 ** (np.arange(5 * SECOND) / SECOND * 8 / 20 - 2)
    clips = [recording(wav(tmp_path / "a.wav", grown.astype(np.float32)))]
    source = Source(DEFINITION, tmp_path / "cache")
    heard = [source.extract(clips, TRAIN, v) for v in (Variation(), Variation(semitones))]
    windows = gather(clips, "A", heard, active_only=True)
    # In bands that are full at any of these pitches; a power ratio of e is 4.34 dB.
    level = windows.log_mels(np.arange(len(windows)))[:, 20:80].mean((1, 2), np.float64) * 4.34
    plain, shifted = level.reshape(-1, 2).T
    last = 16 if semitones > 0 else 17
    assert np.diff(plain).mean() == pytest.approx(2, abs=0.1)
    assert len(plain) == 17 and np.abs(plain - shifted)[:last].max() < 2
    without = gather(
        clips, "A", [dataclasses.replace(found, speed=1.0) for found in heard], active_only=True
    )
    away = windows.row - without.row
    assert np.abs(away).max() >= 1 and (away[::2] == 0).all()


def test_the_end_that_a_slow_recording_lacks_is_heard_as_recorded() -> None:
    """Four semitones lower, moment n lies at 1.26 n; moments 8 and 9 are not there any more."""
    entries = (Entry(0, (True,) * 10),)
    maps = np.zeros((10, 1, 1))
    heard = [Extracted(maps, entries), Extracted(maps, entries, 2 ** (-4 / 12))]
    windows = gather([recording(Path("a"))], "A", heard, active_only=True)
    assert windows.row[::2].tolist() == list(range(10)) and not windows.variation[::2].any()
    assert windows.row[1::2].tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 8, 9]
    assert windows.variation[1::2].tolist() == [1] * 8 + [0] * 2
    drawn = EpochSampler(windows, 10, (0.0, 1.0)).draw(np.random.default_rng(0))
    assert sorted(drawn.tolist()) == list(range(1, 20, 2))


def test_what_is_active_as_recorded_is_kept_in_every_variation() -> None:
    entries = (
        (Entry(0, (True, False, True)), Entry(3, (False, False))),
        (Entry(4, (False, True, True)), Entry(0, (True, False))),
    )
    heard = [Extracted(np.zeros((9, 1, 1)), entry) for entry in entries]
    windows = gather([recording(Path("a"))] * 2, "A", heard, active_only=True)
    assert windows.row.tolist() == [0, 4, 2, 6, 3, 0, 4, 1]
    assert windows.clips.tolist() == [0] * 4 + [1] * 4


def test_chunks_are_all_windows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = counted([3, 2, 5], variations=2)
    whole = windows.log_mels(np.arange(20)).astype(np.float32)
    for size in (1, 3, 20, 21):
        monkeypatch.setattr(data, "CHUNK", size)
        chunks = list(windows.chunks())
        assert all(0 < len(chunk) <= size and chunk.dtype == np.float32 for chunk in chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_an_index_of_a_hundred_thousand_clips_is_gathered_quickly() -> None:
    started = time.process_time()
    assert len(counted([1, 2] * 50_000, variations=3)) == 450_000
    assert time.process_time() - started < 4


# Normalisation


def reference(log_mels: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel, (2, 3), all at once in float64."""
    values = stack_deltas(log_mels.astype(np.float32)).astype(np.float64).reshape(-1, 3)
    return np.array([values.mean(axis=0), values.std(axis=0)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_normalisation_is_mean_and_deviation_of_each_channel(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: str
) -> None:
    monkeypatch.setattr(data, "CHUNK", chunk)
    # A mean far from 0 costs a difference of squares the most digits.
    log_mels = rng.normal(-300, 2, (11, 16, 20)).astype(dtype)
    found = InputNormalization.measure(made(log_mels, [0] * 11, dtype), 3)
    expected = reference(log_mels)
    np.testing.assert_allclose([found.mean, found.std], expected, rtol=1e-6, atol=1e-7)
    for value in (*found.mean, *found.std):
        assert float(np.float32(value)) == value
    one = InputNormalization.measure(made(log_mels, [0] * 11, dtype), 1)
    assert one == InputNormalization(found.mean[:1], found.std[:1])


def test_the_comparison_fails_on_one_nudged_value(rng: np.random.Generator) -> None:
    log_mels = rng.normal(-3, 2, (11, 16, 20)).astype(np.float32)
    found = InputNormalization.measure(made(log_mels, [0] * 11), 3)
    log_mels[5, 8, 10] += 0.1
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            [found.mean, found.std], reference(log_mels), rtol=1e-6, atol=1e-7
        )


def test_features_that_never_change_are_refused() -> None:
    with pytest.raises(InputError, match="silent"):
        InputNormalization.measure(made(np.full((4, 3, 5), -13.8), [0] * 4), 3)


def test_the_network_sees_normalised_features(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CHUNK", 4)
    log_mels = rng.normal(-3, 2, (11, 16, 20)).astype(np.float32)
    windows = made(log_mels, [0] * 11)
    for channels in (1, 3):
        normalization = InputNormalization.measure(windows, channels)
        inputs = np.concatenate(list(normalization.inputs(windows)))
        assert inputs.shape == (11, 16, 20, channels) and inputs.dtype == np.float32
        values = inputs.reshape(-1, channels).astype(np.float64)
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-6)
        sums = over_windows(windows, normalization, lambda x: x.sum(axis=(1, 2)))
        np.testing.assert_array_equal(sums, inputs.sum(axis=(1, 2)))


# Draws


def test_an_epoch_draws_so_many_windows_of_every_clip(rng: np.random.Generator) -> None:
    windows = counted([5, 2, 9], variations=3)
    sampler = EpochSampler(windows, 4, (0.5, 0.3, 0.2))
    for _ in range(50):
        drawn = sampler.draw(rng)
        assert len(drawn) == 12
        for clip, repeated in ((0, False), (1, True), (2, False)):
            own = drawn[windows.clips[drawn] == clip]
            assert len(own) == 4
            moments = windows.moments[own].tolist()
            assert (len(set(moments)) < 4) == repeated
            if repeated:
                assert sorted(map(moments.count, set(moments))) == [2, 2], "evenly"


def test_every_window_is_drawn_as_often_as_any_other(rng: np.random.Generator) -> None:
    sampler = EpochSampler(counted([5, 2]), 3, (1.0,))
    counts = np.zeros(7)
    for _ in range(2000):
        np.add.at(counts, sampler.draw(rng), 1)
    expected = 2000 * 3 / np.array([5] * 5 + [2] * 2)
    # Five standard deviations of a binomial draw.
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_variations_are_drawn_with_their_probabilities(rng: np.random.Generator) -> None:
    shares = (0.5, 0.3, 0.0, 0.2)
    windows = counted([4] * 50, variations=4)
    sampler = EpochSampler(windows, 3, shares)
    counts = np.zeros((2, 4))
    for _ in range(100):
        drawn = sampler.draw(rng)
        for half in (0, 1):
            own = drawn[(windows.clips[drawn] < 25) == half]
            np.add.at(counts[half], windows.variation[own], 1)
    expected = np.array([shares, shares]) * 100 * 25 * 3
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    assert not (np.abs(counts - expected[:, ::-1]) <= 5 * np.sqrt(expected)).all()


def test_shares_may_miss_0_by_a_rounding(rng: np.random.Generator) -> None:
    left = 1 - 0.9 - 0.1
    assert left < 0
    drawn = EpochSampler(counted([4] * 50, variations=3), 3, (left, 0.9, 0.1)).draw(rng)
    assert 0 not in counted([4] * 50, variations=3).variation[drawn]


def test_an_epoch_is_in_random_order_and_repeats_with_its_seed() -> None:
    sampler = EpochSampler(counted([6] * 20, variations=2), 3, (0.5, 0.5))
    draws = [sampler.draw(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    clips = np.sort(draws[0] // 12)
    assert not np.array_equal(draws[0] // 12, clips), "clips are mixed, too"


def test_a_hundred_thousand_clips_are_drawn_within_a_second(rng: np.random.Generator) -> None:
    windows = counted([1, 2] * 50_000, variations=2)
    sampler = EpochSampler(windows, 3, (0.5, 0.5))
    started = time.process_time()
    drawn = sampler.draw(rng)
    assert time.process_time() - started < 1
    assert len(drawn) == 300_000
    assert (np.bincount(windows.clips[drawn]) == 3).all()
    assert math.isclose(windows.variation[drawn].mean(), 0.5, abs_tol=0.01)
