"""Pitch shift, by the frequencies that come out and against a sum worked out in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.trees import RATE_HZ, SECOND, noise
from train.pitch_shift import pitch_shift

SEMITONES = (-12.0, -4.0, -2.0, -0.5, 0.5, 1.0, 2.0, 4.0, 7.0, 12.0)


def sine(hz: float, count: int = SECOND) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(count) / RATE_HZ)).astype(np.float32)


def peak_hz(samples: np.ndarray) -> float:
    """Frequency of the strongest sine, to a tenth of a hertz."""
    size = 2**19
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), size))
    return float(spectrum.argmax()) * RATE_HZ / size


def resampled(samples: np.ndarray, factor: float, times: np.ndarray) -> np.ndarray:
    """Values at ``times * factor`` of a periodic, band-limited signal, from its Fourier series."""
    spectrum = np.fft.rfft(samples.astype(np.float64)) / len(samples)
    strong = np.flatnonzero(np.abs(spectrum) > 1e-9)
    phases = 2j * np.pi * np.outer(times * factor, strong) / len(samples)
    return 2 * (np.exp(phases) @ spectrum[strong]).real


@pytest.mark.parametrize("hz", [110.0, 1000.0, 7040.0])
@pytest.mark.parametrize("semitones", SEMITONES)
def test_a_sine_comes_out_at_the_shifted_frequency(semitones: float, hz: float) -> None:
    shifted = pitch_shift(sine(hz), semitones, RATE_HZ)
    factor = 2 ** (semitones / 12)
    first_pass = shifted[: int(SECOND / max(factor, 1))]
    assert abs(peak_hz(first_pass) - hz * factor) < 0.2
    assert abs(peak_hz(first_pass) - hz * 2 ** ((semitones + 0.1) / 12)) > 0.2, "0.1 is seen"
    middle = slice(len(first_pass) // 4, len(first_pass) // 2)
    assert np.abs(first_pass[middle]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("semitones", SEMITONES)
def test_it_is_the_sound_at_another_speed(semitones: float) -> None:
    """A chord of whole periods, read at other times; away from the ends of the recording."""
    chord = sum((sine(hz) for hz in (100.0, 441.0, 2000.0, 5000.0)), np.zeros(SECOND, np.float32))
    factor = 2 ** (semitones / 12)
    times = np.arange(2000, int(SECOND / max(factor, 1)) - 2000, 37)
    expected = resampled(chord, factor, times)
    shifted = pitch_shift(chord, semitones, RATE_HZ)
    np.testing.assert_allclose(shifted[times], expected, rtol=0, atol=2e-4)
    shifted[times[100]] += np.float32(1e-3)
    assert np.abs(shifted[times] - expected).max() > 5e-4, "one nudged value is seen"


@pytest.mark.parametrize("semitones", SEMITONES)
@pytest.mark.parametrize("count", [1, 2, 3, 10, 1023, SECOND, 2 * SECOND + 7])
def test_the_length_is_kept(count: int, semitones: float) -> None:
    samples = np.resize(noise(0), count)
    shifted = pitch_shift(samples, semitones, RATE_HZ)
    assert shifted.shape == (count,) and shifted.dtype == np.float32
    assert np.isfinite(shifted).all() and shifted.flags.c_contiguous


def test_what_is_missing_at_the_end_starts_again() -> None:
    shifted = pitch_shift(noise(0), 4, RATE_HZ)
    length = round(SECOND / 2 ** (4 / 12))
    np.testing.assert_array_equal(shifted[length:], shifted[: SECOND - length])


def test_no_semitones_change_nothing() -> None:
    np.testing.assert_array_equal(pitch_shift(noise(0), 0, RATE_HZ), noise(0))


def test_up_and_down_again_is_the_sound() -> None:
    chord = sine(300.0) + sine(1234.0)
    again = pitch_shift(pitch_shift(chord, -3, RATE_HZ), 3, RATE_HZ)
    middle = slice(2000, SECOND // 2)
    np.testing.assert_allclose(again[middle], chord[middle], rtol=0, atol=2e-4)


def test_frequencies_beyond_half_the_rate_do_not_fold_back() -> None:
    shifted = pitch_shift(sine(20_000.0), 4, RATE_HZ)
    assert np.abs(shifted[2000:30_000]).max() < 1e-3
