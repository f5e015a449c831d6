"""CONV_2D: int8 x int8 into int32, per-channel scales. TFLite ``integer_ops/conv.h``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firmware_ref import graph as limits
from firmware_ref.ops.accumulate import Requantization, bias_of, exact_dtype, requantization
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.window import Window, window


@dataclass(frozen=True, eq=False)
class Conv2D:
    """A convolution: ``weights`` (KF * KT * C_in, C_out) in the dtype of the exact product."""

    window: Window
    input_zero_point: int
    weights: np.ndarray
    requantization: Requantization

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C_in) int8 -> (N, F', T', C_out) int8."""
        # Padding is the zero point, which is 0 once the offset is taken off.
        centred = self.window.pad(x.astype(self.weights.dtype) - self.input_zero_point, 0)
        taps = list(self.window.taps(centred))
        columns = taps[0] if len(taps) == 1 else np.concatenate(taps, axis=-1)
        sums = columns.reshape(-1, len(self.weights)) @ self.weights
        output = self.requantization(sums.astype(np.int64))
        return output.reshape(*columns.shape[:3], self.weights.shape[1])


def prepare(node: Node) -> Kernel:
    """Filter (C_out, KF, KT, C_in) int8, zero points 0; optional int32 bias (C_out,).

    Without a bias TFLM runs it and tflite-runtime refuses.
    """
    node.check_inputs(2, 3)
    source, affine = node.activation(0)
    filters = node.constant(1)
    if filters.ndim != 4 or filters.shape[3] != source.shape[-1]:
        raise node.error(f"filter has shape={filters.shape}; the input has {source.shape}")
    place = window(node, source, (filters.shape[1], filters.shape[2]), dilated=True)
    channels = filters.shape[0]
    positions = place.height.output * place.width.output
    node.check_output_shape((1, place.height.output, place.width.output, channels))
    if positions * math.prod(filters.shape[1:]) > limits.MAX_ELEMENTS:
        raise node.error(f"input {source.shape} and filter {filters.shape} are too large to run")
    weights = filters.reshape(channels, -1)
    scale = requantization(node, affine, weights, bias_of(node, channels), axis=0)
    dtype = exact_dtype(affine, weights)
    return Conv2D(place, affine.zero_point, np.ascontiguousarray(weights.T.astype(dtype)), scale)
