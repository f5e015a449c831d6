from __future__ import annotations

import numpy as np
import pytest

from budgets.count import (
    CONVENTIONS,
    constant_bytes,
    count_graph,
    count_network,
    nessi_macs,
    plain_macs,
    torchinfo_macs,
)
from firmware_ref.arch import PRESETS, layers, preset
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Tensor

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


@pytest.mark.parametrize("name", PRESETS)
def test_torchinfo_agrees_layer_by_layer(name: str) -> None:
    pytest.importorskip("torch")
    torchinfo = pytest.importorskip("torchinfo")
    model_module = pytest.importorskip("train.model")
    network = preset(name)
    model = model_module.build_model(network)
    shape = (1, network.input_channels, network.input_bands, network.input_frames)
    summary = torchinfo.summary(model, input_size=shape, depth=10, verbose=0)

    count = count_network(network)
    assert summary.total_params == count.parameters
    assert summary.total_mult_adds == count.conventions["torchinfo"].macs

    paths = {id(module): path for path, module in model.named_modules()}
    table = {layer.name: layer for layer in layers(network) if layer.parameters}
    seen = {}
    for info in summary.summary_list:
        if info.is_leaf_layer and info.num_params:
            path = paths[id(info.module)]
            # Sub-spectral norm wraps a batch norm of its own.
            seen[path if path in table else path.removesuffix(".norm")] = info
    assert set(seen) == set(table)
    for path, layer in table.items():
        assert seen[path].num_params == layer.parameters, path
        assert seen[path].macs == torchinfo_macs(layer), path


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
    assert count.sizes == {"weights": weights, "biases": 4 * biases, "file": 60_000}
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
    assert not count.not_int8
    assert not count.not_counted


def _plain_integers(shape: tuple[int, ...]) -> Tensor:
    return Tensor("integers", shape, "int32", None, np.zeros(shape, np.int32))


def test_elementwise_constants_count_unless_single(builder) -> None:
    x = builder.add(Tensor("input", (1, 8, 6, 4), "int8"))
    x = builder.op("MUL", "scale", (x, builder.constant((1, 1, 1, 4))), (1, 8, 6, 4))
    x = builder.op("ADD", "epsilon", (x, builder.constant((1,))), (1, 8, 6, 4))
    shape = builder.add(_plain_integers((2,)))
    builder.op("RESHAPE", "reshape", (x, shape), (1, 192))
    count = count_graph(builder.build(), "norm", file_bytes=1)
    assert [row.parameters for row in count.layers] == [4, 0, 0]
    assert count.sizes["weights"] == 4
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
