"""The device graph: its operators by hand, its counts by `arch`, ResNorm by its equations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from firmware_ref.arch import PRESETS, Network, layers, preset
from firmware_ref.graph import Graph, Operator
from firmware_ref.lowering import lower
from firmware_ref.scheme import WEIGHT_AXIS, dequantize

SMALL = Network(
    "small",
    stem_channels=6,
    widths=(6, 8),
    blocks=(1, 1),
    pool_after=(1,),
    head_channels=16,
    input_bands=32,
    input_frames=20,
    first_res_norm="stem",
)
NETWORKS = [
    *PRESETS.values(),
    SMALL,
    dataclasses.replace(SMALL, ssn_bands=4, head_channels=None),
    dataclasses.replace(SMALL, res_norm=False, widths=(12, 12), conv_bias=True),
]
named = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)


def kinds(graph: Graph) -> list[tuple[str, str]]:
    return [(operator.kind, graph.name(operator)) for operator in graph.operators]


def test_operators_of_a_small_network_by_hand() -> None:
    res_norm = [
        ("MEAN", "mean"),
        ("SUB", "centered"),
        ("MUL", "square"),
        ("MEAN", "variance"),
        ("RSQRT", "rsqrt"),
        ("ADD", "gain"),
        ("MUL", "scaled"),
        ("MUL", "offset"),
    ]
    block = [
        ("DEPTHWISE_CONV_2D", "frequency_conv"),
        ("MEAN", "mean"),
        ("DEPTHWISE_CONV_2D", "temporal_conv"),
        ("LOGISTIC", "sigmoid"),
        ("MUL", "silu"),
        ("CONV_2D", "project"),
    ]

    def under(name: str, operators: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(kind, f"{name}.{part}") for kind, part in operators]

    assert kinds(lower(SMALL)) == [
        ("CONV_2D", "stem.conv"),
        *under("stem.res_norm", res_norm),
        ("ADD", "stem.res_norm"),
        *under("stage1.block1", [*block, ("ADD", "broadcast_sum"), ("ADD", "sum")]),
        ("MAX_POOL_2D", "stage1.pool"),
        *under("stage1.res_norm", res_norm),
        ("ADD", "stage1.res_norm"),
        *under("stage2.block1", [("CONV_2D", "expand"), *block, ("ADD", "sum")]),
        *under("stage2.res_norm", res_norm),
        ("ADD", "stage2.res_norm"),
        ("CONV_2D", "head.conv"),
        ("MEAN", "head.pool"),
        ("CONV_2D", "classifier"),
        ("RESHAPE", "logits"),
    ]


def test_relu_is_fused_where_the_network_has_it() -> None:
    graph = lower(SMALL)
    fused = {graph.name(o) for o in graph.operators if o.options.get("fused_activation") == "RELU"}
    sums = {"stage1.block1.sum", "stage2.block1.sum"}
    assert fused == {"stem.conv", "stage2.block1.expand", "head.conv", *sums}


def test_sub_bands_add_a_product_and_a_sum_to_every_block() -> None:
    plain, split = (lower(dataclasses.replace(SMALL, ssn_bands=s)) for s in (1, 2))
    blocks = ("stage1.block1", "stage2.block1")
    added = {("MUL", f"{b}.ssn_scale") for b in blocks}
    added |= {("ADD", f"{b}.sub_spectral_norm") for b in blocks}
    assert set(kinds(split)) - set(kinds(plain)) == added
    shapes = {t.name: t.shape for t in split.tensors}
    assert shapes["stage2.block1.ssn_scale/weight"] == (1, 8, 1, 8)
    assert shapes["stage2.block1.sub_spectral_norm/bias"] == (1, 8, 1, 8)


@named
def test_every_tensor_has_one_name_one_writer_and_is_written_before_it_is_read(
    network: Network,
) -> None:
    graph = lower(network)
    assert len({t.name for t in graph.tensors}) == len(graph.tensors)
    written = set(graph.inputs)
    computed = {o.outputs[0] for o in graph.operators}
    for operator in graph.operators:
        for index in operator.inputs:
            assert index in written or index not in computed
        (output,) = operator.outputs
        assert output not in written
        written.add(output)
    assert set(graph.outputs) <= written
    assert graph.tensors[graph.inputs[0]].shape[1:] == (
        network.input_bands,
        network.input_frames,
        network.input_channels,
    )
    assert graph.tensors[graph.outputs[0]].shape == (1, network.classes)


@named
def test_every_layer_is_in_the_graph_under_its_name_and_in_its_shape(network: Network) -> None:
    graph = lower(network)
    shapes = {t.name: t.shape for t in graph.tensors}
    for layer in layers(network):
        channels, bands, frames = layer.output_shape
        folded = layer.kind == "batch_norm" or (
            layer.kind == "sub_spectral_norm" and network.ssn_bands == 1
        )
        if folded:
            assert layer.name not in shapes
        else:
            assert shapes[layer.name] == (1, bands, frames, channels)


@named
def test_convolutions_have_the_weights_and_macs_of_the_network(network: Network) -> None:
    graph, table = lower(network), {layer.name: layer for layer in layers(network)}
    convolutions = [o for o in graph.operators if o.kind in WEIGHT_AXIS]
    assert len(convolutions) == sum(layer.kind == "conv" for layer in table.values())
    for operator in convolutions:
        layer = table[graph.name(operator)]
        weight, bias, out = (
            graph.tensors[i] for i in (operator.inputs[1], operator.inputs[2], operator.outputs[0])
        )
        assert weight.name == f"{layer.name}/weight" and bias.name == f"{layer.name}/bias"
        assert math.prod(weight.shape) == layer.weights
        assert bias.shape == (out.shape[3],) == (weight.shape[WEIGHT_AXIS[operator.kind]],)
        positions = out.shape[1] * out.shape[2]
        assert math.prod(weight.shape) * positions == layer.multiply_accumulates


def test_strides_and_padding() -> None:
    graph = lower(preset("report-125k"))
    for operator in graph.operators:
        if operator.kind in WEIGHT_AXIS:
            stride = 2 if graph.name(operator) == "stem.conv" else 1
            options = operator.options
            assert (options["stride_h"], options["stride_w"]) == (stride, stride)
            assert options["padding"] == "SAME"
        elif operator.kind == "MAX_POOL_2D":
            assert operator.options["padding"] == "VALID"


def evaluate(graph: Graph, operators: list[Operator], values: dict[str, np.ndarray]) -> None:
    """Real arithmetic of element-wise operators and means, into ``values`` by name."""
    functions: dict[str, Callable[..., np.ndarray]] = {
        "ADD": np.add,
        "SUB": np.subtract,
        "MUL": np.multiply,
        "RSQRT": lambda x: 1 / np.sqrt(x),
    }
    for operator in operators:
        operands = []
        for tensor in (graph.tensors[i] for i in operator.inputs):
            if tensor.name in values:
                operands.append(values[tensor.name])
            elif tensor.quantization is not None and tensor.data is not None:
                operands.append(dequantize(tensor.data, tensor.quantization).astype(np.float64))
            else:
                assert tensor.data is not None
                operands.append(tensor.data)
        if operator.kind == "MEAN":
            x, axes = operands
            y = x.mean(axis=tuple(int(a) for a in axes), keepdims=True)
        else:
            y = functions[operator.kind](*operands)
        values[graph.name(operator)] = y


@pytest.mark.parametrize("identity_weight", [0.1, 1.0, 3.7])
def test_residual_normalisation_computes_its_equation(
    identity_weight: float, rng: np.random.Generator
) -> None:
    network = dataclasses.replace(SMALL, first_res_norm="input", res_norm_lambda=identity_weight)
    graph = lower(network)
    x = rng.normal(3, 2, (1, 32, 20, 3))
    values = {"input": x}
    end = [graph.name(o) for o in graph.operators].index("input_norm")
    evaluate(graph, list(graph.operators[: end + 1]), values)
    expected = np.empty_like(x)
    for band in range(32):
        part = x[0, band]
        expected[0, band] = identity_weight * part + (part - part.mean()) / part.std()
    np.testing.assert_allclose(values["input_norm"], expected, rtol=0, atol=1e-6 * identity_weight)


def test_lambda_is_one_constant_shared_by_all() -> None:
    graph = lower(preset("report-125k"))
    (index,) = [i for i, t in enumerate(graph.tensors) if t.name == "res_norm.lambda"]
    tensor = graph.tensors[index]
    assert tensor.data is not None and tensor.quantization is not None
    np.testing.assert_allclose(dequantize(tensor.data, tensor.quantization), 0.1, rtol=1e-7)
    assert sum(index in operator.inputs for operator in graph.operators) == 2 * 5
