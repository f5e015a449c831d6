"""The INT8 rules, against exact rational arithmetic and hand-worked values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_ref import scheme
from firmware_ref.graph import Quantization

RANGE_ENDS = st.floats(-1e6, 1e6, width=32)


def rounded(value: Fraction) -> int:
    """Half to even, as Python's own round."""
    return round(value)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 255.0, 1.0, -128),
        (-128.0, 127.0, 1.0, 0),
        (-255.0, 0.0, 1.0, 127),
        (-1.0, 1.0, float(np.float32(2 / 255)), -1),  # the float32 is above 2 / 255: -0.5000007
        (0.0, 6.0, float(np.float32(6 / 255)), -128),
        (2.0, 51.0, float(np.float32(0.2)), -128),  # widened down to zero
        (-51.0, -2.0, float(np.float32(0.2)), 127),  # widened up to zero
        (0.0, 0.0, 1.0, -128),
        (0.0, 1e-40, 1.0, -128),
    ],
)
def test_activation_ranges_by_hand(low: float, high: float, scale: float, zero_point: int) -> None:
    assert scheme.activation_quantization(low, high) == Quantization((scale,), (zero_point,))


@given(RANGE_ENDS, RANGE_ENDS)
def test_an_activation_range_is_covered_and_holds_zero_exactly(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    q = scheme.activation_quantization(low, high)
    (scale,), (zero_point,) = q.scale, q.zero_point
    assert float(np.float32(scale)) == scale > 0 and -128 <= zero_point <= 127
    assert scheme.dequantize(scheme.quantize(np.zeros(1), q), q)[0] == 0
    # Rounding of the zero point moves both ends by half a step at most.
    assert scale * (-128 - zero_point) <= min(low, 0) + 0.501 * scale
    assert scale * (127 - zero_point) >= max(high, 0) - 0.501 * scale


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 1), (-1, np.inf), (np.nan, 1), (-1e42, 1)])
def test_a_range_that_is_not_finite_is_a_bug_of_the_caller(low: float, high: float) -> None:
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="not finite"):
        scheme.activation_quantization(low, high)


@given(
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20),
    st.sampled_from([2.0**-3, 1.0, float(np.float32(0.1))]),
    st.integers(-128, 127),
)
def test_quantise_rounds_half_to_even_and_saturates(
    values: list[float], scale: float, zero_point: int
) -> None:
    q = Quantization((scale,), (zero_point,))
    found = scheme.quantize(np.array(values), q)
    assert found.dtype == np.int8
    for value, steps in zip(values, found, strict=True):
        # The quotient is rounded to float32 first, as it is on a device.
        quotient = Fraction(float(np.float32(value) / np.float32(scale)))
        assert steps == min(max(rounded(quotient) + zero_point, -128), 127)


@pytest.mark.parametrize("value", [1e300, 3e38, np.inf])
@pytest.mark.parametrize("scale", [1e-30, 0.1, 1e30])
def test_what_float32_cannot_hold_saturates_in_silence(value: float, scale: float) -> None:
    q = Quantization((float(np.float32(scale)),), (3,))
    assert scheme.quantize(np.array([value, -value, 0.0]), q).tolist() == [127, -128, 3]


def test_every_integer_survives_the_way_to_reals_and_back() -> None:
    codes = np.arange(-128, 128, dtype=np.int8)
    for scale in (1e-20, 0.1, 1 / 3, 7.7, 1e20):
        for zero_point in (-128, -7, 0, 127):
            q = Quantization((float(np.float32(scale)),), (zero_point,))
            assert np.array_equal(scheme.quantize(scheme.dequantize(codes, q), q), codes)


