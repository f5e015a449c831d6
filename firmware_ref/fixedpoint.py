"""The integer arithmetic of the TFLite reference kernels, vectorised in int64 NumPy.

Every function takes integers (Python or NumPy, any shape) that fit int32 in C and returns int64
arrays holding int32 values. Sources: gemmlowp ``fixedpoint/fixedpoint.h`` and TFLite
``kernels/internal/common.h``, ``quantization_util.cc``, built with double rounding (no
``TFLITE_SINGLE_ROUNDING``), as tflite-runtime and TFLM are.

A value "in Qm.n" is ``raw / 2**n`` with ``m`` integer bits, a sign bit and ``m + n = 31``.
"""

from __future__ import annotations

import math

import numpy as np

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

Integers = int | np.integer | np.ndarray


def quantize_multiplier(real: float) -> tuple[int, int]:
    """``(q, shift)`` with ``real ~ q / 2**31 * 2**shift``: QuantizeMultiplier.

    ``real`` is a double >= 0; ``q`` is 0 or in [2**30, 2**31 - 1] (Q0.31, rounded half away from
    zero); a shift below -31 flushes to (0, 0).
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    scaled = fraction * 2.0**31
    q = math.floor(scaled)
    q += scaled - q >= 0.5
    if q == 2**31:
        q, shift = q // 2, shift + 1
    if shift < -31:
        return 0, 0
    return q, shift


def quantize_multipliers(reals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`quantize_multiplier` of each of (C,) float64 reals >= 0: two int64 arrays (C,)."""
    fraction, exponent = np.frexp(reals)
    q = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = exponent.astype(np.int64)
    carried = q == 2**31
    q, shift = np.where(carried, q // 2, q), shift + carried
    flushed = shift < -31
    return np.where(flushed, 0, q), np.where(flushed, 0, shift)


def srdhm(a: Integers, b: Integers) -> np.ndarray:
    """Rounded high half of ``2 a b``: SaturatingRoundingDoublingHighMul (NEON VQRDMULH).

    ``a`` and ``b`` in Q0.31 give ``a * b`` in Q0.31; INT32_MIN squared saturates to INT32_MAX.
    """
    return np.minimum(_doubling_high_mul(a, b), INT32_MAX)


def rdpot(x: Integers, exponent: Integers) -> np.ndarray:
    """``x / 2**exponent`` rounded half away from zero: RoundingDivideByPOT.

    ``exponent`` is in [0, 31].
    """
    # Outside, gemmlowp is undefined and its builds differ: who calls refuses before.
    ends = (exponent,) if isinstance(exponent, int) else (np.min(exponent), np.max(exponent))
    assert ends[0] >= 0 and ends[-1] <= 31, "no shift of an int32"
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    half = (np.int64(1) << exponent) >> 1
    # Half away from zero means one less before a negative's shift.
    nudge = (x >> 63) & np.where(exponent > 0, np.int64(-1), np.int64(0))
    nudge += half
    return (x + nudge) >> exponent


def mbqm(x: Integers, q: Integers, shift: Integers) -> np.ndarray:
    """``x * q / 2**31 * 2**shift``: MultiplyByQuantizedMultiplier, two roundings.

    ``q >= 0`` is in Q0.31, ``shift`` in [-31, 30]; both broadcast against ``x``, so one entry a
    channel works along the last axis. ``x * 2**shift`` wraps at 32 bits for ``shift > 0``, as the
    compiled kernels do.
    """
    value, shift = np.asarray(x, np.int64), np.asarray(shift, np.int64)
    if (shift > 0).any():
        value = wrap_int32(value << np.maximum(shift, 0))
    # q >= 0 cannot saturate, so this skips the clamp of `srdhm`.
    value = _doubling_high_mul(value, q)
    return rdpot(value, np.maximum(-shift, 0)) if (shift < 0).any() else value


def _doubling_high_mul(a: Integers, b: Integers) -> np.ndarray:
    """``(a * b + nudge) / 2**31``.

    gemmlowp nudges by 2**30 or 1 - 2**30 and truncates toward zero; both cases equal the floor of
    ``(a * b + 2**30) / 2**31``, which is one arithmetic shift.
    """
    product = np.multiply(a, b, dtype=np.int64)
    product += 2**30
    product >>= 31
    return product


def wrap_int32(x: np.ndarray) -> np.ndarray:
    """Two's-complement wrap of int64 values to the range of int32."""
    return ((x + 2**31) & 0xFFFFFFFF) - 2**31


def saturating_shift_left(x: Integers, exponent: int) -> np.ndarray:
    """``x * 2**exponent`` clamped to int32: SaturatingRoundingMultiplyByPOT, ``exponent > 0``."""
    x = np.asarray(x, np.int64)
    threshold = (1 << (31 - exponent)) - 1
    shifted = np.where(x > threshold, INT32_MAX, x << exponent)
    return np.where(x < -threshold, INT32_MIN, shifted)


def exp_on_negative_values(a: Integers, integer_bits: int) -> np.ndarray:
    """``exp(a)`` in Q0.31 for ``a <= 0`` in Q(integer_bits), of 1 to 5: the gemmlowp function.

    A Taylor series on [-1/4, 0), then one factor exp(-2**k) for each bit above a quarter.
    """
    a = np.asarray(a, np.int64)
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (a & (quarter - 1)) - quarter
    result = _exp_between_minus_quarter_and_0(saturating_shift_left(within, integer_bits))
    remainder = within - a
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for power, factor in enumerate(factors, start=-2):
        if power < integer_bits:
            bit = (remainder >> (fraction_bits + power)) & 1
            result = np.where(bit == 1, srdhm(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


def _exp_between_minus_quarter_and_0(a: np.ndarray) -> np.ndarray:
    """``exp(a)`` in Q0.31 for ``a`` in [-1/4, 0) in Q0.31, expanded around -1/8."""
    exp_minus_eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = srdhm(x, x)
    x3 = srdhm(x2, x)
    x4_over_4 = rdpot(srdhm(x2, x2), 2)
    tail = rdpot(srdhm(x4_over_4 + x3, third) + x2, 1)
    return exp_minus_eighth + srdhm(exp_minus_eighth, x + tail)


def one_over_one_plus_x(a: Integers) -> np.ndarray:
    """``1 / (1 + a)`` in Q0.31 for ``a`` in [0, 1] in Q0.31: three Newton-Raphson steps.

    gemmlowp ``one_over_one_plus_x_for_x_in_0_1``; works on half the denominator in Q2.29.
    """
    one = 1 << 29
    # RoundingHalfSum; its sum is never negative here.
    half_denominator = (np.asarray(a, np.int64) + INT32_MAX + 1) >> 1
    x = 1515870810 + srdhm(half_denominator, -1010580540)
    for _ in range(3):
        error = one - srdhm(half_denominator, x)
        x = x + saturating_shift_left(srdhm(x, error), 2)
    return saturating_shift_left(x, 1)


def logistic(a: Integers, integer_bits: int) -> np.ndarray:
    """``1 / (1 + exp(-a))`` in Q0.31 for ``a`` in Q(integer_bits): gemmlowp ``logistic``."""
    a = np.asarray(a, np.int64)
    positive = one_over_one_plus_x(exp_on_negative_values(-np.abs(a), integer_bits))
    return np.where(a == 0, 1 << 30, np.where(a > 0, positive, INT32_MAX - positive))


def reciprocal(x: Integers, integer_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """``(r, bits)`` with ``1 / x = r / 2**31 / 2**bits`` for ``x > 0``: GetReciprocal.

    ``x`` is in Q(integer_bits); ``r`` in (1/2, 1] in Q0.31.
    """
    x = np.asarray(x, np.int64)
    # frexp counts the bits of an int32 exactly: float64 holds it.
    headroom_plus_one = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)
    return one_over_one_plus_x((x << headroom_plus_one) - 2**31), integer_bits - headroom_plus_one


def inverse_sqrt_multiplier(x: int) -> tuple[int, int]:
    """``(q, shift)`` with ``1 / sqrt(x) ~ q / 2**31 * 2**shift``.

    TFLite GetInvSqrtQuantizedMultiplierExp with ``reverse_shift`` -1, for ``x`` in [0, 2**29),
    where it need not be made smaller first: five Newton-Raphson steps in Q3.28 from a start of 1;
    0 counts as 1.
    """
    assert x < 1 << 29
    if x <= 1:
        return INT32_MAX, 0
    left_shift_bit_pairs = (31 - x.bit_length()) // 2 - 1
    shift = 11 - left_shift_bit_pairs
    x <<= 2 * left_shift_bit_pairs
    fixed = np.int64(x >> 1)
    half, three_halves = rdpot(fixed, 1), (1 << 28) + (1 << 27)
    y: np.ndarray = np.array(1 << 28, np.int64)
    for _ in range(5):
        cube = saturating_shift_left(srdhm(srdhm(y, y), y), 6)
        # Both products are in Q6.25; their difference goes back to Q3.28.
        y = saturating_shift_left(srdhm(three_halves, y) - srdhm(half, cube), 3)
    q = int(srdhm(y, 1518500250))
    if shift < 0:
        q, shift = q << -shift, 0
    return q, -shift
