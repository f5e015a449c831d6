"""Parameters and multiply-accumulates (MACs), per layer and in total, under named conventions.

``plain`` is the convention that the limits apply to.

*Of a network, as trained:* every weight and bias of every convolution and every normalisation's
scale and shift, batch norm apart from its convolution. Running statistics are not parameters.
MACs: convolutions only, weights times output positions. Biases, normalisations, pooling, means,
additions and activations cost 0.

*Of a flatbuffer, as deployed:* for CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED the elements of
the constant weights and bias, zeros included; for any other operator the elements of constant
inputs that hold real numbers (quantised or floating) and more than one element: the scale and
shift of a normalisation that could not be folded, for instance. One-element constants (ResNorm's
lambda and epsilon) are given, not learned, and integers without quantisation (axes, shapes,
paddings) are no parameters. A constant read by two operators is counted at each, so that a row
never depends on another, and as the challenge's counter does: ResNorm's means share constants, so
the shipped model has 120,216 weights here and 119,767 in its manifest, which counts each buffer of
the file once. MACs: output elements times weights per output element of the three operators above;
all other known operators 0; an operator not known here is reported by name.

``torchinfo`` (networks) is what torchinfo 1.8 prints, and so the challenge's count of a torch
model: convolution weights *and biases* times output positions, normalisation scale and shift
once, everything else 0. Parameters as in ``plain``.

``nessi_tflite`` (flatbuffers) is the challenge's count of a ``.tflite`` file, from the source of
NeSsi (github.com/AlbertoAncilotto/NeSsi, tflite_tools/tflite_model.py): "parameters" are the
*bytes* of all constant inputs of all operators, axes and shapes among them, once for each use.
MACs: convolutions as in ``plain``; FULLY_CONNECTED output elements times the *last* input
dimension (too few where a map is flattened on the way in); pools output elements times window;
MEAN input elements; ADD output elements; MUL, SUB, RSQRT and all others 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from budgets import cost
from firmware_ref.arch import Layer, Network, layers
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor

CONVENTIONS: Mapping[str, str] = {
    "plain": "weights and biases; MACs of convolutions and fully connected layers only",
    "torchinfo": "MACs: convolution weights and biases x output positions, norm parameters once",
    "nessi_tflite": "parameters: bytes of all constant inputs; MACs with pools, MEAN and ADD",
}

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
WEIGHTED = (*CONVOLUTIONS, "FULLY_CONNECTED")
POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
# Operators without multiply-accumulates in the plain convention. A list of what is allowed, so
# that no BATCH_MATMUL or LSTM passes as free.
# fmt: off
FREE = frozenset({
    *POOLS,
    "ADD", "BROADCAST_TO", "CONCATENATION", "DEQUANTIZE", "DIV", "EXPAND_DIMS", "HARD_SWISH",
    "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "PRELU",
    "QUANTIZE", "RELU", "RELU6", "RESHAPE", "RSQRT", "SLICE", "SOFTMAX", "SPLIT",
    "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE",
})
# fmt: on


@dataclass(frozen=True)
class LayerCount:
    """One row: a layer's name, operation, output shape, and what it costs in ``plain``.

    Shapes are (C, F, T) for a network and (N, F, T, C) for a flatbuffer, whose layers have an
    estimate of their ``instructions`` by core (`budgets.cost`) where the operator's cost is known.
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    instructions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """Totals under one of `CONVENTIONS`."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Count:
    """What one subject costs; ``kind`` is ``network``, ``preset``, ``checkpoint`` or ``tflite``.

    ``sizes`` gives bytes of a flatbuffer: ``weights`` and ``biases`` at each use, and the ``file``.
    ``instructions`` sums the layers' estimates by core; ``not_costed`` names the kinds of
    operators left out.
    ``not_int8`` and ``not_counted`` name tensors and operators that break the rules of
    `budgets.limits.check`; both are empty for a network.
    """

    name: str
    kind: str
    layers: tuple[LayerCount, ...]
    conventions: Mapping[str, Total]
    sizes: Mapping[str, int] = field(default_factory=dict)
    instructions: Mapping[str, int] = field(default_factory=dict)
    not_costed: tuple[str, ...] = ()
    not_int8: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters in the plain convention."""
        return self.conventions["plain"].parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates in the plain convention."""
        return self.conventions["plain"].macs


def count_network(network: Network, name: str | None = None, kind: str = "network") -> Count:
    """Count a network as trained; ``name`` defaults to the network's own."""
    table = layers(network)
    rows = tuple(
        LayerCount(
            name=layer.name,
            op=layer.kind,
            output_shape=layer.output_shape,
            parameters=layer.parameters,
            macs=layer.multiply_accumulates,
        )
        for layer in table
    )
    plain = _plain(rows)
    return Count(
        name=network.name if name is None else name,
        kind=kind,
        layers=rows,
        conventions={
            "plain": plain,
            "torchinfo": Total(plain.parameters, sum(map(torchinfo_macs, table))),
        },
    )


def torchinfo_macs(layer: Layer) -> int:
    """MACs of one layer of a network in the ``torchinfo`` convention."""
    _, bands, frames = layer.output_shape
    return layer.parameters * (bands * frames if layer.kind == "conv" else 1)


