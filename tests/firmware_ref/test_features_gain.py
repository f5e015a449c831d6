"""Features of a corrected spectrum: every bin's magnitude times a gain, against librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest

from firmware_ref.features import FeatureDefinition, log_mel

DEFINITION = FeatureDefinition()
RATE = DEFINITION.sample_rate_hz
BINS = DEFINITION.window_samples // 2 + 1
# As in test_features.py: one step of a float32 between 8 and 16, and as much again.
LOG_TOLERANCE = 2e-6


def librosa_log_mel(samples: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The definition as librosa computes it, of a spectrum multiplied bin by bin."""
    # In double precision, as the device's definition is.
    spectrum = librosa.stft(
        samples.astype(np.float64),
        n_fft=2048,
        hop_length=1024,
        window="hamming",
        center=True,
        pad_mode="constant",
        dtype=np.complex128,
    )
    corrected = np.abs(spectrum) * gain[:, None]
    filters = librosa.filters.mel(sr=RATE, n_fft=2048, n_mels=128, fmax=22_050, htk=True, norm=None)
    return np.log(filters @ corrected**2 + 1e-6)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    return float(np.abs(ours - theirs).max())


@pytest.fixture
def samples(rng: np.random.Generator) -> np.ndarray:
    return (0.1 * rng.standard_normal(RATE)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gains_equal_librosa(samples: np.ndarray, rng: np.random.Generator, dtype: type) -> None:
    gain = np.exp(rng.uniform(-3, 3, BINS)).astype(dtype)
    ours = log_mel(samples, DEFINITION, gain)
    assert distance(ours, librosa_log_mel(samples, gain)) <= LOG_TOLERANCE
    gain[300] *= dtype(1.01)
    assert distance(ours, librosa_log_mel(samples, gain)) > LOG_TOLERANCE, "one nudged value"


def test_a_gain_of_one_changes_no_bit(samples: np.ndarray) -> None:
    np.testing.assert_array_equal(
        log_mel(samples, DEFINITION, np.ones(BINS)), log_mel(samples, DEFINITION)
    )


def test_a_gain_is_one_of_magnitude(samples: np.ndarray) -> None:
    """Twice the magnitude of every bin is twice the samples: 6 dB, not 3."""
    louder = log_mel(samples, DEFINITION, np.full(BINS, 2.0))
    assert distance(louder, log_mel(2 * samples, DEFINITION)) <= LOG_TOLERANCE


def test_gains_of_a_batch_equal_those_of_its_clips(rng: np.random.Generator) -> None:
    batch = (0.1 * rng.standard_normal((2, 3, 5000))).astype(np.float32)
    gain = np.linspace(0.1, 4, BINS)
    together = log_mel(batch, DEFINITION, gain)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], log_mel(batch[index], DEFINITION, gain))


def test_the_filters_stay_as_they_are(samples: np.ndarray) -> None:
    before = log_mel(samples, DEFINITION)
    log_mel(samples, DEFINITION, np.full(BINS, 9.0))
    np.testing.assert_array_equal(log_mel(samples, DEFINITION), before)
