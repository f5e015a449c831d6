"""What is outside the network family is refused by layer before any C of it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from convert.c99.generate import generate
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from firmware_ref.run import Interpreter
from tests.convert.members import SMALL
from tests.firmware_ref.build import network_graph, write


@pytest.fixture(scope="module")
def small() -> Graph:
    return parse(write(network_graph(SMALL, np.random.default_rng(0))))


Change = Callable[[Graph], Graph]
BANDS = "stage1.block1.frequency_conv"
FAMILY = "C is generated for the network family alone, other graphs run by TFLite Micro"


def _place(graph: Graph, layer: str) -> int:
    return next(n for n, operator in enumerate(graph.operators) if graph.name(operator) == layer)


def _tensor(graph: Graph, index: int, **values: object) -> Graph:
    """The graph with one tensor changed."""
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], **values)
    return replace(graph, tensors=tuple(tensors))


def _layer(
    graph: Graph, layer: str, shape: tuple[int, ...] | None = None, **options: object
) -> Graph:
    """The graph with options of a layer changed, and the shape of its output."""
    operators = list(graph.operators)
    place = _place(graph, layer)
    operators[place] = replace(operators[place], options={**operators[place].options, **options})
    graph = replace(graph, operators=tuple(operators))
    return graph if shape is None else _tensor(graph, operators[place].outputs[0], shape=shape)


def _inputs(graph: Graph, layer: str, *inputs: int) -> Graph:
    """The graph with a layer's inputs cut, or others in their place."""
    operators = list(graph.operators)
    place = _place(graph, layer)
    operators[place] = replace(operators[place], inputs=inputs)
    return replace(graph, operators=tuple(operators))


def _constant(graph: Graph, layer: str, position: int, values: np.ndarray) -> Graph:
    """The graph with a constant of one layer in place of its own, on the same grid."""
    operator = graph.operators[_place(graph, layer)]
    tensor = replace(graph.tensors[operator.inputs[position]], data=values, shape=values.shape)
    inputs = list(operator.inputs)
    inputs[position] = len(graph.tensors)
    return _inputs(replace(graph, tensors=(*graph.tensors, tensor)), layer, *inputs)


def _ending(graph: Graph, layer: str, before: bool = False) -> Graph:
    """The graph's operators up to a layer, or before it."""
    operators = graph.operators[: _place(graph, layer) + (0 if before else 1)]
    return replace(graph, operators=operators, outputs=operators[-1].outputs)


def _reshaped(graph: Graph) -> Graph:
    """The graph with a reshape, into the shape that it has, before all else."""
    source = graph.tensors[graph.inputs[0]]
    shape = Tensor("shape", (4,), "int32", None, np.array(source.shape, np.int32))
    count, first = len(graph.tensors), graph.operators[0]
    reshape = Operator("RESHAPE", (graph.inputs[0], count + 1), (count,), {})
    reads = replace(first, inputs=(count, *first.inputs[1:]))
    tensors = (*graph.tensors, replace(source, name="reshaped"), shape)
    return replace(graph, tensors=tensors, operators=(reshape, reads, *graph.operators[1:]))


def _narrow(graph: Graph) -> Graph:
    """A block's row of one channel, which the sum repeats."""
    graph = _layer(graph, "stage1.block1.project", (1, 1, 22, 1))
    operator = graph.operators[_place(graph, "stage1.block1.project")]
    weights, bias = (graph.tensors[index] for index in operator.inputs[1:])
    assert weights.data is not None and bias.data is not None
    graph = _tensor(graph, operator.inputs[1], quantization=Quantization((0.01,), (0,)))
    graph = _constant(graph, "stage1.block1.project", 1, weights.data[:1])
    return _constant(graph, "stage1.block1.project", 2, bias.data[:1])


def _cropped(graph: Graph) -> Graph:
    """Bands that leave the last frame out, concatenated to a narrower map."""
    block = "stage1.block1.frequency_conv"
    for band in range(1, 5):
        graph = _layer(graph, f"{block}.rows{band}", (1, 18, 21, 6))
        graph = _constant(graph, f"{block}.rows{band}", 2, np.array([1, 18, 21, 6], np.int32))
        graph = _layer(graph, f"{block}.band{band}", (1, 16, 21, 6))
    return _ending(_layer(graph, block, (1, 64, 21, 6)), block)


