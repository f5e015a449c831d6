"""The integer logarithm against the real one, over all of its range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firmware_ref import fixed_log
from firmware_ref.fixed_log import LN2, log_table, natural_log

# In units of the natural logarithm, for results within +-20: as the docstring states.
TOLERANCE = 5e-6


def error(x: list[int], exponent: int) -> float:
    found = natural_log(np.array(x, np.uint64), exponent) / 2**18
    expected = np.array([math.log(v) for v in x]) - exponent * math.log(2)
    assert np.abs(expected).max() < 20
    return float(np.abs(found - expected).max())


def test_every_power_of_two_and_its_neighbours() -> None:
    for bit in range(63):
        x = [max(1, 2**bit - 1), 2**bit, 2**bit + 1, 2**bit + 2**bit // 2]
        assert error(x, bit) <= TOLERANCE
    assert error([2**63 - 1], 38) <= TOLERANCE


def test_every_line_of_the_table_at_its_ends_and_between() -> None:
    for bit in (20, 38, 58):
        step = 2 ** (bit - 8)
        starts = [2**bit + i * step for i in range(256)]
        for offset in (0, 1, step // 2, step - 1):
            assert error([start + offset for start in starts], 38) <= TOLERANCE


def test_numbers_drawn_over_the_range_of_energies(rng: np.random.Generator) -> None:
    x = np.exp2(rng.uniform(18, 58, 50_000)).astype(np.uint64)
    assert error([int(v) for v in x], 38) <= TOLERANCE


def test_it_never_falls() -> None:
    starts = np.exp2(np.linspace(18, 58, 300)).astype(np.uint64)
    x = np.unique(np.concatenate([starts + np.uint64(i) for i in range(40)]))
    assert (np.diff(natural_log(x, 38)) >= 0).all()


def test_the_exponent_may_differ_along_an_axis() -> None:
    x = np.full((2, 3), 2**40)
    found = natural_log(x, np.array([[40], [38]]))
    np.testing.assert_array_equal(found, [[0, 0, 0], [round(2 * math.log(2) * 2**18)] * 3])


def test_every_step_fits_the_integers_of_c() -> None:
    table = log_table()
    assert table.min() == 0 and table.max() == LN2 and len(table) == 257
    # (high - low) * fraction in uint32; exponents of energies are within 21 of the floor's.
    assert np.diff(table).max() * 0xFFFF < 2**32
    assert 64 * LN2 < 2**31
    assert not table.flags.writeable


def test_a_nudged_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    nudged = log_table().copy()
    nudged[100] += 200
    monkeypatch.setattr(fixed_log, "log_table", lambda: nudged)
    assert error([2**38 + 100 * 2**30], 38) > TOLERANCE
