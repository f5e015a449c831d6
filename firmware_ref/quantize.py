"""QAT's own scales into the graph: every constant as integers, every activation with its grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from firmware_ref import scheme
from firmware_ref.graph import Graph, Operator, Quantization, Tensor


def quantize_graph(
    plan: Graph,
    constants: Mapping[str, np.ndarray],
    activations: Mapping[str, Quantization],
    metadata: Mapping[str, bytes],
) -> Graph:
    """The device graph with every number in it, ready to be written; nothing is calibrated.

    ``constants`` are float32 by name in the graph's layout, ``activations`` the scales and zero
    points that training fixed.
    """
    tensors = list(plan.tensors)
    for index, tensor in enumerate(tensors):
        if tensor.name in activations:
            tensors[index] = dataclasses.replace(tensor, quantization=activations[tensor.name])
    for operator in plan.operators:
        if operator.kind in scheme.WEIGHT_AXIS and tensors[operator.inputs[1]].name in constants:
            _convolution(tensors, operator, constants)
    for index, tensor in enumerate(tensors):
        if tensor.data is not None:
            # The operator that reads a constant names its layer; the file need not repeat it.
            tensors[index] = dataclasses.replace(tensor, name=tensor.name.rpartition("/")[2])
    return dataclasses.replace(
        plan, tensors=tuple(tensors), metadata=dict(metadata), description="tinyscene"
    )


def _convolution(
    tensors: list[Tensor], operator: Operator, constants: Mapping[str, np.ndarray]
) -> None:
    """Weights and bias as integers. The bias's scale is ``s_in * s_w``, which no kernel reads from
    the file: a tenth of the file is spared by leaving it out."""
    x, w, b = operator.inputs
    source = tensors[x].quantization
    assert source is not None
    axis = scheme.WEIGHT_AXIS[operator.kind]
    weight, bias = constants[tensors[w].name], constants[tensors[b].name]
    scale = scheme.weight_scale(weight, bias, source.scale[0], axis)
    tensors[w] = dataclasses.replace(
        tensors[w],
        data=scheme.quantize_weight(weight, scale, axis),
        quantization=Quantization(tuple(map(float, scale)), (0,) * len(scale), axis),
    )
    steps = scheme.quantize_bias(bias, scheme.bias_scale(source.scale[0], scale))
    tensors[b] = dataclasses.replace(tensors[b], data=steps)
