"""The windowed real FFT of the fixed-point front end: int16 samples to a spectrum in integers.

2,048 real samples are 1,024 complex ones, even samples the real parts: five radix-4 stages,
decimation in time, then the split into the spectrum of the real signal (Sorensen et al., Real-
valued fast Fourier transform algorithms, IEEE Trans. ASSP 35, 1987). A frame is first shifted left
by its headroom, so that rounding is as far below a quiet sound as below a loud one. Every function
takes and returns int64 arrays of values that C holds in int32; products, and sums of products, are
int64 there too.

Ranges, for any int16 input. A windowed sample is at most 2**28, so the first stage, a sum of four,
is at most sqrt(2) * 2**30 in modulus. Every later stage is the mean of four values turned by
twiddles of modulus at most 1 + 2**-30, each rounded once (by 0.71 at most): the modulus grows by
less than 5 a stage and all sums stay inside int32. In the split, sums of two mirrored bins are
twice the spectrum of the even or the odd samples, at most 1.09 * 2**30 (the window's mean is 0.54).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from firmware_ref.features import FeatureDefinition

WINDOW = FeatureDefinition().window_samples
POINTS = WINDOW // 2
TWIDDLE_BITS = 30
SAMPLE_BITS = 15
# The window is HAMMING_MEAN - HAMMING_SWING * cosine / 2**32, in Q30: `features.hamming_window`.
HAMMING_MEAN = round(0.54 * 2**TWIDDLE_BITS)
HAMMING_SWING = round(0.46 * 2**32)
# Steps of `spectrum` a unit, for samples in [-1, 1) without headroom: 2**28 of a windowed sample,
# a quarter in each of four stages, a half in the split.
GAIN_BITS = 28 - 2 * 4 - 1


@lru_cache(maxsize=1)
def cosines() -> np.ndarray:
    """One period of the cosine, ``2**30 cos(2 pi k / 2048)``, (2048,) int64.

    The twiddle ``exp(-2 pi i k / 2048)`` is entry k and, imaginary, entry k + 512.
    """
    angles = 2 * np.pi * np.arange(WINDOW) / WINDOW
    table = np.rint(2**TWIDDLE_BITS * np.cos(angles)).astype(np.int64)
    table.setflags(write=False)
    return table


def window() -> np.ndarray:
    """The periodic Hamming window in Q30, (2048,) int64, within 1.5 steps."""
    return HAMMING_MEAN - multiply_high(cosines(), HAMMING_SWING)


def multiply_high(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """``a * b / 2**32`` rounded half up; in C the high word of an SMLAL onto 2**31."""
    return (a * b + 2**31) >> 32


def digit_reversed(digits: int) -> np.ndarray:
    """Numbers below ``4**digits`` with their base-4 digits reversed, (4**digits,) int64."""
    order = np.zeros(1, np.int64)
    for _ in range(digits):
        order = np.concatenate([4 * order + digit for digit in range(4)])
    return order


def rotate_quarter(re: np.ndarray, im: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``exp(-2 pi i k / 2048) (re + i im) / 4``, each part rounded once, half up.

    In C: two 32 x 32 + 64 multiply-accumulates (SMLAL) onto 2**31, of which the high word is kept.
    """
    c, s = cosines()[k], cosines()[k + WINDOW // 4]
    return (re * c - im * s + 2**31) >> 32, (re * s + im * c + 2**31) >> 32


def stage(re: np.ndarray, im: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One radix-4 stage, (N, 1024) both: from transforms of ``size`` points to ``4 * size``.

    The result is a quarter of the sum, so that the whole transform is a mean.
    """
    shape = (len(re), POINTS // (4 * size), 4, size)
    re, im = re.reshape(shape), im.reshape(shape)
    step = WINDOW // (4 * size) * np.arange(size)
    turned = [rotate_quarter(re[:, :, q], im[:, :, q], q * step) for q in (1, 2, 3)]
    return _butterfly([((re[:, :, 0] + 2) >> 2, (im[:, :, 0] + 2) >> 2), *turned])


def _butterfly(z: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The transform of four points, each (N, blocks, size), as (N, 1024)."""
    (re0, im0), (re1, im1), (re2, im2), (re3, im3) = z
    sum02, sum13, difference02, difference13 = re0 + re2, re1 + re3, re0 - re2, re1 - re3
    isum02, isum13, idifference02, idifference13 = im0 + im2, im1 + im3, im0 - im2, im1 - im3
    shape = (len(re0), POINTS)
    re = [
        sum02 + sum13,
        difference02 + idifference13,
        sum02 - sum13,
        difference02 - idifference13,
    ]
    im = [
        isum02 + isum13,
        idifference02 - difference13,
        isum02 - isum13,
        idifference02 + difference13,
    ]
    return np.stack(re, axis=2).reshape(shape), np.stack(im, axis=2).reshape(shape)


def headroom(frames: np.ndarray) -> np.ndarray:
    """Frames (N, 2048) int16 to their shifts, (N, 1) int64: the largest of 0 to 15 within 2**15."""
    x = np.asarray(frames, np.int64)
    # The ones' complement of a negative needs as many bits as the number itself.
    bits = np.bitwise_or.reduce(x ^ (x >> 63), axis=1, keepdims=True)
    return SAMPLE_BITS - np.frexp(bits.astype(np.float64))[1].astype(np.int64)


def first_stage(frames: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N, 2048) int16, shifted and windowed, after the stage of single points, (N, 1024).

    ``shifts`` are (N, 1). ``sample * 2**shift`` in Q30 times the window in Q30 is rounded to Q28.
    """
    scaled = np.asarray(frames, np.int64) << (shifts + TWIDDLE_BITS - SAMPLE_BITS)
    t = multiply_high(scaled, window())
    order = 2 * digit_reversed(5).reshape(-1, 4, 1)
    return _butterfly([(t[:, order[:, q]], t[:, order[:, q] + 1]) for q in range(4)])


def split(re: np.ndarray, im: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The real signal's spectrum at bins 1 to 1023, halved, (N, 1023), of ``Z`` (N, 1024).

    With ``z = Z[k]`` and ``y = conj(Z[1024 - k])``, ``E = (z + y) / 2`` and ``O = (z - y) / 2i``
    are the spectra of the even and the odd samples; bin k is ``E + exp(-2 pi i k / 2048) O``, bin
    1024 - k the conjugate of ``E - exp(...) O``.
    """
    k = np.arange(1, POINTS // 2 + 1)
    re_z, im_z, re_y, im_y = re[:, k], im[:, k], re[:, POINTS - k], -im[:, POINTS - k]
    re_even, im_even = (re_z + re_y + 2) >> 2, (im_z + im_y + 2) >> 2
    re_odd, im_odd = rotate_quarter(im_z - im_y, re_y - re_z, k)
    mirrored = slice(-2, None, -1)  # bin 512 is its own mirror
    return (
        np.concatenate([re_even + re_odd, (re_even - re_odd)[:, mirrored]], axis=1),
        np.concatenate([im_even + im_odd, (im_odd - im_even)[:, mirrored]], axis=1),
    )


def spectrum(frames: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N, 2048) int16 to bins 1 to 1023 of their windowed spectrum, (N, 1023).

    Real and imaginary part in ``2**(GAIN_BITS + shift)`` steps a unit (samples in [-1, 1)), below
    2**29.2, and within 24 steps of the exact spectrum: roundings add to at most 20 in the stages
    and the split, the window's to 2, the twiddles' to less than 2. On sounds it is 2 at most.
    """
    re, im = first_stage(frames, shifts)
    size = 4
    while size < POINTS:
        re, im = stage(re, im, size)
        size *= 4
    return split(re, im)
