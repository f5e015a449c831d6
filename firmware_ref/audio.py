"""From a sound file to one-second windows of mono samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition

LONGEST_SECONDS = 3600
LARGEST_CHANNELS = 64
SAMPLE_RATES_HZ = (1_000, 768_000)
ACTIVE_DBFS = -60.0


def read_audio(path: str | Path, sample_rate_hz: int) -> np.ndarray:
    """Read any file soundfile reads as (n,) float32 mono samples at ``sample_rate_hz``.

    Channels are averaged, other rates resampled (soxr, high quality); samples are nominally in
    [-1, 1]. Raises `InputError` for a file that is missing, unreadable, empty, longer than an
    hour, or holds NaN or infinity.
    """
    soundfile, soxr = _libraries()
    what = f"audio {str(path)!r}"
    if not Path(path).is_file():
        raise InputError(f"{what} is not a file; give the path of a sound file")
    try:
        with soundfile.SoundFile(str(path)) as sound:
            rate, channels, frames = sound.samplerate, sound.channels, sound.frames
            _check_header(what, rate, channels, frames)
            # A damaged header may promise what the file does not hold: read, do not trust.
            samples = sound.read(rate * LONGEST_SECONDS if frames < 0 else frames, "float32", True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{what} cannot be read as sound: {error}; allowed are WAV, FLAC, OGG, MP3 and "
            "whatever else libsndfile reads"
        ) from None
    if not len(samples):
        raise InputError(f"{what} holds no samples; give a sound file of at least one sample")
    if not np.isfinite(samples).all():
        raise InputError(f"{what} holds NaN or infinite samples; export it again")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != sample_rate_hz:
        mono = soxr.resample(mono, rate, sample_rate_hz, quality="HQ")
        if not len(mono):
            raise InputError(f"{what} is too short to resample from {rate} Hz; give a longer one")
    return np.ascontiguousarray(mono, np.float32)


def _libraries() -> tuple[Any, Any]:
    """The optional packages that decode and resample."""
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise InputError(
            f"reading sound needs the package {error.name!r}; pip install 'tinyscene[audio]'"
        ) from None
    return soundfile, soxr


def _check_header(what: str, rate: int, channels: int, frames: int) -> None:
    low, high = SAMPLE_RATES_HZ
    if not low <= rate <= high:
        raise InputError(f"{what}: sample rate {rate} Hz; allowed are {low:,} to {high:,} Hz")
    if not 1 <= channels <= LARGEST_CHANNELS:
        raise InputError(f"{what}: {channels} channels; allowed are 1 to {LARGEST_CHANNELS}")
    if frames > rate * LONGEST_SECONDS:
        raise InputError(
            f"{what} lasts {frames / rate:,.0f} s; at most {LONGEST_SECONDS:,} s are accepted; "
            "cut it"
        )


def windows(
    samples: np.ndarray, definition: FeatureDefinition, hop_samples: int | None = None
) -> np.ndarray:
    """Cut (n,) samples into (N, clip_samples) windows that start every ``hop_samples``.

    The default hop is a whole window. A remainder of at least half a window is filled with
    zeros, a shorter one dropped; a clip shorter than a window is filled with zeros to one.
    """
    size = definition.clip_samples
    hop = size if hop_samples is None else hop_samples
    if hop < 1:
        raise InputError(f"hop_samples={hop} must be at least 1")
    whole = max(0, 1 + (len(samples) - size) // hop)
    rest = len(samples) - whole * hop
    if whole == 0 or (hop == size and rest >= size // 2):
        whole += 1
    needed = (whole - 1) * hop + size
    padded = np.pad(np.asarray(samples, np.float32), (0, max(0, needed - len(samples))))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:whole].copy()


def is_active(cut: np.ndarray, threshold_dbfs: float = ACTIVE_DBFS) -> np.ndarray:
    """Which windows, (N, n) to (N,) bool, are louder than padding, by RMS re full scale."""
    power = np.square(cut, dtype=np.float64).mean(axis=1)
    return np.asarray(power > 10 ** (threshold_dbfs / 10))