def count_graph(graph: Graph, name: str, file_bytes: int) -> Count:
    """Count a flatbuffer of ``file_bytes`` bytes as deployed.

    Raises `InputError` where an operator lacks the inputs that its cost is computed from.
    """
    rows = tuple(_row(graph, operator) for operator in graph.operators)
    constants = [item for operator in graph.operators for item in learned(graph, operator)]
    nessi = Total(
        sum(constant_bytes(graph, operator) for operator in graph.operators),
        sum(nessi_macs(graph, operator) for operator in graph.operators),
    )
    return Count(
        name=name,
        kind="tflite",
        layers=rows,
        conventions={"plain": _plain(rows), "nessi_tflite": nessi},
        sizes={
            "weights": sum(data.nbytes for role, data in constants if role == "weights"),
            "biases": sum(data.nbytes for role, data in constants if role == "biases"),
            "file": file_bytes,
        },
        instructions={
            core: sum(row.instructions.get(core, 0) for row in rows) for core in cost.CORES
        },
        not_costed=tuple(sorted({row.op for row in rows if not row.instructions})),
        not_int8=tuple(f"{t.name}: {t.dtype}" for t in graph.tensors if not _is_int8(t)),
        not_counted=tuple(
            f"{graph.name(operator)}: {operator.kind}"
            for operator in graph.operators
            if operator.kind not in WEIGHTED and operator.kind not in FREE
        ),
    )


def learned(graph: Graph, operator: Operator) -> Iterator[tuple[str, np.ndarray]]:
    """The constants of an operator that count as parameters, each with its role.

    The role is ``biases`` for the bias of a convolution or fully connected layer, or ``weights``.
    """
    for place, tensor in _inputs(graph, operator):
        if tensor.data is None:
            continue
        if operator.kind in WEIGHTED:
            yield ("biases" if place == 2 else "weights"), tensor.data
        elif _holds_reals(tensor) and tensor.data.size > 1:
            yield "weights", tensor.data


def plain_macs(graph: Graph, operator: Operator) -> int:
    """MACs of one operator in the ``plain`` convention."""
    outputs = _output_elements(graph, operator)
    if operator.kind == "CONV_2D":  # weights (out, height, width, in / groups)
        return outputs * math.prod(_weights(graph, operator, rank=4)[1:])
    if operator.kind == "DEPTHWISE_CONV_2D":  # weights (1, height, width, out)
        return outputs * math.prod(_weights(graph, operator, rank=4)[1:3])
    if operator.kind == "FULLY_CONNECTED":  # weights (out, in)
        return outputs * _weights(graph, operator, rank=2)[1]
    return 0


def nessi_macs(graph: Graph, operator: Operator) -> int:
    """MACs of one operator in the ``nessi_tflite`` convention."""
    if operator.kind in CONVOLUTIONS:
        return plain_macs(graph, operator)
    if operator.kind == "FULLY_CONNECTED":
        shape = _input(graph, operator, 0).shape
        return _output_elements(graph, operator) * (shape[-1] if shape else 1)
    if operator.kind in POOLS:
        window = operator.options["filter_height"] * operator.options["filter_width"]
        return _output_elements(graph, operator) * max(window, 0)
    if operator.kind == "MEAN":
        return math.prod(_input(graph, operator, 0).shape)
    return _output_elements(graph, operator) if operator.kind == "ADD" else 0


def constant_bytes(graph: Graph, operator: Operator) -> int:
    """Bytes of all constant inputs of one operator: NeSsi's "parameters"."""
    return sum(t.data.nbytes for _, t in _inputs(graph, operator) if t.data is not None)


def _plain(rows: tuple[LayerCount, ...]) -> Total:
    return Total(sum(row.parameters for row in rows), sum(row.macs for row in rows))


def _row(graph: Graph, operator: Operator) -> LayerCount:
    macs = plain_macs(graph, operator)
    return LayerCount(
        name=graph.name(operator),
        op=operator.kind,
        output_shape=graph.tensors[operator.outputs[0]].shape,
        parameters=sum(data.size for _, data in learned(graph, operator)),
        macs=macs,
        instructions=cost.instructions(graph, operator, macs) or {},
    )


def _inputs(graph: Graph, operator: Operator) -> Iterator[tuple[int, Tensor]]:
    """The inputs that are there, each with its place."""
    for place, index in enumerate(operator.inputs):
        if index >= 0:
            yield place, graph.tensors[index]


def _input(graph: Graph, operator: Operator, place: int) -> Tensor:
    for found, tensor in _inputs(graph, operator):
        if found == place:
            return tensor
    raise InputError(
        f"{operator.kind} {graph.name(operator)!r} has no input {place}; convert the model again"
    )


def _weights(graph: Graph, operator: Operator, rank: int) -> tuple[int, ...]:
    """The shape of an operator's weights, which must have ``rank`` dimensions."""
    shape = _input(graph, operator, 1).shape
    if len(shape) != rank:
        raise InputError(
            f"{operator.kind} {graph.name(operator)!r}: weights of shape={shape}; "
            f"{rank} dimensions are allowed; convert the model again"
        )
    return shape


def _output_elements(graph: Graph, operator: Operator) -> int:
    return math.prod(graph.tensors[operator.outputs[0]].shape)


def _holds_reals(tensor: Tensor) -> bool:
    return tensor.dtype.startswith("float") or tensor.quantization is not None


def _is_int8(tensor: Tensor) -> bool:
    """Real numbers must be int8, or int32 (biases); plain integers are axes and shapes."""
    return tensor.dtype in ("int8", "int32") or not _holds_reals(tensor)
