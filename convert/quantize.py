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
        if operator.kind in scheme.WEIGHT_AXIS:
            _convolution(tensors, operator, constants)
        else:
            for index in operator.inputs:
                if tensors[index].name in constants:
                    tensors[index] = _operand(tensors[index], constants[tensors[index].name])
    return dataclasses.replace(
        plan, tensors=tuple(tensors), metadata=dict(metadata), description="tinyscene"
    )


def _convolution(
    tensors: list[Tensor], operator: Operator, constants: Mapping[str, np.ndarray]
) -> None:
    x, w, b = operator.inputs
    source = tensors[x].quantization
    assert source is not None
    axis = scheme.WEIGHT_AXIS[operator.kind]
    weight, bias = constants[tensors[w].name], constants[tensors[b].name]
    scale = scheme.weight_scale(weight, bias, source.scale[0], axis)
    bias_scale = scheme.bias_scale(source.scale[0], scale)
    tensors[w] = _constant(tensors[w], scheme.quantize_weight(weight, scale, axis), scale, axis)
    tensors[b] = _constant(tensors[b], scheme.quantize_bias(bias, bias_scale), bias_scale, 0)


def _operand(tensor: Tensor, value: np.ndarray) -> Tensor:
    scale = scheme.constant_scale(value)
    return _constant(tensor, scheme.quantize_weight(value, scale, 0), scale, 0)


def _constant(tensor: Tensor, data: np.ndarray, scale: np.ndarray, axis: int) -> Tensor:
    quantization = Quantization(tuple(float(s) for s in scale), (0,) * len(scale), axis)
    return dataclasses.replace(tensor, data=data, quantization=quantization)
