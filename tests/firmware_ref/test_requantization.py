"""The fast requantisation equals the exact one, and one that does not is never used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_ref.fixedpoint import quantize_multiplier
from firmware_ref.graph import Graph, parse
from firmware_ref.ops import prepare, requantization
from firmware_ref.ops.requantization import (
    MOST_PROVED_CHANNELS,
    PROVED,
    FloatStaircase,
    Staircase,
    fastest,
    proved,
)
from tests.firmware_ref.build import Model
from tests.firmware_ref.c_text import c_mbqm
from tests.firmware_ref.parts import few

# Reals of one channel: any, powers of two (whose steps are ties), and next to powers of two.
REALS = st.one_of(
    st.floats(-31.9, 0).map(lambda exponent: 2.0**exponent),
    st.integers(-32, -1).map(lambda exponent: 2.0**exponent),
    st.integers(-31, -1).map(lambda exponent: 2.0**exponent * (1 - 2.0**-31)),
    st.integers(-31, -1).map(lambda exponent: 2.0**exponent * (1 + 2.0**-30)),
    st.sampled_from([1 / 3, 0.75, 1 - 2.0**-31, 3 * 2.0**-12, 1e-9]),
)
ZERO_POINTS = st.one_of(st.sampled_from([-128, 0, 127]), st.integers(-128, 127))


@st.composite
def staircases(draw: st.DrawFn, reals: st.SearchStrategy[float] = REALS) -> Staircase:
    """One to three channels; the clamp of NONE, of a RELU, or any other."""
    channels = draw(st.integers(1, 3))
    pairs = [quantize_multiplier(draw(reals)) for _ in range(channels)]
    reach = draw(st.sampled_from([3, 1000, 10**6, 2**30]))
    bias = [draw(st.integers(-reach, reach)) for _ in range(channels)]
    zero = draw(ZERO_POINTS)
    low = draw(st.sampled_from([-128, zero, draw(st.integers(-128, zero))]))
    high = draw(st.sampled_from([127, draw(st.integers(zero, 127))]))
    multiplier, shift = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    return Staircase(np.array(bias, np.int64), multiplier, shift, zero, low, high)


def assert_equal(exact: Staircase, found: object, sums: np.ndarray) -> None:
    """On integers (N, C), in the float dtype in which a product of matrices gives them."""
    assert isinstance(found, Staircase | FloatStaircase)
    wanted = exact(sums)
    assert np.array_equal(found(sums.astype(np.float64)), wanted)
    if np.abs(sums).max() < 2**24:
        assert np.array_equal(found(sums.astype(np.float32)), wanted)


def by_definition(exact: Staircase, sums: np.ndarray) -> np.ndarray:
    """The kernels' text, channel by channel in Python integers."""
    result = np.empty(sums.shape, np.int8)
    for place, value in np.ndenumerate(sums):
        c = place[-1]
        total = int(value) + int(exact.bias[c])
        scaled = c_mbqm(total, int(exact.multiplier[c]), int(exact.shift[c]))
        result[place] = min(max(scaled + exact.zero_point, exact.low), exact.high)
    return result


@few
@given(staircases(), st.integers(-(2**20), 2**20))
def test_the_exact_form_is_the_definition(exact: Staircase, start: int) -> None:
    sums = np.arange(start, start + 20)[:, None] + np.arange(len(exact.bias))
    assert np.array_equal(exact(sums), by_definition(exact, sums))