def _strided_means(graph: Graph) -> Graph:
    """Every other frame's mean over channels, and of those the mean over frames."""
    layer = "stage2.res_norm.mean"
    graph = _layer(graph, f"{layer}_over_channels", (1, 32, 6, 1), stride_w=2)
    return _layer(graph, layer, padding="SAME", stride_w=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: replace(g, operators=g.operators[1:]), "does not read what the step before"),
        (lambda g: replace(g, operators=g.operators[:-3]), "does not give the graph's output"),
        (
            lambda g: _ending(_layer(g, "stage1.pool", (1, 63, 11, 6), stride_h=1), "stage1.pool"),
            "stage1.pool.*windows of .* side by side",
        ),
        (lambda g: _layer(g, "stage1.pool", fused_activation="RELU"), "no fused activation"),
        (
            lambda g: _ending(
                _layer(g, f"{BANDS}.band1", (1, 18, 22, 6), padding="SAME"), f"{BANDS}.band1"
            ),
            "padding VALID",
        ),
        (
            lambda g: _ending(_layer(g, BANDS, (1, 16, 22, 24), axis=3), BANDS),
            "make up the whole map",
        ),
        (_cropped, "make up the whole map"),
        (
            lambda g: _layer(g, f"{BANDS}.band2", fused_activation="RELU"),
            "bands with the same fused activation",
        ),
        (lambda g: _layer(g, "stem.conv", dilation_w_factor=2), "convolution without dilation"),
        (
            lambda g: _layer(g, "stage1.block1.project", (1, 1, 1, 6), stride_w=22),
            "stage1.block1.project': a row as wide as the block's map",
        ),
        (_narrow, "stage1.block1.project': a row as wide as the block's map"),
        (
            lambda g: _layer(
                g, "stage2.res_norm.mean", padding="SAME", dilation_w_factor=2, stride_w=11
            ),
            "stage2.res_norm.mean': a convolution without dilation",
        ),
        (_strided_means, "mean_over_channels': equal weights over a whole row"),
        (
            lambda g: _constant(g, "stem.res_norm.gain", 1, np.ones((1, 64, 1, 1), np.int8)),
            "stem.res_norm.gain': a constant of one element",
        ),
        (lambda g: _ending(g, "stage2.res_norm"), "stage2.res_norm': an output of logits alone"),
        (lambda g: _ending(g, "stage1.block1.mean", before=True), "the graph ends within a block"),
        (lambda g: _ending(g, f"{BANDS}.padded"), "the graph ends within a block"),
        (lambda g: _ending(_reshaped(g), "reshaped"), "the graph has no layer"),
        (_reshaped, "RESHAPE .* in no place where the network family has it"),
    ],
)
def test_another_graph_is_refused_by_layer(small: Graph, change: Change, message: str) -> None:
    """Every one runs, in the interpreter."""
    graph = change(small)
    Interpreter(graph)
    with pytest.raises(InputError, match=f"{message}.*; {FAMILY}"):
        generate(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: _layer(g, "stem.conv", fused_activation="RELU6"), "NONE and RELU"),
        (
            lambda g: _constant(g, "stem.conv", 1, np.ones((8, 5, 5, 1), np.int8)),
            "stem.conv': filter has shape",
        ),
        (lambda g: _constant(g, "stem.conv", 1, np.ones((8, 3), np.int8)), "filter has shape"),
        (
            lambda g: _tensor(
                g,
                g.operators[_place(g, "stage1.pool")].outputs[0],
                quantization=Quantization((0.5,), (0,)),
            ),
            "MAX_POOL_2D 'stage1.pool'",
        ),
        (lambda g: replace(g, operators=(), outputs=g.inputs), "graph has no operators"),
        (lambda g: replace(g, inputs=(*g.inputs, 3)), "graph inputs=2"),
        (lambda g: _inputs(g, "stem.conv"), "CONV_2D 'stem.conv': inputs=0"),
        (lambda g: _inputs(g, "stem.conv", 0, -1, 2), "stem.conv': input 1 is left out"),
        *(
            (lambda g, name=name, place=place: _inputs(g, name, place), f"{name}': inputs=1")
            for name, place in (
                ("stem.conv", 0),
                (f"{BANDS}.padded", 22),
                (f"{BANDS}.rows1", 24),
                (f"{BANDS}.band1", 27),
            )
        ),
        (lambda g: _layer(g, "classifier", (1, 4)), "classifier': output has shape"),
    ],
)
def test_what_no_kernel_runs_is_refused(small: Graph, change: Change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(change(small))
