"""Every operator against both oracles, on random shapes, scales and zero points at the ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, parse
from firmware_ref.ops import PREPARE
from firmware_ref.oracle import ORACLES, session
from firmware_ref.run import Interpreter
from firmware_ref.verify import verify
from tests.firmware_ref.build import Model, random_int8
from tests.firmware_ref.draws import CASES
from tests.firmware_ref.parts import Draw, few


def inputs_of(graph: Graph, rng: np.random.Generator) -> np.ndarray:
    """All at the one end, all at the other, and two at random; none negative for RSQRT."""
    source = graph.tensors[graph.inputs[0]]
    inputs = random_int8(rng, (4, *source.shape[1:]))
    inputs[0], inputs[1] = -128, 127
    if graph.operators[0].kind == "RSQRT":
        assert source.quantization
        inputs = np.maximum(inputs, np.int8(source.quantization.zero_point[0]))
    return inputs


@pytest.mark.parametrize("kind", CASES)
@few
@given(data=st.data())
def test_equals_both_oracles(kind: str, data: st.DataObject) -> None:
    draw = Draw(data)
    model, x, y = CASES[kind](draw)
    packed = model.pack([x], [y])
    graph = parse(packed)
    assert graph.operators[-1].kind == kind
    report = verify(graph, packed, inputs_of(graph, draw.rng()), list(ORACLES.values()))
    assert report.ok, report


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(PREPARE)


def table_of(
    kind: str, scale: float, zero: int, out: tuple[float, int]
) -> tuple[bytes, np.ndarray]:
    """A model of one operator on all 256 int8 values, and those values."""
    model = Model()
    x = model.tensor("x", (1, 256), scale, zero)
    y = model.tensor("y", (1, 256), *out)
    model.add(kind, [x], [y])
    return model.pack([x], [y]), np.arange(-128, 128, dtype=np.int8)[None]


@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-7, 2.0, 4.0, 9.5])
def test_logistic_is_tflm_where_the_oracles_differ(scale: float) -> None:
    """At ties and on coarse scales tflite-runtime rounds a float table; the device does not."""
    data, inputs = table_of("LOGISTIC", scale, 0, (1 / 256, -128))
    report = verify(parse(data), data, inputs, list(ORACLES.values()))
    by_name = {result.name: result.mismatches for result in report.oracles}
    assert by_name["tflite-micro"] == 0
    assert 0 < by_name["tflite-runtime"] < 4


def test_every_int8_value_of_rsqrt() -> None:
    """Up to a product of 2^12 of the input scale's root and the output scale, the largest."""
    rng = np.random.default_rng(5)
    scales = [
        (2.0**exponent, float(np.float32(2.0 ** rng.uniform(-8, min(6, 12 - exponent / 2)))))
        for exponent in range(-24, 25)
    ]
    for source, output in [*scales, (2.0**12, 2.0**6), (2.0**24, 1.0), (2.0**-4, 2.0**14)]:
        data, inputs = table_of("RSQRT", source, -128, (output, int(rng.integers(-128, 128))))
        assert verify(parse(data), data, inputs, list(ORACLES.values())).ok, (source, output)


@pytest.mark.parametrize("scales", [(1.0, 2.0**-11), (0.7, 2.0**-12), (2.0**-14, 2.0**-25)])
def test_squared_differences_just_below_a_multiplier_of_one(scales: tuple[float, float]) -> None:
    model, rng = Model(), np.random.default_rng(6)
    x = model.tensor("x", (1, 256), scales[0], -128)
    c = model.tensor("c", (1, 256), scales[0], 127, rng.integers(-128, 128, 256))
    y = model.tensor("y", (1, 256), scales[1], 0)
    model.add("SQUARED_DIFFERENCE", [x, c], [y])
    data = model.pack([x], [y])
    inputs = np.arange(-128, 128, dtype=np.int8)[None]
    assert verify(parse(data), data, inputs, list(ORACLES.values())).ok


def test_rsqrt_refuses_a_negative_number_as_the_oracles_do() -> None:
    data, inputs = table_of("RSQRT", 0.5, 0, (0.25, -128))
    with pytest.raises(InputError, match=r"'y': input -128 is below its zero point 0"):
        Interpreter(parse(data)).run(inputs)
    assert Interpreter(parse(data)).run(np.abs(inputs.clip(-127)))[0, 128] == 127
    for oracle in ORACLES.values():
        with pytest.raises(InputError, match="refuses"):
            session(oracle, data, parse(data))(inputs)