@few
@given(staircases(), st.integers(1, 3000), st.integers(1, 4))
def test_equal_on_every_sum_of_a_small_range(
    exact: Staircase, largest: int, positions: int
) -> None:
    channels = len(exact.bias)
    # Moved so that the steps lie inside the range and not beyond it.
    exact = replace(exact, bias=np.clip(exact.bias, -largest, largest))
    found, dtype = fastest(exact, np.full(channels, largest), positions, PROVED)
    assert dtype is np.float32
    count = -(-(2 * largest + 1) // positions) * positions
    sums = np.minimum(np.arange(-largest, count - largest), largest)
    assert_equal(exact, found, np.tile(sums[:, None], channels))


@few
@given(staircases(), st.sampled_from([2**16, 2**24 - 1, 2**24, 2**29]))
def test_equal_on_both_sides_of_every_step_of_a_large_range(exact: Staircase, largest: int) -> None:
    """The steps are found by bisection, which supposes nothing but that the exact form rises."""
    channels = len(exact.bias)
    found, dtype = fastest(exact, np.full(channels, largest), 1, PROVED)
    assert dtype is (np.float32 if largest < 2**24 else np.float64)
    below = np.full((256, channels), -largest)
    above = np.full((256, channels), largest)
    codes = np.arange(-128, 128)[:, None]
    while (above - below > 1).any():
        middle = (below + above) // 2
        reached = exact(middle) >= codes
        above, below = np.where(reached, middle, above), np.where(reached, below, middle)
    for distance in (-2, -1, 0, 1, 2):
        for side in (below, above):
            assert_equal(exact, found, np.clip(side + distance, -largest, largest))


def test_the_float_form_is_what_ordinary_layers_get() -> None:
    """Else the tests above would compare the exact form with itself."""
    rng = np.random.default_rng(0)
    pairs = [quantize_multiplier(real) for real in 2.0 ** rng.uniform(-12, -1, 64)]
    multiplier, shift = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    exact = Staircase(rng.integers(-5000, 5000, 64), multiplier, shift, 3, -128, 127)
    for low in (-128, 3):
        found, _ = fastest(replace(exact, low=low), np.full(64, 2**23), 5, PROVED)
        assert isinstance(found, FloatStaircase)
        assert found.scale.shape == (5 * 64,)
        sums = rng.integers(-(2**16), 2**16, (2, 4, 5, 64))
        assert found(sums).shape == sums.shape
        assert np.array_equal(found(sums), replace(exact, low=low)(sums))


def test_one_multiplier_for_all_channels() -> None:
    multiplier, shift = quantize_multiplier(0.0123)
    bias = np.array([5, -700, 31])
    exact = Staircase(bias, np.array([multiplier]), np.array([shift]), 0, -128, 127)
    found, _ = fastest(exact, np.full(3, 2**15), 2, PROVED)
    assert isinstance(found, FloatStaircase)
    sums = np.arange(-6000, 6000).reshape(-1, 3)
    assert np.array_equal(found(sums), exact(sums))


@pytest.mark.parametrize(
    ("multiplier", "shift"),
    [(2**30, 1), (2**31 - 1, 5), (0, 0), (0, -3)],
    ids=["one", "large", "zero", "zero shifted"],
)
def test_a_left_shift_or_no_multiplier_stays_exact(multiplier: int, shift: int) -> None:
    q, s = quantize_multiplier(0.01)
    exact = Staircase(
        np.array([3, 4]), np.array([q, multiplier]), np.array([s, shift]), 0, -128, 127
    )
    found, _ = fastest(exact, np.array([1000, 1000]), 7, PROVED)
    assert found is exact


@pytest.mark.parametrize(
    ("channels", "most", "fast"),
    [
        (MOST_PROVED_CHANNELS, PROVED, True),
        (MOST_PROVED_CHANNELS + 1, PROVED, False),
        (10, 10, True),
        (10, 9, False),
        (1, 0, False),
    ],
)
def test_more_channels_than_may_be_proved_stay_exact(channels: int, most: int, fast: bool) -> None:
    multiplier, shift = (np.array([part]) for part in quantize_multiplier(0.0123))
    exact = Staircase(np.arange(channels), multiplier, shift, 0, -128, 127)
    found, dtype = fastest(exact, np.full(channels, 2**15), 1, most)
    assert isinstance(found, FloatStaircase if fast else Staircase) and dtype is np.float32
    sums = np.arange(channels) % 20000 - 10000
    assert np.array_equal(found(sums[None]), exact(sums[None]))


def matrices(kind: str, operators: int, channels: int) -> Graph:
    """Operators that all read one input and one constant of so many output channels."""
    model = Model()
    shape = (channels, 1) if kind == "FULLY_CONNECTED" else (channels, 1, 1, 1)
    shape = shape[::-1] if kind == "DEPTHWISE_CONV_2D" else shape
    axis = shape.index(channels)
    x = model.tensor("x", (1,) * len(shape), 0.5, 0)
    weights = np.arange(channels) % 255 - 127
    scales = 0.01 + np.arange(channels) * 1e-6
    w = model.tensor("w", shape, scales, 0, weights.reshape(shape), axis=axis)
    options = {} if kind == "FULLY_CONNECTED" else {"strideH": 1, "strideW": 1}
    if kind == "DEPTHWISE_CONV_2D":
        options["depthMultiplier"] = channels
    for number in range(operators):
        y = model.tensor(f"y{number}", (*(1,) * (len(shape) - 1), channels), 0.5, 0)
        model.add(kind, [x, w], [y], **options)
    return parse(model.pack([x], [y]))


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
@pytest.mark.parametrize(("operators", "fast"), [(8, True), (9, False)])
def test_the_operators_of_a_graph_share_what_may_be_proved(
    kind: str, operators: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no file, however many operators it has, takes long to prepare."""
    monkeypatch.setattr(f"firmware_ref.ops.{kind.lower()}.PROVED", 8 * 50)
    counted: list[int] = []

    def counting(exact: Staircase, *rest: Any) -> bool:
        counted.append(len(exact.bias))
        return proved(exact, *rest)

    monkeypatch.setattr(requantization, "proved", counting)
    graph = matrices(kind, operators, 50)
    for operator in graph.operators:
        prepare(operator, graph)
    assert counted == ([50] * operators if fast else [])


def test_large_sums_ask_for_float64() -> None:
    q, s = quantize_multiplier(2.0**-20)
    exact = Staircase(np.zeros(2, np.int64), np.full(2, q), np.full(2, s), 0, -128, 127)
    assert fastest(exact, np.array([0, 2**24 - 1]), 1, PROVED)[1] is np.float32
    assert fastest(exact, np.array([0, 2**24]), 1, PROVED)[1] is np.float64


# Its steps lie well inside the range, and some sum meets each of them exactly.
Q, S = quantize_multiplier(1 / 60)
EXACT = Staircase(np.array([7, -9]), np.array([Q, Q]), np.array([S, S]), 5, -128, 127)
LARGEST = np.array([2**16, 2**16])


def float_form() -> FloatStaircase:
    """The proved one, of a row of one position."""
    found, _ = fastest(EXACT, LARGEST, 1, PROVED)
    assert isinstance(found, FloatStaircase)
    assert proved(EXACT, found, LARGEST)
    return found


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(
    ("part", "nudge"),
    [
        ("scale", 2e-4 / 60),
        ("scale", -2e-4 / 60),
        ("offset", 1 / 60),
        ("offset", -1 / 60),
        ("half", 1 / 60),
        ("half", -1 / 60),
        ("zero_point", 1),
        ("low", 1),
        ("high", -1),
    ],
)
def test_a_nudged_form_is_not_proved(part: str, nudge: float, channel: int) -> None:
    """By as little as moves one step by one sum."""
    good = float_form()
    if part in ("scale", "offset", "half"):
        vector = getattr(good, part).copy()
        vector[channel] += nudge
        nudged = replace(good, **{part: vector})
    else:
        nudged = replace(good, **{part: getattr(good, part) + int(nudge)})
    sums = np.tile(np.arange(-(2**14), 2**14)[:, None], 2)
    assert not np.array_equal(nudged(sums), EXACT(sums)), "the nudge changes nothing"
    assert not proved(EXACT, nudged, LARGEST)


@few
@given(
    staircases(),
    st.sampled_from(["scale", "offset", "half"]),
    st.floats(1e-7, 1e-2),
    st.sampled_from([-1, 1]),
)
def test_what_is_proved_is_equal(exact: Staircase, part: str, relative: float, sign: int) -> None:
    """A form that is a little off is either refused or without fault on every sum."""
    largest = np.full(len(exact.bias), 4000)
    exact = replace(exact, bias=np.clip(exact.bias, -4000, 4000))
    found, _ = fastest(exact, largest, 1, PROVED)
    if not isinstance(found, FloatStaircase):
        return
    vector = getattr(found, part) * (1 + sign * relative)
    nudged = replace(found, **{part: vector})
    sums = np.tile(np.arange(-4000, 4001)[:, None], len(exact.bias))
    equal = np.array_equal(nudged(sums), exact(sums))
    assert proved(exact, nudged, largest) == equal
