"""The device graph: its operators by hand, its counts by `arch`, ResNorm by its equations."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest

from firmware_ref.arch import PRESETS, Network, layers, preset
from firmware_ref.graph import Graph, Operator
from firmware_ref.lowering import lower
from firmware_ref.scheme import WEIGHT_AXIS, dequantize
from tests.firmware_ref.reals import evaluate

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
        ("CONV_2D", "mean_over_channels"),
        ("CONV_2D", "mean"),
        ("MUL", "square"),
        ("CONV_2D", "power_over_channels"),
        ("CONV_2D", "power"),
        ("MUL", "squared_mean"),
        ("SUB", "variance"),
        ("RSQRT", "rsqrt"),
        ("ADD", "gain"),
        ("MUL", "offset"),
        ("MUL", "scaled"),
    ]
    temporal = [
        ("DEPTHWISE_CONV_2D", "temporal_conv"),
        ("LOGISTIC", "sigmoid"),
        ("MUL", "silu"),
        ("CONV_2D", "project"),
        ("ADD", "sum"),
    ]
    identity = [
        ("DEPTHWISE_CONV_2D", "frequency_conv"),
        ("AVERAGE_POOL_2D", "mean_sum"),
        ("AVERAGE_POOL_2D", "mean_identity"),
        ("SUB", "mean"),
        *temporal,
    ]
    expanding = [
        ("CONV_2D", "expand"),
        ("DEPTHWISE_CONV_2D", "frequency_conv"),
        ("AVERAGE_POOL_2D", "mean"),
        *temporal,
    ]

    def under(name: str, operators: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(kind, f"{name}.{part}") for kind, part in operators]

    assert kinds(lower(SMALL)) == [
        ("CONV_2D", "stem.conv"),
        *under("stem.res_norm", res_norm),
        ("SUB", "stem.res_norm"),
        *under("stage1.block1", identity),
        ("MAX_POOL_2D", "stage1.pool"),
        *under("stage1.res_norm", res_norm),
        ("SUB", "stage1.res_norm"),
        *under("stage2.block1", expanding),
        *under("stage2.res_norm", res_norm),
        ("SUB", "stage2.res_norm"),
        ("CONV_2D", "head.conv"),
        ("AVERAGE_POOL_2D", "head.pool"),
        ("CONV_2D", "classifier"),
        ("RESHAPE", "logits"),
    ]


def test_relu_is_fused_where_the_network_has_it() -> None:
    graph = lower(SMALL)
    fused = {graph.name(o) for o in graph.operators if o.options.get("fused_activation") == "RELU"}
    sums = {"stage1.block1.sum", "stage2.block1.sum"}
    assert fused == {"stem.conv", "stage2.block1.expand", "head.conv", *sums}


def test_sub_bands_cut_the_frequency_convolution() -> None:
    plain, split = (lower(dataclasses.replace(SMALL, ssn_bands=s)) for s in (1, 2))
    added = set()
    for path in ("stage1.block1.frequency_conv", "stage2.block1.frequency_conv"):
        added |= {("PAD", f"{path}.padded"), ("CONCATENATION", path)}
        added |= {("SLICE", f"{path}.rows{n}") for n in (1, 2)}
        added |= {("DEPTHWISE_CONV_2D", f"{path}.band{n}") for n in (1, 2)}
        assert kinds(plain).count(("DEPTHWISE_CONV_2D", path)) == 1
    assert set(kinds(split)) - set(kinds(plain)) == added
    shapes = {t.name: t.shape for t in split.tensors}
    # Eight bands: one row of padding on either side, and four rows with one more on either side.
    assert shapes["stage2.block1.frequency_conv.padded"] == (1, 10, 5, 8)
    assert shapes["stage2.block1.frequency_conv.rows2"] == (1, 6, 5, 8)
    assert shapes["stage2.block1.frequency_conv.band2"] == (1, 4, 5, 8)
    assert shapes["stage2.block1.frequency_conv.band2/weight"] == (1, 3, 1, 8)
    assert shapes["stage2.block1.frequency_conv.band2/bias"] == (8,)


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
        if layer.kind in ("batch_norm", "sub_spectral_norm"):  # folded into its convolution
            assert layer.name not in shapes
        else:
            assert shapes[layer.name] == (1, bands, frames, channels)


def trained(graph: Graph) -> list[Operator]:
    """The convolutions whose weights are learned."""
    convolutions = [o for o in graph.operators if o.kind in WEIGHT_AXIS]
    return [o for o in convolutions if graph.tensors[o.inputs[1]].data is None]


@named
def test_convolutions_have_the_weights_and_macs_of_the_network(network: Network) -> None:
    graph = lower(network)
    weights: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for operator in trained(graph):
        name = graph.name(operator)
        weight, bias, out = (
            graph.tensors[i] for i in (operator.inputs[1], operator.inputs[2], operator.outputs[0])
        )
        assert weight.name == f"{name}/weight" and bias.name == f"{name}/bias"
        assert bias.shape == (out.shape[3],) == (weight.shape[WEIGHT_AXIS[operator.kind]],)
        layer = re.sub(r"\.band\d+$", "", name)
        weights[layer] += math.prod(weight.shape)
        macs[layer] += math.prod(weight.shape) * out.shape[1] * out.shape[2]
    table = [layer for layer in layers(network) if layer.kind == "conv"]
    # Each sub-band of a frequency convolution has weights of its own.
    copies = {layer.name: 1 for layer in table}
    copies |= {name: network.ssn_bands for name in copies if name.endswith("frequency_conv")}
    assert weights == {layer.name: copies[layer.name] * layer.weights for layer in table}
    assert macs == {layer.name: layer.multiply_accumulates for layer in table}


@named
def test_strides_and_padding(network: Network) -> None:
    graph = lower(network)
    learned = {graph.name(operator) for operator in trained(graph)}
    for operator in graph.operators:
        name, options = graph.name(operator), operator.options
        if operator.kind in WEIGHT_AXIS:
            stride = 2 if name == "stem.conv" else 1
            assert (options["stride_h"], options["stride_w"]) == (stride, stride)
            same = name in learned and not re.search(r"\.band\d+$", name)
            assert options["padding"] == ("SAME" if same else "VALID")
        elif operator.kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
            assert options["padding"] == "VALID"
            strides = options["stride_h"], options["stride_w"]
            assert strides == (options["filter_height"], options["filter_width"])
            if name == "head.pool" or ".mean" in name:
                source = graph.tensors[operator.inputs[0]].shape
                assert options["filter_height"] == source[1]
                assert options["filter_width"] == (source[2] if name == "head.pool" else 1)


@pytest.mark.parametrize("identity_weight", [0.1, 1.0, 3.7])
def test_residual_normalisation_computes_its_equation(
    identity_weight: float, rng: np.random.Generator
) -> None:
    network = dataclasses.replace(SMALL, first_res_norm="input", res_norm_lambda=identity_weight)
    x = rng.normal(3, 2, (1, 32, 20, 3))
    found = evaluate(lower(network), {"input": x}, "input_norm")
    expected = np.empty_like(x)
    for band in range(32):
        part = x[0, band]
        expected[0, band] = identity_weight * part + (part - part.mean()) / part.std()
    # The given constants are float32, and their error grows where a mean is taken off a square.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(identity_weight, 1))


@pytest.mark.parametrize("bands", [1, 2, 4])
@pytest.mark.parametrize("name", ["stage1.block1", "stage2.block1"])
def test_a_block_computes_its_equation(name: str, bands: int, rng: np.random.Generator) -> None:
    """relu(x + f(x) + broadcast(g(mean of f(x)))), with x on the centre tap where it is added."""
    graph = lower(dataclasses.replace(SMALL, ssn_bands=bands, res_norm=False))
    constants = {
        t.name: rng.normal(0, 0.5, t.shape)
        for t in graph.tensors
        if t.data is None and t.name.startswith(name) and t.name.endswith(("/weight", "/bias"))
    }
    source = "stem.conv" if name == "stage1.block1" else "stage1.pool"
    shape = next(t.shape for t in graph.tensors if t.name == source)
    x = rng.normal(0, 1, shape)

    wide, expands = x, f"{name}.expand/weight" in constants
    if expands:
        weight = constants[f"{name}.expand/weight"][:, 0, 0]
        wide = np.maximum(x @ weight.T + constants[f"{name}.expand/bias"], 0)
    rows = wide.shape[1]
    frequency = np.empty_like(wide)
    for row in range(rows):
        part = f".band{row // (rows // bands) + 1}" if bands > 1 else ""
        weight = constants[f"{name}.frequency_conv{part}/weight"][0, :, 0]
        taps = [(row + tap - 1, weight[tap]) for tap in range(3) if 0 <= row + tap - 1 < rows]
        frequency[:, row] = sum(wide[:, r] * w for r, w in taps)
        frequency[:, row] += constants[f"{name}.frequency_conv{part}/bias"]
    mean = frequency.mean(axis=1, keepdims=True)
    padded = np.pad(mean, ((0, 0), (0, 0), (1, 1), (0, 0)))
    weight = constants[f"{name}.temporal_conv/weight"][0, 0]
    z = sum(padded[:, :, tap : tap + mean.shape[2]] * weight[tap] for tap in range(3))
    z = z + constants[f"{name}.temporal_conv/bias"]
    z = z / (1 + np.exp(-z))
    z = z @ constants[f"{name}.project/weight"][:, 0, 0].T + constants[f"{name}.project/bias"]
    # Where the width changes the block has no identity.
    expected = np.maximum((0 if expands else x) + frequency + z, 0)

    if not expands:
        for key in constants:
            if ".frequency_conv" in key and key.endswith("/weight"):
                constants[key][0, 1, 0] += 1
    found = evaluate(graph, {source: x, **constants}, f"{name}.sum")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert expected.std() > 0.1


@named
def test_given_means_are_exact_to_float32_and_shared(network: Network) -> None:
    graph = lower(network)
    given = {
        t.name: t
        for t in graph.tensors
        if t.dtype == "int8" and t.data is not None and t.name != "res_norm.lambda"
    }
    norms = sum(layer.kind == "res_norm" for layer in layers(network))
    for tensor in given.values():
        assert tensor.data is not None and tensor.quantization is not None
        real = dequantize(tensor.data, tensor.quantization)
        np.testing.assert_allclose(real, 1 / tensor.data.size, rtol=2e-7)
    convolutions = [
        o
        for o in graph.operators
        if o.kind == "CONV_2D" and graph.tensors[o.inputs[1]].name in given
    ]
    assert len(convolutions) == 4 * norms
    biases = {o.inputs[2] for o in convolutions}
    assert [graph.tensors[index].name for index in biases] == ["zeros_1/bias"] * min(norms, 1)


def test_as_many_frames_as_channels() -> None:
    """Means over two axes of one length have weights of two shapes."""
    graph = lower(dataclasses.replace(SMALL, stem_channels=10, input_frames=20))
    for operator in graph.operators:
        if operator.kind == "CONV_2D":
            x, weight = (graph.tensors[i] for i in operator.inputs[:2])
            assert weight.shape[3] == x.shape[3], graph.name(operator)


def test_lambda_is_one_constant_shared_by_all() -> None:
    graph = lower(preset("report-125k"))
    (index,) = [i for i, t in enumerate(graph.tensors) if t.name == "res_norm.lambda"]
    tensor = graph.tensors[index]
    assert tensor.data is not None and tensor.quantization is not None
    np.testing.assert_allclose(dequantize(tensor.data, tensor.quantization), 0.1, rtol=1e-7)
    assert sum(index in operator.inputs for operator in graph.operators) == 5
