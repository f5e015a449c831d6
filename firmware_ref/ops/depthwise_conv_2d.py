"""DEPTHWISE_CONV_2D: one filter or more a channel. TFLite ``integer_ops/depthwise_conv.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.accumulate import bias_of, largest_sum, staircase
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.requantization import PROVED, FloatStaircase, Staircase, fastest
from firmware_ref.ops.window import Window, offset, window

# Elements that the weights of a graph's depthwise convolutions may have, repeated along rows.
TILED = 1 << 26


@dataclass(frozen=True, eq=False)
class DepthwiseConv2D:
    """A depthwise convolution, C_out = multiplier * C_in.

    ``weights`` (KF * KT, T' * C_out) repeat the channels for every output of a row, in a dtype
    whose sums are exact.
    """

    window: Window
    input_zero_point: int
    weights: np.ndarray
    depth_multiplier: int
    requantize: Staircase | FloatStaircase

    @property
    def working(self) -> int:
        """Elements an example takes here: its padded map."""
        return self.window.padded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C_in) int8 -> (N, F', T', C_out) int8."""
        centred = self.window.pad(offset(x, self.input_zero_point, self.weights.dtype), 0)
        if self.depth_multiplier > 1:
            centred = np.repeat(centred, self.depth_multiplier, axis=-1)
        shape = (len(x), self.window.height.output, self.window.width.output, centred.shape[-1])
        rows = (*shape[:2], shape[2] * shape[3])
        sums = np.empty(rows, self.weights.dtype)
        product = np.empty(rows, self.weights.dtype)
        for number, (tap, weights) in enumerate(
            zip(self.window.taps(centred), self.weights, strict=True)
        ):
            np.multiply(tap.reshape(rows), weights, out=product if number else sums)
            if number:
                sums += product
        return self.requantize(sums.reshape(shape))


def prepare(node: Node) -> Kernel:
    """Filter (1, KF, KT, C_out) int8, zero points 0; optional int32 bias (C_out,).

    A bias that is listed but left out (-1) is refused: TFLM reads it all the same, and dies.
    Output channel ``c`` reads input channel ``c // multiplier``. The multiplier is that of the
    shapes: the kernels read the option, so it must agree.
    """
    node.check_inputs(2, 3)
    source, affine = node.activation(0)
    if node.operator.inputs[2:] == (-1,):
        raise node.error("bias is listed as -1, on which TFLM dies; drop the third input")
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
    kernel = filters.shape[1], filters.shape[2]
    place = window(node, source, kernel, dilated=True, repeats=multiplier)
    node.check_output_shape((1, place.height.output, place.width.output, channels))
    weights = filters.reshape(-1, channels)
    if weights.size * place.width.output > node.share(TILED):
        raise node.error(f"input {source.shape} and filter {filters.shape} are too large to run")
    exact = staircase(node, affine, weights.T, bias_of(node, channels), axis=3)
    largest = largest_sum(affine, weights.T)
    requantize, dtype = fastest(exact, largest, place.width.output, node.share(PROVED))
    stored = np.tile(weights, place.width.output).astype(dtype)
    return DepthwiseConv2D(place, affine.zero_point, stored, multiplier, requantize)