def test_weights_by_hand() -> None:
    weight = np.array([[[[127.0, -63.5, 0.4]]], [[[-2.54, 0.01, 0.03]]]], np.float32)
    scale = scheme.weight_scale(weight, np.zeros(2, np.float32), 1.0, 0)
    np.testing.assert_array_equal(scale, [1.0, float(np.float32(2.54) / np.float32(127))])
    codes = scheme.quantize_weight(weight, scale, 0)
    # -63.5 and 0.5 lie half way; the second row is in steps of 0.02.
    assert codes.tolist() == [[[[127, -64, 0]]], [[[-127, 0, 2]]]]


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 3, 5), 0), ((1, 3, 3, 6), 3)])
def test_every_channel_uses_its_whole_range(
    shape: tuple[int, ...], axis: int, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal(shape).astype(np.float32)
    weight *= np.float32(10) ** rng.integers(-6, 6, shape[axis]).reshape(
        [-1 if a == axis else 1 for a in range(4)]
    ).astype(np.float32)
    scale = scheme.weight_scale(weight, np.zeros(shape[axis]), 0.05, axis)
    codes = scheme.quantize_weight(weight, scale, axis)
    assert scale.dtype == np.float32 and codes.dtype == np.int8
    for channel in range(shape[axis]):
        w, c = (np.take(a, channel, axis).astype(np.float64) for a in (weight, codes))
        assert np.abs(c).max() == 127
        assert np.abs(c * scale[channel] - w).max() <= 0.5001 * scale[channel]


def test_a_channel_of_zeros_has_scale_one() -> None:
    weight = np.zeros((2, 1, 1, 3), np.float32)
    weight[1] = 1
    scale = scheme.weight_scale(weight, np.zeros(2), 0.1, 0)
    assert scale[0] == 1 and scale[1] == np.float32(1) / np.float32(127)
    assert not scheme.quantize_weight(weight, scale, 0)[0].any()


def test_a_large_bias_beside_vanishing_weights_stays_in_int32() -> None:
    weight = np.full((3, 1, 1, 2), 1e-12, np.float32)
    weight[2] = 1
    bias, source = np.array([1.0, -1.0, 1.0], np.float32), 1e-3
    scale = scheme.weight_scale(weight, bias, source, 0)
    steps = scheme.quantize_bias(bias, scheme.bias_scale(source, scale))
    assert steps.dtype == np.int32
    np.testing.assert_allclose(steps[:2], [2**30, -(2**30)], rtol=1e-6)
    # The largest accumulator of the family fits beside it.
    assert abs(int(steps[0])) + 255 * 127 * 2**14 < 2**31
    assert scale[2] == np.float32(1) / np.float32(127), "an ordinary channel is left alone"


def test_a_bias_is_rounded_in_float64_on_the_scale_of_the_accumulator() -> None:
    scale = scheme.bias_scale(0.1, np.array([0.3, 0.7], np.float32))
    assert scale.dtype == np.float32
    expected = [np.float32(0.1) * np.float32(s) for s in (0.3, 0.7)]
    np.testing.assert_array_equal(scale, expected)
    bias = np.array([1234.567, -2.5], np.float32)
    wanted = [
        rounded(Fraction(float(b)) / Fraction(float(s))) for b, s in zip(bias, scale, strict=True)
    ]
    assert scheme.quantize_bias(bias, scale).tolist() == wanted


def test_a_bias_saturates() -> None:
    found = scheme.quantize_bias(np.array([1e30, -1e30]), np.array([1e-3, 1e-3]))
    assert found.tolist() == [2**30, -(2**30)]


def test_a_bias_stays_within_its_limit_whatever_float32_rounds_away(
    rng: np.random.Generator,
) -> None:
    """The floor of the scale alone lets some biases out by up to about a hundred steps."""
    bias = (10.0 ** rng.uniform(-6, 3, 5000)).astype(np.float32)
    source = float(np.float32(0.0123))
    scale = scheme.weight_scale(np.zeros((5000, 1, 1, 1)), bias, source, 0)
    steps = scheme.bias_scale(source, scale)
    unlimited = [
        rounded(Fraction(float(b)) / Fraction(float(s))) for b, s in zip(bias, steps, strict=True)
    ]
    assert 2**30 < max(unlimited) < 2**30 + 200
    found = scheme.quantize_bias(bias, steps)
    assert found.tolist() == [min(value, 2**30) for value in unlimited]


@pytest.mark.parametrize(("weight", "source"), [(1e-40, 0.1), (1e-34, 1e-8), (1e-20, 1e-30)])
def test_a_scale_too_small_for_float32_is_one(weight: float, source: float) -> None:
    """The weights', or its product with the input's, which the bias is divided by."""
    scale = scheme.weight_scale(np.full((2, 1, 1, 1), weight), np.zeros(2), source, 0)
    assert scale.tolist() == [1, 1]
    assert scheme.quantize_bias(np.zeros(2), scheme.bias_scale(source, scale)).tolist() == [0, 0]


@pytest.mark.parametrize("source", [1e-30, 1.0, 3e38])
def test_absurd_biases_and_scales_overflow_in_silence(source: float) -> None:
    bias = np.array([3e38, -3e38, 0], np.float32)
    scale = scheme.weight_scale(np.full((3, 1, 1, 1), 3e38), bias, source, 0)
    steps = scheme.quantize_bias(bias, scheme.bias_scale(source, scale))
    assert np.abs(steps.astype(np.int64)).max() <= 2**30


def test_the_fixed_output_of_logistic_spans_zero_to_one() -> None:
    ends = scheme.dequantize(np.array([-128, 127], np.int8), scheme.LOGISTIC_OUTPUT)
    assert ends.tolist() == [0, 255 / 256]


def test_torch_quantises_alike(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.normal(0, 2, 5000).astype(np.float32)
    q = scheme.activation_quantization(-3, 5)
    theirs = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(x), q.scale[0], q.zero_point[0], -128, 127
    )
    ours = scheme.dequantize(scheme.quantize(x, q), q)
    # It multiplies by the inverse of the scale: a value next to half a step may fall otherwise.
    steps = np.abs(ours - theirs.numpy()) / q.scale[0]
    assert (steps > 0.5).mean() < 1e-3 and steps.max() < 1.5
