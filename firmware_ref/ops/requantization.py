"""int32 sums to int8, one multiplier a channel: exact, and fast in float64 where that is proved.

The requantisation of CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED is a rising staircase from
sums to 256 codes. `Staircase` computes it in integers. `FloatStaircase` computes it in a few
passes that NumPy does several at a time, and is used only where `proved` has compared both at
every step of every channel: two staircases that agree on both sides of each step are equal
everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.fixedpoint import mbqm

# The bit of a float64 that holds its sign.
SIGN = np.uint64(1 << 63)
# A float32 holds every integer up to here.
EXACT_IN_FLOAT32 = 2**24
# The proof keeps 255 steps a channel in memory.
MOST_PROVED_CHANNELS = 4096
# A channel's proof takes some 25 us, so those of a whole graph take two seconds.
PROVED = 1 << 16


@dataclass(frozen=True, eq=False)
class Staircase:
    """``clip(zero_point + mbqm(sum + bias))``: bias, multiplier, zero point, clamp, in integers.

    ``bias``, ``multiplier`` (Q0.31) and ``shift`` are int64, one entry a channel or one in all;
    channels lie along the last axis of the sums.
    """

    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    zero_point: int
    low: int
    high: int

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Integers of any dtype (..., C) to int8 (..., C)."""
        values = mbqm(sums.astype(np.int64) + self.bias, self.multiplier, self.shift)
        values += self.zero_point
        return np.clip(values, self.low, self.high, out=values).astype(np.int8)

    @property
    def real_multiplier(self) -> np.ndarray:
        """The multiplier as float64."""
        return np.ldexp(self.multiplier.astype(np.float64), self.shift - 31)


@dataclass(frozen=True, eq=False)
class FloatStaircase:
    """The same as ``trunc(y + half)`` with ``y = scale * sum + offset``, clamped.

    ``half`` takes the sign of ``y``, as `mbqm`'s second rounding goes half away from zero. The
    vectors repeat the channels for every position of a row: long rows are what NumPy is fast on.
    """

    scale: np.ndarray
    offset: np.ndarray
    half: np.ndarray
    zero_point: int
    low: int
    high: int

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Exact sums (..., C) of any dtype to int8 (..., C); whole rows of them."""
        y = sums.astype(np.float64).reshape(-1, len(self.scale))
        y *= self.scale
        y += self.offset
        if self.low >= self.zero_point:  # all below half a step is clamped, so y counts as positive
            y += self.half
        else:
            signed_half = y.view(np.uint64) & SIGN
            signed_half |= self.half.view(np.uint64)
            y += signed_half.view(np.float64)
        np.maximum(y, self.low - self.zero_point, out=y)
        np.minimum(y, self.high - self.zero_point, out=y)
        # The conversion truncates toward zero.
        steps = y.astype(np.int16)
        steps += np.int16(self.zero_point)
        return steps.astype(np.int8).reshape(sums.shape)

    def for_rows_of(self, positions: int) -> FloatStaircase:
        """The same for sums that come in rows of so many positions."""
        scale, offset, half = (
            np.tile(part, positions) for part in (self.scale, self.offset, self.half)
        )
        return FloatStaircase(scale, offset, half, self.zero_point, self.low, self.high)


def fastest(
    exact: Staircase, largest_sum: np.ndarray, positions: int, most_proved: int
) -> tuple[Staircase | FloatStaircase, type[np.floating]]:
    """The fastest proved form, and the dtype in which the sums must come.

    ``largest_sum`` (C,) bounds the magnitude of every partial sum without the bias; BLAS then sums
    exactly in float32 below 2**24 and in float64 below 2**53. ``positions`` of a map lie in one
    row. More channels than ``most_proved`` or `MOST_PROVED_CHANNELS` stay exact: they would take
    long to prove.
    """
    dtype = np.float32 if largest_sum.max() < EXACT_IN_FLOAT32 else np.float64
    channels = len(largest_sum)
    multiplier, shift, bias = (
        np.broadcast_to(part, (channels,)) for part in (exact.multiplier, exact.shift, exact.bias)
    )
    # mbqm wraps at 32 bits where it shifts left: no staircase.
    too_many = channels > min(most_proved, MOST_PROVED_CHANNELS)
    if too_many or (shift > 0).any() or (multiplier == 0).any():
        return exact, dtype
    full = Staircase(bias, multiplier, shift, exact.zero_point, exact.low, exact.high)
    real = full.real_multiplier
    # Rounding twice moves each step by half a unit of the first rounding, if there is a second.
    first_half = np.where(shift < 0, real * 2.0**30 / multiplier, 0.0)
    vectors = (real, bias * real, 0.5 + first_half)
    fast = FloatStaircase(*vectors, exact.zero_point, exact.low, exact.high)
    return (fast.for_rows_of(positions) if proved(full, fast, largest_sum) else exact), dtype


def proved(exact: Staircase, fast: FloatStaircase, largest_sum: np.ndarray) -> bool:
    """Whether both give the same codes for every sum of magnitude ``largest_sum`` or less.

    Both rise with the sum. The exact one's steps are looked for where real numbers put them; a
    step that is not found there is not proved.
    """
    codes = np.arange(exact.low - exact.zero_point + 1, exact.high - exact.zero_point + 1)
    middle = (codes[:, None] - 0.5) / exact.real_multiplier - exact.bias
    around = np.rint(middle)[None] + np.arange(-2, 3)[:, None, None]  # (5, steps, C)
    around = np.clip(around, -largest_sum, largest_sum).astype(np.int64)
    wanted = exact(around)
    found = fast(around)
    # Within the window each step is crossed, or lies beyond what a sum can reach.
    target = (codes + exact.zero_point)[:, None]
    reached = (wanted[-1] >= target) | (around[-1] >= largest_sum)
    begun = (wanted[0] < target) | (around[0] <= -largest_sum)
    return bool(np.array_equal(wanted, found) and reached.all() and begun.all())
