"""The INT8 operators, one a file: ``prepare`` checks and precomputes, the kernel only computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator
from firmware_ref.ops import (
    add,
    average_pool_2d,
    concatenation,
    conv_2d,
    depthwise_conv_2d,
    fully_connected,
    logistic,
    max_pool_2d,
    mean,
    mul,
    pad,
    quantize,
    reshape,
    rsqrt,
    slice,
    softmax,
    squared_difference,
    sub,
    transpose,
)
from firmware_ref.ops.node import Kernel, Node

PREPARE: Mapping[str, Callable[[Node], Kernel]] = {
    "ADD": add.prepare,
    "AVERAGE_POOL_2D": average_pool_2d.prepare,
    "CONCATENATION": concatenation.prepare,
    "CONV_2D": conv_2d.prepare,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d.prepare,
    "FULLY_CONNECTED": fully_connected.prepare,
    "LOGISTIC": logistic.prepare,
    "MAX_POOL_2D": max_pool_2d.prepare,
    "MEAN": mean.prepare,
    "MUL": mul.prepare,
    "PAD": pad.prepare,
    "QUANTIZE": quantize.prepare,
    "RESHAPE": reshape.prepare,
    "RSQRT": rsqrt.prepare,
    "SLICE": slice.prepare,
    "SOFTMAX": softmax.prepare,
    "SQUARED_DIFFERENCE": squared_difference.prepare,
    "SUB": sub.prepare,
    "TRANSPOSE": transpose.prepare,
}


def prepare(operator: Operator, graph: Graph) -> Kernel:
    """The kernel of one operator: a callable on its activations (constants left out).

    Raises `InputError`, naming operator and layer, for a kind that is not in `PREPARE` and for
    whatever the reference kernels refuse or leave undefined.
    """
    if operator.kind not in PREPARE:
        raise InputError(
            f"operator {operator.kind} of {graph.name(operator)!r} cannot be run; "
            f"allowed: {', '.join(PREPARE)}"
        )
    # Absurd scales overflow float32; the checks refuse what comes of it.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return PREPARE[operator.kind](Node(operator, graph))
