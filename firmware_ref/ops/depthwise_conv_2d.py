"""DEPTHWISE_CONV_2D: one filter or more a channel. TFLite ``integer_ops/depthwise_conv.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.accumulate import Requantization, bias_of, requantization
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.window import Window, window


@dataclass(frozen=True, eq=False)
class DepthwiseConv2D:
    """A depthwise convolution: ``weights`` (KF * KT, C_out) int32, C_out = multiplier * C_in."""

    window: Window
    input_zero_point: int
    weights: np.ndarray
    depth_multiplier: int
    requantization: Requantization

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C_in) int8 -> (N, F', T', C_out) int8."""
        # Padding is the zero point, which is 0 once the offset is taken off.
        centred = self.window.pad(x.astype(np.int32) - np.int32(self.input_zero_point), 0)
        if self.depth_multiplier > 1:
            centred = np.repeat(centred, self.depth_multiplier, axis=-1)
        taps = self.window.taps(centred)
        sums = next(taps) * self.weights[0]
        for tap, weights in zip(taps, self.weights[1:], strict=True):
            sums += tap * weights
        return self.requantization(sums.astype(np.int64))


def prepare(node: Node) -> Kernel:
    """Filter (1, KF, KT, C_out) int8, zero points 0; optional int32 bias (C_out,).

    Output channel ``c`` reads input channel ``c // multiplier``. The multiplier is that of the
    shapes: the kernels read the option, so it must agree.
    """
    node.check_inputs(2, 3)
    source, affine = node.activation(0)
    filters = node.constant(1)
    if filters.ndim != 4 or filters.shape[0] != 1 or filters.shape[3] % source.shape[-1]:
        raise node.error(f"filter has shape={filters.shape}; the input has {source.shape}")
    channels = filters.shape[3]
    multiplier = node.positive("depth_multiplier")
    if multiplier * source.shape[-1] != channels:
        raise node.error(
            f"depth_multiplier={multiplier}; {source.shape[-1]} channels in and {channels} out "
            f"need {channels // source.shape[-1]}"
        )
    place = window(node, source, (filters.shape[1], filters.shape[2]), dilated=True)
    node.check_output_shape((1, place.height.output, place.width.output, channels))
    weights = filters.reshape(-1, channels)
    scale = requantization(node, affine, weights.T, bias_of(node, channels), axis=3)
    return DepthwiseConv2D(place, affine.zero_point, weights.astype(np.int32), multiplier, scale)
