"""The features against librosa, against hand-worked values, and against themselves in batches."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest

from firmware_ref.audio import read_audio
from firmware_ref.errors import InputError
from firmware_ref.features import (
    CHUNK_FRAMES,
    FeatureDefinition,
    delta,
    features,
    hamming_window,
    log_mel,
    mel_filterbank,
    stack_deltas,
)

DEFINITION = FeatureDefinition()
RATE = DEFINITION.sample_rate_hz
# In units of the natural logarithm of energy. A float32 between 8 and 16 has steps of 9.5e-7, and
# one step is the most that was seen between the two, on made signals and on recordings.
LOG_TOLERANCE = 2e-6


def librosa_log_mel(samples: np.ndarray, floor: float = 1e-6, **nudge: Any) -> np.ndarray:
    """The definition as librosa computes it; ``nudge`` overrides one of its arguments."""
    settings: dict[str, Any] = {
        "sr": RATE,
        "n_fft": 2048,
        "hop_length": 1024,
        "window": "hamming",
        "center": True,
        "pad_mode": "constant",
        "power": 2.0,
        "n_mels": 128,
        "fmin": 0.0,
        "fmax": 22_050.0,
        "htk": True,
        "norm": None,
    }
    mel = librosa.feature.melspectrogram(y=samples, **{**settings, **nudge})
    return np.log(mel + np.float32(floor))


def librosa_features(samples: np.ndarray, **nudge: Any) -> np.ndarray:
    energies = librosa_log_mel(samples, **nudge)
    first = librosa.feature.delta(energies, width=5, order=1, mode="nearest")
    second = librosa.feature.delta(first, width=5, order=1, mode="nearest")
    return np.stack([energies, first, second], axis=-1)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs).max())


def signals() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    t = np.arange(RATE) / RATE
    impulse = np.zeros(RATE)
    impulse[RATE // 3] = 1.0
    made = {
        "silence": np.zeros(RATE),
        "noise": 0.1 * rng.standard_normal(RATE),
        "quiet noise": 1e-4 * rng.standard_normal(RATE),
        "full-scale sine": np.sin(2 * np.pi * 1000 * t),
        "sweep": 0.5 * librosa.chirp(fmin=20, fmax=20_000, sr=RATE, length=RATE),
        "full-scale square": np.sign(np.sin(2 * np.pi * 440 * t)),
        "impulse": impulse,
        "constant": np.full(RATE, 0.25),
        "least bit": rng.integers(-1, 2, RATE) / 32768,
        "short": 0.1 * rng.standard_normal(2100),
        "odd length": 0.1 * rng.standard_normal(30_011),
    }
    return {name: signal.astype(np.float32) for name, signal in made.items()}


def recordings(audio_data: Path) -> list[Path]:
    """One recording of every class in every fold."""
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    first = {(row["label"], row["fold"]): row["filename"] for row in reversed(rows)}
    return [audio_data / "esc10" / name for name in sorted(first.values())]


# The definition


def test_the_definition_is_one_second_of_128_bands_and_44_frames() -> None:
    assert (DEFINITION.sample_rate_hz, DEFINITION.clip_samples) == (44_100, 44_100)
    assert (DEFINITION.mel_bands, DEFINITION.frames) == (128, 44)
    assert features(np.zeros(44_100, np.float32), DEFINITION).shape == (128, 44, 3)


def test_the_dictionary_round_trips() -> None:
    assert FeatureDefinition.from_dict(DEFINITION.to_dict()) == DEFINITION


@pytest.mark.parametrize("key", list(DEFINITION.to_dict()))
def test_a_nudged_or_missing_value_is_refused_by_name(key: str) -> None:
    values = DEFINITION.to_dict()
    for wrong in (values[key] + 1, -values[key] - 1, float("nan"), None, "1", [1]):
        with pytest.raises(InputError, match=key):
            FeatureDefinition.from_dict({**values, key: wrong})
    del values[key]
    with pytest.raises(InputError, match=key):
        FeatureDefinition.from_dict(values)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="preemphasis"):
        FeatureDefinition.from_dict({**DEFINITION.to_dict(), "preemphasis": 0.97})
    with pytest.raises(InputError, match="preemphasis"):
        FeatureDefinition.from_dict({**DEFINITION.to_dict(), "preemphasis": None})


@pytest.mark.parametrize("values", [None, [1], "features", 3])
def test_anything_but_a_table_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="not a table"):
        FeatureDefinition.from_dict(values)


def test_the_floor_lies_among_the_quantisation_noise_of_16_bit_pcm() -> None:
    noise_per_bin = 2.0**-30 / 12 * np.square(hamming_window(2048)).sum()
    per_band = noise_per_bin * mel_filterbank(DEFINITION).sum(axis=1, dtype=np.float64)
    assert per_band.min() < DEFINITION.log_floor < per_band.max()


# Window and filterbank


def test_the_window_is_the_periodic_hamming_window() -> None:
    ours = hamming_window(2048)
    np.testing.assert_allclose(
        ours, librosa.filters.get_window("hamming", 2048), rtol=0, atol=1e-15
    )
    symmetric = librosa.filters.get_window("hamming", 2048, fftbins=False)
    assert np.abs(ours - symmetric).max() > 1e-4


def test_the_filterbank_is_librosas_and_read_only() -> None:
    ours = mel_filterbank(DEFINITION)
    theirs = librosa.filters.mel(sr=RATE, n_fft=2048, n_mels=128, htk=True, norm=None)
    assert ours.shape == (128, 1025) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
    assert ours.any(axis=1).all(), "a band without a bin hears nothing"
    with pytest.raises(ValueError, match="read-only"):
        ours[0, 0] = 1


# Log-mel energies


@pytest.mark.parametrize("name", list(signals()))
def test_a_made_signal_equals_librosa(name: str) -> None:
    samples = signals()[name]
    assert distance(features(samples, DEFINITION), librosa_features(samples)) <= LOG_TOLERANCE


def test_recordings_equal_librosa(audio_data: Path) -> None:
    paths = recordings(audio_data)
    assert len(paths) == 50
    for path in paths:
        samples = read_audio(path, RATE)
        apart = distance(features(samples, DEFINITION), librosa_features(samples))
        assert apart <= LOG_TOLERANCE, f"{path.name}: {apart}"


@pytest.mark.parametrize(
    "nudge",
    [
        {"window": librosa.filters.get_window("hamming", 2048, fftbins=False)},
        {"window": "hann"},
        {"htk": False},
        {"norm": "slaney"},
        {"power": 1.0},
        {"pad_mode": "reflect"},
        {"fmax": 22_000.0},
        {"fmin": 20.0},
        {"floor": 1.1e-6},
    ],
    ids=lambda nudge: next(iter(nudge)),
)
def test_the_comparison_fails_on_another_definition(nudge: dict[str, Any]) -> None:
    samples = signals()["noise"] * np.float32(0.01)
    ours = features(samples, DEFINITION)
    assert distance(ours, librosa_features(samples, **nudge)) > 10 * LOG_TOLERANCE


def test_the_comparison_fails_on_one_nudged_value() -> None:
    samples = signals()["noise"]
    theirs = librosa_features(samples)
    theirs[77, 21, 1] += 2 * LOG_TOLERANCE
    assert distance(features(samples, DEFINITION), theirs) > LOG_TOLERANCE


def test_silence_is_the_logarithm_of_the_floor() -> None:
    found = features(np.zeros(RATE, np.float32), DEFINITION)
    assert (found[..., 0] == np.float32(np.log(1e-6))).all()
    assert not found[..., 1:].any()


def test_an_impulse_has_the_flat_spectrum_worked_by_hand() -> None:
    # At sample 10 * 1024 the impulse is in the middle of frame 10, where the window is 1, and the
    # first sample of frame 11, where it is 0.08; frame 9 ends just before it.
    samples = np.zeros(RATE, np.float32)
    samples[10 * 1024] = 0.5
    area = mel_filterbank(DEFINITION).sum(axis=1, dtype=np.float64)
    found = log_mel(samples, DEFINITION)
    for frame, power in ((9, 0.0), (10, 0.5**2), (11, (0.5 * 0.08) ** 2), (12, 0.0)):
        np.testing.assert_allclose(
            found[:, frame], np.log(power * area + 1e-6), rtol=0, atol=LOG_TOLERANCE
        )


@pytest.mark.parametrize("count", [1, 2, 1023, 1024, 1025, 2047, 44_099, 44_100])
def test_any_number_of_samples_gives_a_frame_a_hop(count: int, rng: np.random.Generator) -> None:
    samples = rng.standard_normal(count).astype(np.float32)
    found = log_mel(samples, DEFINITION)
    assert found.shape == (128, 1 + count // 1024) and found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_batch_equals_its_clips_one_by_one_to_the_bit(rng: np.random.Generator) -> None:
    batch = (0.1 * rng.standard_normal((2, 3, 20_000))).astype(np.float32)
    together = features(batch, DEFINITION)
    assert together.shape == (2, 3, 128, 20, 3) and together.dtype == np.float32
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], features(batch[index], DEFINITION))
    nudged = batch.copy()
    nudged[1, 2, 10_000] += np.float32(0.01)
    assert not np.array_equal(together, features(nudged, DEFINITION))


def test_an_empty_batch_gives_no_features() -> None:
    assert features(np.zeros((0, RATE), np.float32), DEFINITION).shape == (0, 128, 44, 3)


def test_a_long_recording_has_no_seams(rng: np.random.Generator) -> None:
    hop, margin = DEFINITION.hop_samples, 8
    long = (0.1 * rng.standard_normal((CHUNK_FRAMES + margin) * hop)).astype(np.float32)
    start = CHUNK_FRAMES - margin
    seam = log_mel(long, DEFINITION)[:, start + 2 : start + 2 * margin - 1]
    alone = log_mel(long[start * hop :], DEFINITION)[:, 2 : 2 * margin - 1]
    assert distance(seam, alone) <= LOG_TOLERANCE


# Deltas


def test_a_delta_worked_by_hand() -> None:
    squares = np.array([0, 1, 4, 9, 16, 25], np.float32)
    # (x[t+1] - x[t-1]) / 10 + (x[t+2] - x[t-2]) / 5 of 0 0 | 0 1 4 9 16 25 | 25 25:
    worked = [0.1 + 0.8, 0.4 + 1.8, 4.0, 6.0, 1.6 + 4.2, 0.9 + 3.2]
    np.testing.assert_allclose(delta(squares), worked, rtol=1e-6)


def test_the_delta_of_a_ramp_is_its_slope_away_from_the_edges() -> None:
    ramp = np.arange(44, dtype=np.float32) * np.float32(0.5)
    np.testing.assert_allclose(delta(ramp)[2:-2], 0.5, rtol=1e-6)
    assert delta(ramp).shape == (44,)


@pytest.mark.parametrize("frames", [1, 2, 5, 44])
def test_deltas_equal_librosa(frames: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((128, frames)).astype(np.float32)
    theirs = librosa.feature.delta(x, width=5, order=1, mode="nearest")
    assert distance(delta(x), theirs) <= 1e-6


def test_only_the_edges_differ_from_librosas_default(rng: np.random.Generator) -> None:
    x = rng.standard_normal((128, 44)).astype(np.float32)
    theirs = librosa.feature.delta(x, width=5, order=1)
    assert distance(delta(x)[:, 2:-2], theirs[:, 2:-2]) <= 1e-6
    assert distance(delta(x)[:, :2], theirs[:, :2]) > 1e-3


def test_the_channels_are_log_mel_delta_and_delta_of_the_delta(rng: np.random.Generator) -> None:
    samples = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
    energies = log_mel(samples, DEFINITION)
    found = features(samples, DEFINITION)
    np.testing.assert_array_equal(found, stack_deltas(energies))
    np.testing.assert_array_equal(found[..., 0], energies)
    np.testing.assert_array_equal(found[..., 1], delta(energies))
    np.testing.assert_array_equal(found[..., 2], delta(delta(energies)))


def test_ten_seconds_cropped_are_128_by_423_by_3(rng: np.random.Generator) -> None:
    samples = (0.1 * rng.standard_normal(10 * RATE)).astype(np.float32)
    whole = features(samples, DEFINITION)
    cropped = features(samples, DEFINITION, crop_deltas=True)
    assert whole.shape == (128, 431, 3) and cropped.shape == (128, 423, 3)
    np.testing.assert_array_equal(cropped, whole[:, 4:-4])
    assert distance(cropped, _without_padding(whole[..., 0])) <= 1e-6


def _without_padding(energies: np.ndarray) -> np.ndarray:
    """Deltas of the frames that need no padding, as a convolution in float64."""
    kernel = np.array([0.2, 0.1, 0.0, -0.1, -0.2])
    first = np.stack([np.convolve(band, kernel, "valid") for band in energies.astype(np.float64)])
    second = np.stack([np.convolve(band, kernel, "valid") for band in first])
    return np.stack([energies[:, 4:-4], first[:, 2:-2], second], axis=-1)


def test_a_clip_too_short_to_crop_is_refused() -> None:
    assert features(np.zeros(8 * 1024, np.float32), DEFINITION, True).shape == (128, 1, 3)
    with pytest.raises(InputError, match="8 frames"):
        features(np.zeros(8 * 1024 - 1, np.float32), DEFINITION, True)
