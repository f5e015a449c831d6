"""The fixed-point primitives against the C text of gemmlowp and TFLite in Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_ref import fixedpoint as fp
from tests.firmware_ref.c_text import c_mbqm, c_rdpot, c_srdhm

LOW, HIGH = fp.INT32_MIN, fp.INT32_MAX
EDGES = [LOW, LOW + 1, -(2**30) - 1, -(2**30), -3, -2, -1, 0, 1, 2, 3, 2**30 - 1, 2**30, HIGH]
INT32 = st.one_of(st.sampled_from(EDGES), st.integers(LOW, HIGH))


@given(INT32, INT32)
def test_srdhm_is_gemmlowp(a: int, b: int) -> None:
    assert fp.srdhm(a, b) == c_srdhm(a, b)


def test_srdhm_saturates_and_broadcasts() -> None:
    a, b = np.meshgrid(EDGES, EDGES)
    expected = [
        [c_srdhm(int(x), int(y)) for x, y in zip(r, s, strict=True)]
        for r, s in zip(a, b, strict=True)
    ]
    assert np.array_equal(fp.srdhm(a, b), expected)
    assert fp.srdhm(LOW, LOW) == HIGH


@given(INT32, st.integers(0, 31))
def test_rdpot_is_gemmlowp(x: int, exponent: int) -> None:
    assert fp.rdpot(x, exponent) == c_rdpot(x, exponent)


@pytest.mark.parametrize(("x", "expected"), [(5, 3), (-5, -3), (3, 2), (-3, -2), (1, 1), (-1, -1)])
def test_rdpot_rounds_ties_away_from_zero(x: int, expected: int) -> None:
    assert fp.rdpot(x, 1) == expected


@pytest.mark.parametrize("exponent", [-1, 32, np.array([[3], [32]])])
def test_rdpot_has_no_value_where_c_has_none(exponent: fp.Integers) -> None:
    with pytest.raises(AssertionError, match="no shift of an int32"):
        fp.rdpot(5, exponent)


@given(INT32, st.one_of(st.just(0), st.integers(2**30, HIGH)), st.integers(-31, 30))
def test_mbqm_is_tflite(x: int, q: int, shift: int) -> None:
    assert fp.mbqm(x, q, shift) == c_mbqm(x, q, shift)


def test_mbqm_per_channel_is_each_channel() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**20), 2**20, (50, 6))
    q, shift = rng.integers(2**30, 2**31, 6), np.array([-31, -7, -1, 0, 1, 5])
    expected = [
        [c_mbqm(int(v), int(a), int(s)) for v, a, s in zip(r, q, shift, strict=True)] for r in x
    ]
    assert np.array_equal(fp.mbqm(x, q, shift), expected)


def test_mbqm_keeps_its_argument() -> None:
    x = np.array([1000, -1000])
    fp.mbqm(x, 2**30, -3)
    assert x.tolist() == [1000, -1000]


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (0.75, (3 * 2**29, 0)),
        (1 - 2.0**-40, (2**30, 1)),  # rounds up to 2**31, so the shift grows
        (2.0**-32, (2**30, -31)),
        (2.0**-33, (0, 0)),  # flushed
        (3.0e9, (1500000000, 32)),
    ],
)
def test_quantize_multiplier(real: float, expected: tuple[int, int]) -> None:
    assert fp.quantize_multiplier(real) == expected


# Next to a half of the last bit, and where the shift grows or is flushed.
NEAR = [
    (2**30 + k + half) * 2.0**e
    for k in (0, 2**30 - 1)
    for half in (0.4999999, 0.5)
    for e in (-31, 0)
]
REALS = st.one_of(
    st.floats(0, 2.0**30),
    st.integers(-40, 29).map(lambda exponent: 2.0**exponent),
    st.sampled_from([0.0, 5e-324, 1 - 2.0**-40, (1 - 2.0**-33) * 2.0**-31, 2.0**-32, *NEAR]),
)


@given(st.lists(REALS, min_size=1, max_size=20))
def test_many_multipliers_are_each_one(reals: list[float]) -> None:
    significands, shifts = fp.quantize_multipliers(np.array(reals))
    assert significands.dtype == shifts.dtype == np.int64
    found = list(zip(significands.tolist(), shifts.tolist(), strict=True))
    assert found == [fp.quantize_multiplier(real) for real in reals]


@given(st.floats(2.0**-30, 2.0**30))
def test_quantize_multiplier_is_the_nearest(real: float) -> None:
    q, shift = fp.quantize_multiplier(real)
    assert 2**30 <= q <= HIGH
    error = abs(Fraction(real) - Fraction(q) * Fraction(2) ** (shift - 31))
    assert error <= Fraction(2) ** (shift - 32)


@pytest.mark.parametrize("bits", [4, 5])
def test_exp_on_negative_values(bits: int) -> None:
    raw = np.concatenate([[0, -1, LOW], -np.geomspace(1, 2**31 - 1, 4000).astype(np.int64)])
    found = fp.exp_on_negative_values(raw, bits) / 2.0**31
    # The Taylor series ends at the fourth power of 1/8.
    assert np.abs(found - np.exp(raw / 2.0 ** (31 - bits))).max() < 3e-7


def test_one_over_one_plus_x() -> None:
    raw = np.linspace(0, HIGH, 4001).astype(np.int64)
    assert np.abs(fp.one_over_one_plus_x(raw) / 2.0**31 - 1 / (1 + raw / 2.0**31)).max() < 1e-8


def test_logistic() -> None:
    raw = np.linspace(-HIGH, HIGH, 4001).astype(np.int64)
    found = fp.logistic(raw, 4) / 2.0**31
    assert np.abs(found - 1 / (1 + np.exp(-raw / 2.0**27))).max() < 1e-7
    assert fp.logistic(0, 4) == 2**30


def test_reciprocal() -> None:
    raw = np.array([1, 2, 3, 2**19, 2**19 + 1, 10 * 2**19, HIGH])
    found, bits = fp.reciprocal(raw, 12)
    assert np.abs(found / 2.0**31 / 2.0**bits / (2.0**19 / raw) - 1).max() < 1e-8


@pytest.mark.parametrize("x", [2, 3, 4, 5, 100, 255, 2**27, 2**29 - 1])
def test_inverse_sqrt_multiplier(x: int) -> None:
    q, shift = fp.inverse_sqrt_multiplier(x)
    assert q / 2.0**31 * 2.0**shift == pytest.approx(1 / math.sqrt(x), rel=2e-6)


@pytest.mark.parametrize("x", [0, 1])
def test_inverse_sqrt_of_0_counts_as_1(x: int) -> None:
    assert fp.inverse_sqrt_multiplier(x) == (HIGH, 0)


@pytest.mark.parametrize(
    ("x", "expected"), [(2**29, HIGH), (-(2**29) - 1, LOW), (2**29 - 1, HIGH - 3)]
)
def test_saturating_shift_left(x: int, expected: int) -> None:
    assert fp.saturating_shift_left(x, 2) == expected


@pytest.mark.parametrize(("x", "expected"), [(2**31, LOW), (LOW - 1, HIGH), (7, 7), (2**33 + 5, 5)])
def test_wrap_int32(x: int, expected: int) -> None:
    assert fp.wrap_int32(np.array(x)) == expected
