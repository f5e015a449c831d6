"""The feature definition: log-mel energies of one second of sound, with two deltas.

Section 4.1.1 of Cao et al., DCASE 2022 task 1 report: 44.1 kHz mono, Hamming windows of 2048
samples with 50 % overlap, power spectrum, 128 mel bands, delta and delta-delta as channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from firmware_ref.errors import InputError

DELTA_REACH_FRAMES = 2
CHUNK_FRAMES = 4096
MEL_BLOCK = 8


@dataclass(frozen=True)
class FeatureDefinition:
    """Every constant of the features.

    ``log_floor`` is added to each mel energy before the natural logarithm (samples in [-1, 1]);
    the quantisation noise of 16-bit PCM lies about there, so nothing audible is lost below it.
    """

    sample_rate_hz: int = 44_100
    clip_samples: int = 44_100
    window_samples: int = 2_048
    hop_samples: int = 1_024
    mel_bands: int = 128
    low_hz: float = 0.0
    high_hz: float = 22_050.0
    log_floor: float = 1e-6

    @property
    def frames(self) -> int:
        """Frames of one clip: centred windows, one a hop, the first at sample 0."""
        return 1 + self.clip_samples // self.hop_samples

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureDefinition:
        """The definition those values describe; any but the supported one is refused."""
        if not isinstance(values, Mapping):
            raise InputError(f"feature definition: {values!r} is not a table; give keys and values")
        supported = cls()
        own = supported.to_dict()
        odd = sorted({*own} ^ {*values} or {k for k in own if own[k] != values[k]})
        if odd:
            raise InputError(
                f"feature definition: {odd[0]}={values.get(odd[0])!r} is not supported; "
                f"allowed: {own.get(odd[0], 'absent')!r}"
            )
        return supported


def hamming_window(samples: int) -> np.ndarray:
    """Periodic Hamming window, (samples,) float64: ``0.54 - 0.46 cos(2 pi n / samples)``."""
    return 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(samples) / samples)


@lru_cache(maxsize=4)
def mel_filterbank(definition: FeatureDefinition) -> np.ndarray:
    """Triangular filters of peak 1, (mel_bands, window_samples / 2 + 1) float32, read-only.

    Corners are equally spaced on the HTK mel scale, ``2595 log10(1 + f / 700)`` (Young et al.,
    The HTK Book); equal to ``librosa.filters.mel(htk=True, norm=None)``.
    """
    low, high = (2595.0 * np.log10(1 + f / 700) for f in (definition.low_hz, definition.high_hz))
    mels = np.linspace(low, high, definition.mel_bands + 2)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = np.linspace(0, definition.sample_rate_hz / 2, definition.window_samples // 2 + 1)
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters.setflags(write=False)
    return filters


@lru_cache(maxsize=4)
def _mel_blocks(
    definition: FeatureDefinition, dtype: np.dtype[Any]
) -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """The filters, `MEL_BLOCK` bands at a time: bands, the bins they cover, (bins, bands).

    A filter covers few bins: most of the whole matrix is zeros.
    """
    blocks = []
    for start in range(0, definition.mel_bands, MEL_BLOCK):
        bands = slice(start, start + MEL_BLOCK)
        filters = mel_filterbank(definition)[bands].T.astype(dtype)
        covered = np.flatnonzero(filters.any(axis=1))
        bins = slice(covered[0], covered[-1] + 1)
        blocks.append((bands, bins, np.ascontiguousarray(filters[bins])))
    return tuple(blocks)


def log_mel(
    samples: np.ndarray,
    definition: FeatureDefinition,
    gain: np.ndarray | None = None,
    dtype: DTypeLike = np.float64,
    rfft: Callable[[np.ndarray], np.ndarray] = np.fft.rfft,
) -> np.ndarray:
    """Natural log of mel energies: (..., n) samples to (..., mel_bands, frames) float32.

    Windows are centred on multiples of the hop, with zeros beyond both ends; n of at least one
    sample gives ``1 + n // hop_samples`` frames. Samples are float, nominally in [-1, 1].
    ``gain`` (window_samples / 2 + 1,) multiplies the magnitude of every bin, where given.

    The definition is in double precision. Where its last bits are of no use, ``dtype`` float32
    with an ``rfft`` along the last axis that keeps it (NumPy's is no faster so) takes half the
    time, and is within 0.005 of it (tests/firmware_ref/test_features_single.py).
    """
    samples = np.asarray(samples, np.float32)
    lead, count = samples.shape[:-1], samples.shape[-1]
    half = definition.window_samples // 2
    padded = np.pad(samples.reshape(-1, count), ((0, 0), (half, half)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, definition.window_samples, axis=1)
    frames = frames[:, :: definition.hop_samples]  # (N, frames, window)
    window = hamming_window(definition.window_samples).astype(dtype)
    blocks = _mel_blocks(definition, np.dtype(dtype))
    out = np.empty((len(padded), definition.mel_bands, frames.shape[1]), np.float32)
    # One transform a clip keeps memory bounded, and a batch equal to its clips one by one.
    for clip, result in zip(frames, out, strict=True):
        for start in range(0, len(clip), CHUNK_FRAMES):
            part = slice(start, start + CHUNK_FRAMES)
            spectrum = rfft(clip[part] * window)
            power = spectrum.real**2 + spectrum.imag**2
            if gain is not None:
                power *= np.square(gain, dtype=dtype)
            energies = np.empty((len(power), definition.mel_bands), dtype)
            for bands, bins, filters in blocks:
                energies[:, bands] = power[:, bins] @ filters
            energies += definition.log_floor
            result[:, part] = np.log(energies, out=energies).T
    return out.reshape(*lead, *out.shape[1:])


def delta(x: np.ndarray) -> np.ndarray:
    """Five-point regression along the last axis, (..., frames) to (..., frames) float32.

    ``(x[t+1] - x[t-1]) / 10 + (x[t+2] - x[t-2]) / 5``; the first and last frame repeat beyond
    the edges. Equal to ``librosa.feature.delta(x, width=5, mode="nearest")``.
    """
    x = np.asarray(x, np.float32)
    reach = DELTA_REACH_FRAMES
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)], mode="edge")
    n = x.shape[-1]
    near = padded[..., 3 : 3 + n] - padded[..., 1 : 1 + n]
    far = padded[..., 4 : 4 + n] - padded[..., 0:n]
    return near * np.float32(0.1) + far * np.float32(0.2)


def stack_deltas(log_mels: np.ndarray) -> np.ndarray:
    """(..., mel_bands, frames) log-mel to (..., mel_bands, frames, 3) with both deltas."""
    first = delta(log_mels)
    return np.stack([log_mels, first, delta(first)], axis=-1)


def features(
    samples: np.ndarray, definition: FeatureDefinition, crop_deltas: bool = False
) -> np.ndarray:
    """(..., n) samples to (..., mel_bands, frames, 3) float32: log-mel, delta, delta-delta.

    With ``crop_deltas`` the frames whose deltas reach beyond the clip are cut, two at each end
    for each delta: ten seconds give the report's 128 x 423 x 3.
    """
    stacked = stack_deltas(log_mel(samples, definition))
    if not crop_deltas:
        return stacked
    reach = 2 * DELTA_REACH_FRAMES
    if stacked.shape[-2] <= 2 * reach:
        raise InputError(
            f"{stacked.shape[-2]} frames are too few to crop {2 * reach}; give a longer clip"
        )
    return stacked[..., reach:-reach, :]
