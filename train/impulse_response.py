"""Sounds as a microphone hears them: convolution with its impulse response."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import signal

from firmware_ref.audio import read_audio
from firmware_ref.errors import InputError


def read_response(path: Path, sample_rate_hz: int) -> np.ndarray:
    """An impulse response as (n,) float32 of unit energy at ``sample_rate_hz``.

    Unit energy keeps the level of white noise: microphones differ in colour here, not in gain.
    Raises `InputError` for a silent one, and as `read_audio` does.
    """
    samples = read_audio(path, sample_rate_hz)
    energy = float(np.sqrt(np.square(samples, dtype=np.float64).sum()))
    if energy == 0:
        raise InputError(f"impulse response {str(path)!r} is silent; restore the file")
    return (samples / energy).astype(np.float32)


def heard_through(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """(n,) float32 samples convolved with an impulse response, (n,) float32: its tail is cut."""
    return signal.oaconvolve(samples, response)[: len(samples)].astype(np.float32)
