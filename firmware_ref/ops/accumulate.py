"""What the matrix operators share: exact int32 sums, and their requantisation to int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.fixedpoint import mbqm
from firmware_ref.ops.node import Affine, Node
from firmware_ref.scheme import INT8_MAX, INT8_MIN


@dataclass(frozen=True, eq=False)
class Requantization:
    """int32 sums to int8, a channel along the last axis: bias, multiplier, zero point, clamp.

    ``bias``, ``multiplier`` (Q0.31) and ``shift`` are int64, one entry a channel or one in all.
    """

    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    zero_point: int
    low: int
    high: int

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """int64 sums (..., C) to int8 (..., C)."""
        values = mbqm(sums + self.bias, self.multiplier, self.shift)
        values += self.zero_point
        return np.clip(values, self.low, self.high, out=values).astype(np.int8)


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


def weight_scales(node: Node, channels: int, axis: int) -> tuple[float, ...]:
    """One or ``channels`` scales of the int8 weights of input 1, whose zero points must be 0."""
    tensor = node.tensor(1)
    found = tensor.quantization
    if tensor.dtype != "int8" or found is None or any(found.zero_point):
        raise node.error("weights must be int8 with zero points of 0; convert to full INT8")
    if len(found.scale) not in (1, channels) or (len(found.scale) > 1 and found.axis != axis):
        raise node.error(
            f"weights have {len(found.scale)} scales along axis {found.axis}; allowed are 1, or "
            f"{channels} along axis {axis}"
        )
    return found.scale


def requantization(
    node: Node, source: Affine, weights: np.ndarray, bias: np.ndarray, axis: int
) -> Requantization:
    """From an operator's scales: ``m_c = double(s_in) * s_w[c] / s_out``.

    ``weights`` is (C, K); ``axis`` is the axis of its channels in the file. Refuses weights and
    biases whose sum could leave int32, where C has no defined result.
    """
    worst = _largest_sum(source, weights) + np.abs(bias)
    if worst.max() >= 2**31:
        raise node.error(f"the int32 sum can reach {worst.max():,}; at most 2^31 - 1 is allowed")
    out = node.affine(node.output)
    scales = weight_scales(node, len(weights), axis)
    multiplier, shift = node.multipliers(source.scale * s / out.scale for s in scales)
    low, high = node.clamp()
    return Requantization(bias, multiplier, shift, out.zero_point, low, high)


def _largest_sum(source: Affine, weights: np.ndarray) -> np.ndarray:
    """Largest magnitude (C,) of any partial sum of products, whatever the input."""
    reach = max(INT8_MAX - source.zero_point, source.zero_point - INT8_MIN)
    magnitudes: np.ndarray = np.abs(weights.astype(np.int64)).sum(axis=1) * reach
    return magnitudes


def exact_dtype(source: Affine, weights: np.ndarray) -> type[np.floating]:
    """The floating type in which BLAS gives the integer product exactly.

    All partial sums are integers, so float32 is exact in any order of summation, fused or not,
    while their magnitude stays below 2**24; float64 up to 2**53, above every int32.
    """
    return np.float32 if _largest_sum(source, weights).max() < 2**24 else np.float64
