"""FULLY_CONNECTED: int8 x int8 into int32. TFLite ``integer_ops/fully_connected.h``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.accumulate import bias_of, largest_sum, staircase, weight_scales
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.requantization import PROVED, FloatStaircase, Staircase, fastest


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """A matrix product: ``weights`` (K, C_out) in the dtype of the exact product."""

    output_shape: tuple[int, ...]
    input_zero_point: int
    weights: np.ndarray
    requantize: Staircase | FloatStaircase

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 of any shape with rows of K elements -> (N, ..., C_out) int8."""
        centred = x.reshape(-1, len(self.weights)).astype(self.weights.dtype)
        sums = (centred - self.input_zero_point) @ self.weights
        return self.requantize(sums).reshape(len(x), *self.output_shape[1:])


def prepare(node: Node) -> Kernel:
    """Weights (C_out, K) int8, zero points 0; optional int32 bias (C_out,).

    Rows are the last axis where ``keep_num_dims`` is set, else the one row is the whole map. With
    a scale a channel the output must be (1, C_out): tflite-runtime computes no other row.

    With one scale for all weights tflite-runtime multiplies ``s_in * s_w`` in float32, and so does
    this; TFLM may take the product in double, which can differ by 1 in about one output of a
    million. With a scale a channel both use double.
    """
    node.check_inputs(2, 3)
    source, affine = node.activation(0)
    weights = node.constant(1)
    if weights.ndim != 2 or math.prod(source.shape) % weights.shape[1]:
        raise node.error(f"weights have shape={weights.shape}; the input has {source.shape}")
    if node.option("weights_format"):
        raise node.error(f"weights_format={node.option('weights_format')}; only 0 is supported")
    channels, length = weights.shape
    rows = math.prod(source.shape) // length
    if node.option("keep_num_dims"):
        if source.shape[-1] != length:
            raise node.error(
                f"weights have shape={weights.shape}; with keep_num_dims the input's last axis, of "
                f"{source.shape}, must be the weights' second"
            )
        node.check_output_shape((*source.shape[:-1], channels))
    elif rows == 1:
        node.check_output_shape((1, channels))
    else:
        raise node.error(f"input {source.shape} makes {rows} rows of a batch; 1 is allowed")
    if len(weight_scales(node, channels, axis=0)) > 1 and node.output.shape != (1, channels):
        raise node.error(
            f"output has shape={node.output.shape}; with a scale a channel tflite-runtime computes "
            f"{(1, channels)} only; give all weights one scale, or reshape the input"
        )
    exact = staircase(node, affine, weights, bias_of(node, channels), axis=0)
    if len(exact.multiplier) == 1:
        multiplier, shift = _float32_multiplier(node, affine.scale)
        exact = dataclasses.replace(exact, multiplier=multiplier, shift=shift)
    requantize, dtype = fastest(exact, largest_sum(affine, weights), 1, node.share(PROVED))
    stored = np.ascontiguousarray(weights.T.astype(dtype))
    return FullyConnected(node.output.shape, affine.zero_point, stored, requantize)


def _float32_multiplier(node: Node, input_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """TFLite GetQuantizedConvolutionMultipler: the product in float32, the quotient in double."""
    quantization = node.tensor(1).quantization
    assert quantization is not None
    product = float(np.float32(input_scale) * np.float32(quantization.scale[0]))
    return node.multipliers(np.array([product / node.affine(node.output).scale]))
