"""Features in single precision, for training windows, beside the definition in double."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.fft

from firmware_ref.audio import read_audio
from firmware_ref.features import log_mel
from tests.firmware_ref.test_features import DEFINITION, RATE, recordings, signals

# Where bands of one signal are 110 dB apart; the half precision of training has steps of 8e-3.
TOLERANCE = 5e-3


def single(samples: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
    return log_mel(samples, DEFINITION, gain, np.float32, scipy.fft.rfft)


@pytest.mark.parametrize("name", list(signals()))
def test_made_signals_are_close_to_the_definition(name: str) -> None:
    samples = signals()[name]
    np.testing.assert_allclose(
        single(samples), log_mel(samples, DEFINITION), rtol=0, atol=TOLERANCE
    )


def test_recordings_are_close_to_the_definition(audio_data: Path) -> None:
    for path in recordings(audio_data)[::5]:
        samples = read_audio(path, RATE)
        found, exact = single(samples), log_mel(samples, DEFINITION)
        assert found.dtype == np.float32 and not np.array_equal(found, exact)
        np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE)


def test_a_gain_is_close_too(rng: np.random.Generator) -> None:
    samples = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
    gain = np.exp(rng.uniform(-3, 3, DEFINITION.window_samples // 2 + 1))
    exact = log_mel(samples, DEFINITION, gain)
    np.testing.assert_allclose(single(samples, gain), exact, rtol=0, atol=TOLERANCE)
    gain[300] += 1.0
    assert np.abs(single(samples, gain) - exact).max() > TOLERANCE, "one nudged value"
