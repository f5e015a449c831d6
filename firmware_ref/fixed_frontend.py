"""The front end in integers: int16 samples to the INT8 input of a network, as on the device.

`features` in fixed point, equal bit for bit to ``convert/c/tinyscene_frontend.c``: window and FFT
(`fixed_fft`), mel energies, logarithm (`fixed_log`), deltas, normalisation and quantisation. Every
array holds integers; each docstring gives their unit and range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.features import DELTA_REACH_FRAMES, FeatureDefinition, mel_filterbank
from firmware_ref.fixed_fft import GAIN_BITS, POINTS, headroom, spectrum
from firmware_ref.fixed_log import LOG_BITS, natural_log
from firmware_ref.fixedpoint import quantize_multiplier
from firmware_ref.graph import Graph, Quantization
from firmware_ref.manifest import model_metadata
from firmware_ref.scheme import INT8_MAX, INT8_MIN

DEFINITION = FeatureDefinition()
RISE_BITS = 16
# Steps of an energy a unit, without headroom, and the floor of the logarithm in them.
POWER_BITS = 2 * GAIN_BITS
LOG_FLOOR = round(DEFINITION.log_floor * 2**POWER_BITS)
# Log-mel, delta and delta of the delta: steps a unit. A delta is kept as ten times itself.
CHANNEL_GAINS = (2**LOG_BITS, 10 * 2**LOG_BITS, 100 * 2**LOG_BITS)
CHUNK_FRAMES = 32
OFFSET_LIMIT = 2**62


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Float samples, nominally in [-1, 1], to the nearest int16, clipped; same shape."""
    scaled = samples * np.asarray(2**15, samples.dtype)  # exact in any precision
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -(2**15), 2**15 - 1, out=scaled).astype(np.int16)


@lru_cache(maxsize=1)
def mel_segments() -> tuple[np.ndarray, np.ndarray]:
    """The filterbank as bins a segment, (128,) int64, and rising weights, (1023,) int64 in Q16.

    Between two neighbouring corners one filter falls as the next one rises, and their weights add
    to 1. Segment b, from the peak of filter b to its end, is where it falls; a bin's weight there
    in filter b + 1 is its rise, in filter b what is missing to 1. Bins 0 and 1024 have no weight.
    """
    filters = mel_filterbank(DEFINITION)[:, 1:POINTS].astype(np.float64)
    falling = np.argmax(filters > 0, axis=0)
    rises = np.rint(2**RISE_BITS * (1 - filters[falling, np.arange(POINTS - 1)])).astype(np.int64)
    counts = np.bincount(falling, minlength=DEFINITION.mel_bands).astype(np.int64)
    for table in (counts, rises):
        table.setflags(write=False)
    return counts, rises


