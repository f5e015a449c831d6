"""CONV_2D: int8 x int8 into int32, per-channel scales. TFLite ``integer_ops/conv.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.accumulate import bias_of, largest_sum, staircase
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.requantization import PROVED, FloatStaircase, Staircase, fastest
from firmware_ref.ops.window import Window, offset, window


@dataclass(frozen=True, eq=False)
class Conv2D:
    """A convolution: ``weights`` (KF * KT * C_in, C_out) in the dtype of the exact product."""

    window: Window
    input_zero_point: int
    weights: np.ndarray
    requantize: Staircase | FloatStaircase

    @property
    def working(self) -> int:
        """Elements an example takes here: its padded map, and all that the taps meet."""
        return self.window.padded + self.window.met

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C_in) int8 -> (N, F', T', C_out) int8."""
        # Padding is the zero point, which is 0 once the offset is taken off.
        centred = self.window.pad(offset(x, self.input_zero_point, self.weights.dtype), 0)
        taps = list(self.window.taps(centred))
        columns = taps[0] if len(taps) == 1 else np.concatenate(taps, axis=-1)
        sums = columns.reshape(-1, len(self.weights)) @ self.weights
        return self.requantize(sums).reshape(*columns.shape[:3], self.weights.shape[1])


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
    node.check_output_shape((1, place.height.output, place.width.output, channels))
    weights = filters.reshape(channels, -1)
    exact = staircase(node, affine, weights, bias_of(node, channels), axis=0)
    largest = largest_sum(affine, weights)
    requantize, dtype = fastest(exact, largest, place.width.output, node.share(PROVED))
    stored = np.ascontiguousarray(weights.T.astype(dtype))
    return Conv2D(place, affine.zero_point, stored, requantize)
