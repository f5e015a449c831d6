"""The C text of gemmlowp and TFLite in Python integers, apart from `firmware_ref.fixedpoint`."""

from __future__ import annotations

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def c_divide(a: int, b: int) -> int:
    """C's integer division, toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def c_srdhm(a: int, b: int) -> int:
    if a == b == INT32_MIN:
        return INT32_MAX
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return c_divide(product + nudge, 2**31)


def c_rdpot(x: int, exponent: int) -> int:
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def c_mbqm(x: int, q: int, shift: int) -> int:
    shifted = (x * 2 ** max(shift, 0) + 2**31) % 2**32 - 2**31
    return c_rdpot(c_srdhm(shifted, q), max(-shift, 0))
