"""Test signals made by code: the corners of the input space, where no recording is at hand."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping

import numpy as np

from firmware_ref.features import FeatureDefinition


def signal_clips(definition: FeatureDefinition, seed: int = 0) -> Mapping[str, np.ndarray]:
    """One clip each, (clip_samples,) float32 in [-1, 1], by name.

    Silence, a constant, a full-scale square wave, impulses, a logarithmic sweep over the audible
    range, and white noise.
    """
    count, rate = definition.clip_samples, definition.sample_rate_hz
    seconds = np.arange(count) / rate
    impulses = np.zeros(count)
    impulses[:: rate // 10] = 1.0
    # Phase of a sweep from f0 to f1 in one second: 2 pi f0 (k^t - 1) / ln k, with k = f1 / f0.
    low_hz, high_hz = 50.0, 18_000.0
    ratio = high_hz / low_hz
    sweep = np.sin(2 * np.pi * low_hz * (ratio**seconds - 1) / np.log(ratio))
    signals = {
        "silence": np.zeros(count),
        "constant": np.full(count, 0.5),
        "full_scale": np.where(np.sin(2 * np.pi * 1000 * seconds) >= 0, 1.0, -1.0),
        "impulses": impulses,
        "sweep": 0.5 * sweep,
        "noise": 0.1 * np.random.default_rng(seed).standard_normal(count),
    }
    return {name: x.astype(np.float32) for name, x in signals.items()}


def as_wav(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """A mono 16-bit PCM WAV file of float samples, clipped to [-1, 1]."""
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate_hz)
        sound.writeframes(pcm.tobytes())
    return stream.getvalue()
