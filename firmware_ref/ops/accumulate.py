"""What the matrix operators share: their bias, their weights' scales, their requantisation."""

from __future__ import annotations

import numpy as np

from firmware_ref.ops.node import Affine, Node
from firmware_ref.ops.requantization import Staircase
from firmware_ref.scheme import INT8_MAX, INT8_MIN


def bias_of(node: Node, channels: int) -> np.ndarray:
    """The int32 bias (C,) of input 2 as int64; zeros where it is left out."""
    if node.input(2) is None:
        return np.zeros(channels, np.int64)
    bias = node.constant(2)
    if bias.dtype != np.int32 or bias.shape != (channels,):
        raise node.error(
            f"bias has dtype={bias.dtype} and shape={bias.shape}; allowed is int32 {(channels,)}"
        )
    return bias.astype(np.int64)


def weight_scales(node: Node, channels: int, axis: int) -> np.ndarray:
    """One or ``channels`` float64 scales of input 1, int8 weights whose zero points must be 0."""
    tensor = node.tensor(1)
    found = tensor.quantization
    if tensor.dtype != "int8" or found is None or any(found.zero_point):
        raise node.error("weights must be int8 with zero points of 0; convert to full INT8")
    if len(found.scale) not in (1, channels) or (len(found.scale) > 1 and found.axis != axis):
        raise node.error(
            f"weights have {len(found.scale)} scales along axis {found.axis}; allowed are 1, or "
            f"{channels} along axis {axis}"
        )
    return np.array(found.scale, np.float64)


def staircase(
    node: Node, source: Affine, weights: np.ndarray, bias: np.ndarray, axis: int
) -> Staircase:
    """From an operator's scales: ``m_c = double(s_in) * s_w[c] / s_out``.

    ``weights`` is (C, K); ``axis`` is the axis of its channels in the file. Refuses weights and
    biases whose sum could leave int32, where C has no defined result.
    """
    worst = largest_sum(source, weights) + np.abs(bias)
    if worst.max() >= 2**31:
        raise node.error(f"the int32 sum can reach {worst.max():,}; at most 2^31 - 1 is allowed")
    out = node.affine(node.output)
    scales = weight_scales(node, len(weights), axis)
    multiplier, shift = node.multipliers(source.scale * scales / out.scale)
    low, high = node.clamp()
    return Staircase(bias, multiplier, shift, out.zero_point, low, high)


def largest_sum(source: Affine, weights: np.ndarray) -> np.ndarray:
    """Largest magnitude (C,) of any partial sum of products, whatever the input."""
    reach = max(INT8_MAX - source.zero_point, source.zero_point - INT8_MIN)
    magnitudes: np.ndarray = np.abs(weights.astype(np.int64)).sum(axis=1) * reach
    return magnitudes
