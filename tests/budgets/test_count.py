"""Parameters, MACs, bytes and work, by hand and against the challenge's own counters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budgets.count import CONVENTIONS, bytes_by_part, count_graph, count_network
from budgets.rules import (
    constant_bytes,
    elementwise_work,
    nessi_macs,
    plain_macs,
    reduction_work,
)
from firmware_ref.arch import PRESETS, layers, preset
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from tests.firmware_ref.build import Model

# Of the DCASE 2022 baseline, printed by the challenge's own counter; see the `baseline` fixture.
NESSI_ROWS = {
    "conv2d_input_int8": (0, 0),
    "activation/Relu": (1_599_360, 848),
    "activation_1/Relu": (25_589_760, 12_608),
    "max_pooling2d/MaxPool": (32_000, 0),
    "activation_2/Relu": (2_007_040, 25_216),
    "max_pooling2d_1/MaxPool": (2_560, 0),
    "dense/Relu": (3_200, 6_800),
    "dense_1/BiasAdd": (1_000, 1_040),
    "Identity_int8": (0, 0),
    "Identity": (0, 0),
}


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "torchinfo"),
    [
        # The first two figures of report-125k are those that the technical report prints.
        ("report-125k", 125_330, 8_637_000, 8_915_378),
        ("qti-c40", 111_202, 9_098_140, 9_105_822),
        ("qti-c80", 314_650, 33_926_360, 33_941_480),
    ],
)
def test_totals_of_the_presets(name: str, parameters: int, macs: int, torchinfo: int) -> None:
    count = count_network(preset(name))
    assert (count.name, count.kind) == (name, "network")
    assert (count.parameters, count.macs) == (parameters, macs)
    assert count.conventions["torchinfo"].macs == torchinfo
    assert count.conventions["torchinfo"].parameters == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_rows_add_up_and_are_named_after_layers(name: str) -> None:
    count = count_network(preset(name))
    assert [row.name for row in count.layers] == [layer.name for layer in layers(preset(name))]
    assert sum(row.parameters for row in count.layers) == count.parameters
    assert sum(row.macs for row in count.layers) == count.macs


def test_stem_by_hand() -> None:
    rows = {row.name: row for row in count_network(preset("report-125k")).layers}
    stem = rows["stem.conv"]
    assert stem.output_shape == (40, 64, 22)
    assert stem.parameters == 40 * 3 * 5 * 5 + 40
    assert stem.macs == 40 * 3 * 5 * 5 * 64 * 22
    assert (rows["stem.norm"].parameters, rows["stem.norm"].macs) == (2 * 40, 0)


def test_nessi_reproduces_the_challenge_baseline(baseline: Graph) -> None:
    rows = {
        baseline.name(operator): (
            nessi_macs(baseline, operator),
            constant_bytes(baseline, operator),
        )
        for operator in baseline.operators
    }
    assert rows == NESSI_ROWS
    total = count_graph(baseline, "baseline", file_bytes=0).conventions["nessi_tflite"]
    assert (total.parameters, total.macs) == (46_512, 29_234_920)


def test_plain_count_of_the_challenge_baseline(baseline: Graph) -> None:
    count = count_graph(baseline, "baseline", file_bytes=60_000)
    weights, biases = 784 + 12_544 + 25_088 + 6_400 + 1_000, 174
    assert count.kind == "tflite"
    assert count.parameters == weights + biases
    # All 64 inputs of the dense layer, where NeSsi takes the last dimension, 32.
    assert count.macs == 1_599_360 + 25_589_760 + 2_007_040 + 6_400 + 1_000
    assert count.sizes == {"weights": weights, "biases": 4 * biases, "other": 0, "file": 60_000}
    assert [row.name for row in count.layers] == list(NESSI_ROWS)
    assert count.layers[1].output_shape == (1, 40, 51, 16)
    assert set(count.conventions) <= set(CONVENTIONS)


def test_depthwise_mean_and_add_by_hand(builder) -> None:
    x = builder.add(Tensor("input", (1, 8, 6, 4), "int8"))
    inputs = (x, builder.constant((1, 3, 1, 4)), builder.constant((4,), "int32"))
    y = builder.op("DEPTHWISE_CONV_2D", "frequency_conv", inputs, (1, 8, 6, 4))
    axes = builder.add(_plain_integers((1,)))
    z = builder.op("MEAN", "mean", (y, axes), (1, 1, 6, 4))
    builder.op("ADD", "sum", (y, z), (1, 8, 6, 4))
    graph = builder.build()

    elements = 8 * 6 * 4
    assert [plain_macs(graph, op) for op in graph.operators] == [3 * elements, 0, 0]
    assert [nessi_macs(graph, op) for op in graph.operators] == [3 * elements, elements, elements]
    assert [constant_bytes(graph, op) for op in graph.operators] == [12 + 4 * 4, 4, 0]
    count = count_graph(graph, "block", file_bytes=1)
    assert [row.parameters for row in count.layers] == [12 + 4, 0, 0]
    assert [row.weight_bytes for row in count.layers] == [12, 0, 0]
    assert [row.bias_bytes for row in count.layers] == [4 * 4, 0, 0]
    assert [row.other_bytes for row in count.layers] == [0, 4, 0]
    assert not count.not_int8
    assert not count.not_counted


def _plain_integers(shape: tuple[int, ...]) -> Tensor:
    return Tensor("integers", shape, "int32", None, np.zeros(shape, np.int32))


def test_elementwise_and_reduction_work_by_hand(builder) -> None:
    """Element-wise: what is computed. Reductions: what is read, once for every window it is in."""
    x = builder.add(Tensor("input", (1, 8, 6, 4), "int8"))
    axes = builder.add(_plain_integers((1,)))
    window = {"filter_height": 3, "filter_width": 2, "stride_h": 1, "stride_w": 2}
    inputs = (x, builder.constant((4, 1, 1, 4)), builder.constant((4,), "int32"))
    work = [
        ("CONV_2D", inputs, (1, 8, 6, 4), {}, (0, 0)),
        ("ADD", (x, builder.constant((1, 1, 6, 4))), (1, 8, 6, 4), {}, (192, 0)),
        ("RSQRT", (x,), (1, 8, 6, 4), {}, (192, 0)),
        ("MUL", (builder.constant((1, 8, 1, 1)), builder.constant((1, 6))), (1, 8, 6), {}, (48, 0)),
        ("MEAN", (x, axes), (1, 1, 6, 4), {}, (0, 192)),
        ("SUM", (x, axes), (1, 8, 6, 1), {}, (0, 192)),
        ("AVERAGE_POOL_2D", (x,), (1, 6, 3, 4), window, (0, 6 * 3 * 4 * 6)),
        ("MAX_POOL_2D", (x,), (1, 6, 3, 4), window, (0, 6 * 3 * 4 * 6)),
        ("RESHAPE", (x,), (1, 192), {}, (0, 0)),
        ("CUSTOM:Magic", (x,), (1, 8), {}, (0, 0)),
    ]
    for number, (kind, inputs, shape, options, _) in enumerate(work):
        builder.op(kind, f"y{number}", inputs, shape, **options)
    graph = builder.build()
    found = [(elementwise_work(graph, op), reduction_work(graph, op)) for op in graph.operators]
    assert found == [wanted for *_, wanted in work]
    rows = count_graph(graph, "work", 1).layers
    assert [(row.elementwise, row.reductions) for row in rows] == found


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("MEAN", 0), ("MUL", 0), ("ADD", 1), ("RESHAPE", 0), ("CONCATENATION", 0), ("RELU", 0)],
)
def test_an_operator_without_inputs_is_refused_where_it_is_known(builder, kind, missing) -> None:
    builder.add(Tensor("input", (1, 8), "int8"))
    builder.op("CUSTOM:Magic", "absent", (-1, -1), (1, 8))
    count = count_graph(builder.build(), "odd", 1)
    assert [(row.parameters, row.macs, row.elementwise) for row in count.layers] == [(0, 0, 0)]
    builder.op(kind, "layer", range(missing), (1, 8))
    with pytest.raises(InputError, match=f"{kind} 'layer' has no input {missing}"):
        count_graph(builder.build(), "odd", 1)


def test_bytes_of_a_file_by_part(builder) -> None:
    """Four scales, shared by two tensors, and one; as many zero points, of eight bytes.

    Two tensors share the buffer of their weights, which is there once, and a third has as many
    values in a buffer of its own.
    """
    grids = Quantization((0.5, 0.25, 0.5, 1.0), (0, 0, 0, 0)), Quantization((0.5,), (0,))
    x = builder.add(Tensor("input", (1, 4), "int8", grids[1]))
    weights = np.zeros((4, 4), np.int8)
    a = builder.add(Tensor("a", (4, 4), "int8", grids[0], weights))
    b = builder.add(Tensor("b", (4, 4), "int8", replace(grids[0]), weights))
    c = builder.add(Tensor("c", (4, 4), "int8", grids[1], weights.copy()))
    bias = builder.add(Tensor("bias", (4,), "int32", None, np.zeros(4, np.int32)))
    x = builder.op("FULLY_CONNECTED", "first", (x, a, bias), (1, 4))
    x = builder.op("FULLY_CONNECTED", "second", (x, b, bias), (1, 4))
    builder.op("FULLY_CONNECTED", "third", (x, c, bias), (1, 4))
    graph = replace(builder.build(), metadata={"labels": b"12345", "more": b"678"})
    parts = bytes_by_part(graph, 500)
    assert parts == {
        "weights": 32,
        "integers": 16,
        "quantization": 5 * 4 + 5 * 8,
        "metadata": 8,
        "graph": 500 - 32 - 16 - 60 - 8,
    }
    assert count_graph(graph, "file", 500).parts == parts
    assert count_graph(graph, "no file").parts == {}


def test_a_buffer_that_two_tensors_of_a_file_share_is_there_once() -> None:
    """10,000 weights: twice as many would be more bytes than the file has."""
    model = Model()
    x, y, z = (model.tensor(name, (1, 100), 0.5) for name in "xyz")
    ones = np.ones((100, 100), np.int8)
    first = model.tensor("first", (100, 100), 0.5, data=ones)
    second = model.tensor("second", (100, 100), 0.5)
    model.tensors[second].buffer = model.tensors[first].buffer
    model.add("FULLY_CONNECTED", [x, first, -1], [y])
    model.add("FULLY_CONNECTED", [y, second, -1], [z])
    data = model.pack([x], [z])
    count = count_graph(parse(data), "m.tflite", len(data))
    assert count.parts["weights"] == 10_000 and sum(count.parts.values()) == len(data)
    assert 0 < count.parts["graph"] < len(data) - 10_000
    assert count.sizes["weights"] == count.parameters == 20_000


def test_elementwise_constants_count_unless_single(builder) -> None:
    x = builder.add(Tensor("input", (1, 8, 6, 4), "int8"))
    x = builder.op("MUL", "scale", (x, builder.constant((1, 1, 1, 4))), (1, 8, 6, 4))
    x = builder.op("ADD", "epsilon", (x, builder.constant((1,))), (1, 8, 6, 4))
    shape = builder.add(_plain_integers((2,)))
    builder.op("RESHAPE", "reshape", (x, shape), (1, 192))
    count = count_graph(builder.build(), "norm", file_bytes=1)
    assert [row.parameters for row in count.layers] == [4, 0, 0]
    assert count.sizes == {"weights": 4, "biases": 0, "other": 1 + 2 * 4, "file": 1}
    assert count.conventions["nessi_tflite"].parameters == 4 + 1 + 2 * 4


def test_a_shared_constant_counts_at_each_use(builder) -> None:
    x = builder.add(Tensor("input", (1, 8, 6, 4), "int8"))
    weights, bias = builder.constant((4, 1, 1, 4)), builder.constant((4,), "int32")
    x = builder.op("CONV_2D", "first", (x, weights, bias), (1, 8, 6, 4))
    builder.op("CONV_2D", "second", (x, weights, -1), (1, 8, 6, 4))
    count = count_graph(builder.build(), "shared", file_bytes=1)
    assert [row.parameters for row in count.layers] == [16 + 4, 16]


def test_float_tensors_and_unknown_operators_are_named(builder) -> None:
    x = builder.add(Tensor("input", (1, 8), "int8"))
    x = builder.op("CUSTOM:Magic", "spell", (x,), (1, 8))
    builder.op("BATCH_MATMUL", "product", (x, builder.constant((8, 8), "float32")), (1, 8))
    count = count_graph(builder.build(), "odd", file_bytes=1)
    assert count.not_int8 == ("constant2: float32",)
    assert count.not_counted == ("spell: CUSTOM:Magic", "product: BATCH_MATMUL")
    assert count.parameters == 64


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16"])
def test_a_quantised_tensor_of_another_type_is_not_int8(builder, dtype: str) -> None:
    x = builder.add(Tensor("input", (1, 8), "int8"))
    builder.op("MUL", "scale", (x, builder.constant((8,), dtype)), (1, 8))
    assert count_graph(builder.build(), "g", file_bytes=1).not_int8 == (f"constant1: {dtype}",)


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8", "int64", "float32"])
def test_an_activation_of_another_type_is_not_int8(builder, dtype: str) -> None:
    """Quantised or not; integers that are constants are axes and shapes."""
    builder.add(Tensor("input", (1, 8), dtype))
    y = builder.add(Tensor("y", (1, 2, 4), dtype, Quantization((0.5,), (0,))))
    shape = builder.add(_plain_integers((3,)))
    builder.operators.append(Operator("RESHAPE", (0, shape), (y,)))
    count = count_graph(builder.build(), "g", file_bytes=1)
    # The builder takes the last tensor for the output, here the shape.
    assert count.not_int8 == (f"input: {dtype}", f"y: {dtype}")


def test_a_layer_writes_all_its_outputs(builder) -> None:
    x, axis = builder.add(Tensor("input", (1, 8), "int8")), builder.add(_plain_integers((1,)))
    parts = [builder.add(Tensor(name, (1, size), "int8")) for name, size in (("a", 5), ("b", 3))]
    builder.operators.append(Operator("SPLIT", (axis, x), tuple(parts)))
    (row,) = count_graph(builder.build(), "g", file_bytes=1).layers
    assert (row.name, row.output_shape, row.activation_bytes) == ("a", (1, 5), 8)
    assert row.live_bytes == 16


@pytest.mark.parametrize(
    ("kind", "weights", "match"),
    [
        ("CONV_2D", (4, 4), "weights of shape"),
        ("FULLY_CONNECTED", (4,), "weights of shape"),
        ("DEPTHWISE_CONV_2D", None, "has no input 1"),
    ],
)
def test_malformed_weights_are_refused(builder, kind, weights, match) -> None:
    x = builder.add(Tensor("input", (1, 4), "int8"))
    inputs = (x,) if weights is None else (x, builder.constant(weights))
    builder.op(kind, "layer", inputs, (1, 4))
    with pytest.raises(InputError, match=match):
        count_graph(builder.build(), "g", file_bytes=1)
