"""Extraction: the windows are those of the device, in one process or many."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_ref.audio import read_audio
from firmware_ref.features import log_mel
from firmware_ref.fixed_frontend import pcm16
from tests.train.extracting import before_each, extracted, rows, same
from tests.train.trees import (
    DEFINITION,
    RATE_HZ,
    SECOND,
    device_log_mel,
    noise,
    noise_recordings,
    recording,
    tau2022,
    wav,
)
from train import extract as extraction
from train.datasets import load_dataset
from train.extract import Cut, in_parallel
from train.pitch_shift import pitch_shift

WINDOW_BYTES = 128 * 44 * 2
TRAIN = Cut(SECOND // 4, "float16")
# The most that single precision is away from the definition, on noise.
SINGLE = 1e-5


def test_windows_are_what_the_device_computes(tmp_path: Path) -> None:
    samples = noise(0, 2.6)
    samples[SECOND : 2 * SECOND] = 0  # silence counts, too
    clips = [recording(wav(tmp_path / f"{n}.wav", s)) for n, s in enumerate((samples, noise(1)))]
    found = extracted(clips, tmp_path / "cache")
    assert found.log_mels.shape == (4, 128, 44) and found.log_mels.dtype == np.float32
    assert [entry.active for entry in found.entries] == [(True, False, True), (True,)]
    padded = np.pad(samples, (0, 3 * SECOND - len(samples))).reshape(3, SECOND)
    whole = np.concatenate([padded, noise(1)[None]])
    np.testing.assert_array_equal(found.log_mels, device_log_mel(whole))
    np.testing.assert_allclose(found.log_mels, log_mel(whole, DEFINITION), rtol=0, atol=1e-4)
    padded[2, 1000] += 2.0**-15
    assert not np.array_equal(rows(found, 0), device_log_mel(padded))


def test_training_windows_start_every_hop_in_half_precision(tmp_path: Path) -> None:
    samples = np.zeros(4 * SECOND, np.float32)
    samples[SECOND : SECOND + 100] = noise(3)[:100]
    found = extracted([recording(wav(tmp_path / "a.wav", samples))], tmp_path / "cache", TRAIN)
    starts = range(0, 3 * SECOND + 1, SECOND // 4)
    exact = log_mel(np.stack([samples[s : s + SECOND] for s in starts]), DEFINITION)
    assert found.log_mels.dtype == np.float16 and found.log_mels.shape == exact.shape
    # Round to nearest of 11 significant bits, and the error of single precision.
    error = np.abs(found.log_mels.astype(np.float64) - exact)
    assert (error <= 2.0**-11 * np.abs(exact) + SINGLE).all() and error.any()
    # The second at 0 ends before the burst at 1 s, that at 1 1/4 s begins after it.
    assert [bool(flag) for flag in found.entries[0].active] == [0 < n < 5 for n in range(13)]


def test_a_long_recording_is_computed_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen minutes of overlapping windows would take 600 MB and more at once."""
    clips = [recording(wav(tmp_path / "a.wav", noise(5, 4.1)))]
    sizes: list[int] = []

    def counted(parts: np.ndarray) -> np.ndarray:
        sizes.append(len(parts))
        return pcm16(parts)

    whole = extracted(clips, tmp_path / "whole", Cut(SECOND // 4))
    monkeypatch.setattr(extraction, "WINDOWS_AT_ONCE", 5)
    monkeypatch.setattr(extraction.fixed_frontend, "pcm16", counted)
    parts = extracted(clips, tmp_path / "parts", Cut(SECOND // 4))
    assert sizes == [5, 5, 3]
    np.testing.assert_array_equal(whole.log_mels, parts.log_mels)
    assert whole.entries[0].active == parts.entries[0].active and len(parts.log_mels) == 13


def test_only_log_mel_is_kept_of_training_windows(tmp_path: Path) -> None:
    """The official training set and its test set, 64 hours, take less than 3 GB."""
    clips = load_dataset("tau2022", tau2022(tmp_path / "tau", audio=True)).recordings
    found = extracted(clips, tmp_path / "cache", TRAIN)
    assert len(found.log_mels) == 10
    (data,) = (tmp_path / "cache").glob("*/data.bin")
    assert data.stat().st_size == 10 * WINDOW_BYTES
    assert 64 * 3600 * WINDOW_BYTES < 3e9
    for number, clip in enumerate(clips):
        samples = read_audio(clip.path, RATE_HZ)[None]
        expected = log_mel(samples, DEFINITION)
        np.testing.assert_allclose(rows(found, number), expected, rtol=2.0**-11, atol=SINGLE)


def heard_log_mel(samples: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
    """Of two seconds, each in 16 bits."""
    return log_mel(pcm16(samples).reshape(2, -1) / 2**15, DEFINITION, gain)


def test_variations_change_the_sound_before_its_features(tmp_path: Path) -> None:
    clip = recording(wav(tmp_path / "a.wav", noise(0, 2)), device="S1")
    # An echo after 100 samples, of unit energy in all.
    echo = np.zeros(101)
    echo[[0, 100]] = 0.8, 0.6
    through = dataclasses.replace(clip, response=wav(tmp_path / "ir.wav", echo))
    samples = noise(0, 2).astype(np.float64)
    delayed = 0.8 * samples + 0.6 * np.pad(samples, (100, 0))[: len(samples)]
    gain = np.linspace(0.5, 2, 1025)
    shifted = pitch_shift(noise(0, 2), -2.0, RATE_HZ)
    for ours, expected in (
        (extracted([through], tmp_path / "c"), heard_log_mel(delayed)),
        (
            extracted([clip], tmp_path / "c", semitones=-2.0),
            heard_log_mel(shifted),
        ),
        (
            extracted([clip], tmp_path / "c", gains={"S1": gain, "A": gain[::-1]}),
            heard_log_mel(noise(0, 2), gain),
        ),
    ):
        np.testing.assert_allclose(rows(ours, 0), expected, rtol=0, atol=2e-3)
        assert np.abs(rows(ours, 0) - log_mel(samples.reshape(2, -1), DEFINITION)).mean() > 0.05


def test_in_parallel_the_bits_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    before_each(monkeypatch, lambda clip: computed.append(clip.name))
    clips = noise_recordings(tmp_path, 5)
    alone = extracted(clips, tmp_path / "a")
    assert len(computed) == 5
    monkeypatch.setattr(extraction, "LOT", 2)
    assert same(alone, extracted(clips, tmp_path / "b"))
    assert len(computed) == 5, "this time in other processes"
    nudged = wav(tmp_path / "4.wav", noise(4) * np.float32(1.001))
    assert not same(alone, extracted([*clips[:4], recording(nudged)], tmp_path / "b"))


def test_a_real_clip_gives_its_windows(audio_data: Path, tmp_path: Path) -> None:
    for name in ("esc10", "esc10-devices"):
        clip = load_dataset(name, audio_data).recordings[1]
        count = len(read_audio(clip.path, RATE_HZ)) / SECOND
        found = extracted([clip], tmp_path)
        assert found.entries[0].count == int(count) + (count % 1 >= 0.5)


def test_results_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(in_parallel(abs, [])) == []
    for lot in (1, 3, 7, 8):
        monkeypatch.setattr(extraction, "LOT", lot)
        assert list(in_parallel(abs, [-1, 2, -3, 4, -5, 6, -7])) == [1, 2, 3, 4, 5, 6, 7]


# joblib's own thread may meet a task in the moment in which it is dropped.
@pytest.mark.filterwarnings("ignore:Exception in thread ExecutorManagerThread")
def test_results_that_nobody_waits_for_are_dropped_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extraction, "LOT", 1)
    results = in_parallel(time.sleep, [0.0, *[0.2] * 20])
    assert next(results) is None
    results.close()


def test_a_process_that_is_killed_is_taken_for_lack_of_memory() -> None:
    die: Callable[[int], Any] = os._exit
    with pytest.raises(MemoryError):
        list(in_parallel(die, [9] * 3 * extraction.LOT))
