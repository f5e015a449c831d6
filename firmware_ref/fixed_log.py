"""The natural logarithm of the fixed-point front end: count leading zeros, then a table."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

INDEX_BITS = 8
INNER_BITS = 24
LOG_BITS = 18
LN2 = round(math.log(2) * 2**INNER_BITS)


@lru_cache(maxsize=1)
def log_table() -> np.ndarray:
    """``2**24 ln(1 + i / 256)``, (257,) int64 in [0, LN2]."""
    steps = np.arange(2**INDEX_BITS + 1) / 2**INDEX_BITS
    table = np.rint(2**INNER_BITS * np.log1p(steps)).astype(np.int64)
    table.setflags(write=False)
    return table


def natural_log(x: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """``ln(x / 2**exponent)`` in Q18, int64, of integers ``x`` in [1, 2**63).

    ``x`` is shifted left until its highest bit is bit 63, by halves as where no instruction counts
    leading zeros. Of the bits below, 8 choose a line of the table and 16 interpolate on it. For
    results within +-20 the error is at most 5e-6: the chord lies up to 2**-19 below the logarithm,
    the last rounding, half up, adds 2**-19, and Q24 less than 2**-20.
    """
    x = np.asarray(x, np.uint64)
    power = np.full(x.shape, 63, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        small = x >> np.uint64(64 - step) == 0
        x = np.where(small, x << np.uint64(step), x)
        power -= step * small
    index = (x >> np.uint64(63 - INDEX_BITS)).astype(np.int64) - 2**INDEX_BITS
    fraction = (x >> np.uint64(63 - INDEX_BITS - 16)).astype(np.int64) & 0xFFFF
    low, high = log_table()[index], log_table()[index + 1]
    total = (power - exponent) * LN2 + low + ((high - low) * fraction >> 16)
    return (total + 2 ** (INNER_BITS - LOG_BITS - 1)) >> (INNER_BITS - LOG_BITS)