def mel_energies(re: np.ndarray, im: np.ndarray) -> np.ndarray:
    """A spectrum (N, 1023) to mel energies (N, 128), int64 below 2**58 in units of its power.

    By Parseval the powers of a frame add to less than 2**58. Products with a weight are summed for
    the upper and the lower 32 bits of the power, exactly, and cut once a segment.
    """
    counts, rises = mel_segments()
    power = re * re + im * im
    ends = np.cumsum(counts)

    def sums(x: np.ndarray) -> np.ndarray:
        """Sums of (N, 1023) over the bins of each segment."""
        running = np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0)))
        return running[:, ends] - running[:, ends - counts]

    high, low = sums((power >> 32) * rises), sums((power & 0xFFFFFFFF) * rises)
    rising = (high << (32 - RISE_BITS)) + (low >> RISE_BITS)
    energies: np.ndarray = sums(power) - rising
    energies[:, 1:] += rising[:, :-1]
    return energies


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """(..., n) int16 samples to log-mels in Q18, (..., 128, frames) int32: `features.log_mel`.

    From ln 1e-6, -13.82, to below 14. Raises `InputError` for samples of another type.
    """
    pcm = np.asarray(pcm)
    if pcm.dtype != np.int16:
        raise InputError(f"samples are {pcm.dtype}; the fixed-point front end takes int16")
    window, count = DEFINITION.window_samples, pcm.shape[-1]
    padded = np.pad(pcm.reshape(-1, count), ((0, 0), (window // 2, window // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)
    frames = frames[:, :: DEFINITION.hop_samples]
    out = np.empty((len(padded), DEFINITION.mel_bands, frames.shape[1]), np.int32)
    for clip, result in zip(frames, out, strict=True):
        for start in range(0, len(clip), CHUNK_FRAMES):
            part = slice(start, start + CHUNK_FRAMES)
            result[:, part] = frame_log_mel(clip[part]).T
    return out.reshape(*pcm.shape[:-1], *out.shape[1:])


def as_reals(log_mels: np.ndarray) -> np.ndarray:
    """`log_mel`'s integers as natural logarithms, float32, of which each has its own."""
    return np.asarray(log_mels, np.float32) * np.float32(2.0**-LOG_BITS)


def as_steps(log_mels: np.ndarray) -> np.ndarray:
    """The inverse of `as_reals`, int64; for any other reals the nearest steps."""
    return np.rint(np.asarray(log_mels, np.float64) * 2**LOG_BITS).astype(np.int64)


def frame_log_mel(frames: np.ndarray) -> np.ndarray:
    """Frames (N, 2048) int16 to log-mels in Q18, (N, 128) int64."""
    shifts = headroom(frames)
    energies = mel_energies(*spectrum(frames, shifts))
    return natural_log(energies + (LOG_FLOOR << 2 * shifts), POWER_BITS + 2 * shifts)


def delta_tenfold(x: np.ndarray) -> np.ndarray:
    """Ten times the five-point regression along the last axis, exact, int64: `features.delta`.

    ``(x[t+1] - x[t-1]) + 2 (x[t+2] - x[t-2])``; of log-mels below 2**25, of that below 2**28.
    """
    reach, n = DELTA_REACH_FRAMES, x.shape[-1]
    padded = np.pad(
        np.asarray(x, np.int64), [(0, 0)] * (x.ndim - 1) + [(reach, reach)], mode="edge"
    )
    near = padded[..., 3 : 3 + n] - padded[..., 1 : 1 + n]
    return near + 2 * (padded[..., 4 : 4 + n] - padded[..., 0:n])


@dataclass(frozen=True)
class AffineMap:
    """``(multiplier * x + offset) >> shift``, clamped to int8: from a channel to its codes.

    For ``x`` below 2**28; ``multiplier`` is 0 or in [2**30, 2**31), ``shift`` in [0, 62],
    ``offset`` below 2**62 in magnitude and with the half that makes the shift round: in int64 the
    sum cannot overflow.
    """

    multiplier: int
    offset: int
    shift: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Codes, int8, of integers of any shape."""
        codes = (np.asarray(x, np.int64) * self.multiplier + self.offset) >> self.shift
        return np.clip(codes, INT8_MIN, INT8_MAX).astype(np.int8)


def affine_map(gain: int, mean: float, std: float, quantization: Quantization) -> AffineMap:
    """Normalisation and quantisation of a channel that has ``gain`` steps a unit.

    Raises `InputError` where they do not fit the integers of an `AffineMap`.
    """
    scale, zero_point = quantization.scale[0], quantization.zero_point[0]
    multiplier, exponent = quantize_multiplier(1 / (gain * std * scale))
    shift = 31 - exponent
    offset = zero_point + 0.5 - mean / (std * scale)
    if shift < 0 or not abs(offset) * 2**shift < OFFSET_LIMIT:
        raise InputError(
            f"normalisation mean={mean} std={std} with the input's scale={scale} does not fit the "
            "fixed-point front end; train with features of ordinary size"
        )
    return AffineMap(multiplier, round(offset * 2**shift), shift)


@dataclass(frozen=True)
class FixedFrontend:
    """A model's front end: a map for log-mel, and for delta and delta of the delta where wanted."""

    maps: tuple[AffineMap, ...]

    @classmethod
    def of(
        cls, mean: Sequence[float], std: Sequence[float], quantization: Quantization
    ) -> FixedFrontend:
        """From the normalisation of the channels and the quantisation of the network's input."""
        if len(mean) not in (1, len(CHANNEL_GAINS)):
            raise InputError(
                f"the network takes {len(mean)} channels; the fixed-point front end gives 1 "
                "(log-mel) or 3 (with both deltas)"
            )
        channels = zip(CHANNEL_GAINS, mean, std, strict=False)
        return cls(tuple(affine_map(*channel, quantization) for channel in channels))

    @classmethod
    def of_graph(cls, graph: Graph) -> FixedFrontend:
        """From a model's metadata and its input."""
        metadata = model_metadata(graph)
        tensor = graph.tensors[graph.inputs[0]]
        if tensor.dtype != "int8" or tensor.quantization is None:
            raise InputError(
                f"graph input {tensor.name!r} has dtype={tensor.dtype} and is not quantised to "
                "int8; convert with `python -m convert --target tflite-micro`"
            )
        return cls.of(metadata.mean, metadata.std, tensor.quantization)

    def inputs(self, pcm: np.ndarray) -> np.ndarray:
        """Samples (..., n) int16 to network inputs (..., 128, frames, C) int8."""
        return self.codes(log_mel(pcm))

    def codes(self, log_mels: np.ndarray) -> np.ndarray:
        """`log_mel`'s (..., 128, frames) in Q18 to network inputs (..., 128, frames, C) int8."""
        first = delta_tenfold(log_mels)
        channels = (log_mels, first, delta_tenfold(first))
        codes = [apply(x) for apply, x in zip(self.maps, channels, strict=False)]
        return np.stack(codes, axis=-1)
