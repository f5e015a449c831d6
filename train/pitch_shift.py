"""Pitch shift by resampling: every frequency, and the speed, changes by one factor."""

from __future__ import annotations

import numpy as np
import soxr

SEMITONES_PER_OCTAVE = 12


def speed(semitones: float) -> float:
    """How much faster than recorded a sound plays that is ``semitones`` higher."""
    return float(2 ** (semitones / SEMITONES_PER_OCTAVE))


def pitch_shift(samples: np.ndarray, semitones: float, sample_rate_hz: int) -> np.ndarray:
    """(n,) float32 samples at a pitch ``semitones`` higher, (n,) float32.

    The samples are resampled as if recorded at ``2^(semitones / 12)`` times their rate (section 2.3
    of the report), so a higher pitch makes them shorter: what is missing at the end is filled by
    starting again, what is too long is cut.
    """
    rate = sample_rate_hz * speed(semitones)
    shifted = soxr.resample(samples, rate, sample_rate_hz, quality="HQ")
    return np.ascontiguousarray(np.resize(shifted, len(samples)), np.float32)
