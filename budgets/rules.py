"""What one operator or layer counts under each convention (`budgets.count` defines them)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from firmware_ref.arch import Layer
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
WEIGHTED = (*CONVOLUTIONS, "FULLY_CONNECTED")
POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
REDUCTIONS = ("MEAN", "SUM")
# fmt: off
ELEMENTWISE = (
    "ADD", "DEQUANTIZE", "DIV", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL",
    "PRELU", "QUANTIZE", "RELU", "RELU6", "RSQRT", "SOFTMAX", "SQUARED_DIFFERENCE", "SUB", "TANH",
)
COPIES = (
    "BROADCAST_TO", "CONCATENATION", "EXPAND_DIMS", "GATHER", "PACK", "PAD", "PADV2", "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE",
    "UNPACK",
)
# fmt: on
# Operators without multiply-accumulates in the plain convention. A list of what is allowed, so
# that no BATCH_MATMUL or LSTM passes as free.
FREE = frozenset({*POOLS, *REDUCTIONS, *ELEMENTWISE, *COPIES})
# Of two inputs at least, besides those with weights; all others of one.
PAIRS = frozenset({"ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "PRELU", "SQUARED_DIFFERENCE", "SUB"})


def torchinfo_macs(layer: Layer) -> int:
    """MACs of one layer of a network in the ``torchinfo`` convention."""
    _, bands, frames = layer.output_shape
    return layer.parameters * (bands * frames if layer.kind == "conv" else 1)


def learned(graph: Graph, operator: Operator) -> Iterator[tuple[str, np.ndarray]]:
    """The constants of an operator that count as parameters, each with its role.

    The role is ``biases`` for the bias of a convolution or fully connected layer, or ``weights``.
    """
    for place, tensor in _inputs(graph, operator):
        if tensor.data is None:
            continue
        if operator.kind in WEIGHTED:
            yield ("biases" if place == 2 else "weights"), tensor.data
        elif holds_reals(tensor) and tensor.data.size > 1:
            yield "weights", tensor.data


def plain_macs(graph: Graph, operator: Operator) -> int:
    """MACs of one operator in the ``plain`` convention."""
    outputs = output_elements(graph, operator)
    if operator.kind == "CONV_2D":  # weights (out, height, width, in / groups)
        return outputs * math.prod(weights_shape(graph, operator, rank=4)[1:])
    if operator.kind == "DEPTHWISE_CONV_2D":  # weights (1, height, width, out)
        return outputs * math.prod(weights_shape(graph, operator, rank=4)[1:3])
    if operator.kind == "FULLY_CONNECTED":  # weights (out, in)
        return outputs * weights_shape(graph, operator, rank=2)[1]
    return 0


def nessi_macs(graph: Graph, operator: Operator) -> int:
    """MACs of one operator in the ``nessi_tflite`` convention."""
    if operator.kind in CONVOLUTIONS:
        return plain_macs(graph, operator)
    if operator.kind == "FULLY_CONNECTED":
        shape = _input(graph, operator, 0).shape
        return output_elements(graph, operator) * (shape[-1] if shape else 1)
    if operator.kind in POOLS:
        window = operator.options["filter_height"] * operator.options["filter_width"]
        return output_elements(graph, operator) * max(window, 0)
    if operator.kind == "MEAN":
        return math.prod(_input(graph, operator, 0).shape)
    return output_elements(graph, operator) if operator.kind == "ADD" else 0


def constant_bytes(graph: Graph, operator: Operator) -> int:
    """Bytes of all constant inputs of one operator: NeSsi's "parameters"."""
    return sum(t.data.nbytes for _, t in _inputs(graph, operator) if t.data is not None)


def elementwise_work(graph: Graph, operator: Operator) -> int:
    """Elements that an element-wise operator computes; 0 for any other."""
    return output_elements(graph, operator) if operator.kind in ELEMENTWISE else 0


def reduction_work(graph: Graph, operator: Operator) -> int:
    """Elements that a pooling, MEAN or SUM reads, each once for every window it is in; else 0."""
    if operator.kind in POOLS:
        return nessi_macs(graph, operator)
    if operator.kind in REDUCTIONS:
        return math.prod(_input(graph, operator, 0).shape)
    return 0


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


def refuse_incomplete(graph: Graph, operator: Operator) -> None:
    """An `InputError` where an operator that is counted lacks inputs that any kernel needs."""
    if operator.kind in WEIGHTED or operator.kind in FREE:
        pair = operator.kind in PAIRS or operator.kind in WEIGHTED
        for place in range(2 if pair else 1):
            _input(graph, operator, place)


def weights_shape(graph: Graph, operator: Operator, rank: int) -> tuple[int, ...]:
    """The shape of an operator's weights; an `InputError` unless it has ``rank`` dimensions."""
    shape = _input(graph, operator, 1).shape
    if len(shape) != rank:
        raise InputError(
            f"{operator.kind} {graph.name(operator)!r}: weights of shape={shape}; "
            f"{rank} dimensions are allowed; convert the model again"
        )
    return shape


def output_elements(graph: Graph, operator: Operator) -> int:
    """Elements of an operator's first output."""
    return math.prod(graph.tensors[operator.outputs[0]].shape)


def holds_reals(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers, quantised or floating, and no axes or shapes."""
    return tensor.dtype.startswith("float") or tensor.quantization is not None
