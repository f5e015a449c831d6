"""MEAN over any axes but the batch. TFLite ``reference/reduce.h`` QuantizedMeanOrSum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.elementwise import Rescale
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.scheme import INT8_MAX, INT8_MIN


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean: the offset of all its elements together, and 1 / N folded into the multiplier."""

    axes: tuple[int, ...]
    keep_dims: bool
    total_offset: int
    rescale: Rescale

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8 without the axes, or with 1 in their place."""
        sums = x.sum(axis=self.axes, keepdims=self.keep_dims, dtype=np.int64)
        return self.rescale(sums - self.total_offset)


def prepare(node: Node) -> Kernel:
    """Axes are a constant int32 input; the multiplier is ``s_in / s_out / N``, truncated."""
    node.check_inputs(2)
    source, affine = node.activation(0)
    axes = resolved_axes(node, len(source.shape))
    keep = node.option("keep_dims")
    node.check_output_shape(
        tuple(
            1 if axis in axes else size
            for axis, size in enumerate(source.shape)
            if keep or axis not in axes
        )
    )
    out = node.affine(node.output)
    count = math.prod(source.shape[axis] for axis in axes)
    multiplier, shift = node.multiplier(affine.scale / out.scale)
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    folded = (multiplier << bits) // count
    rescale = Rescale(folded, shift - bits, out.zero_point, INT8_MIN, INT8_MAX)
    return Mean(axes, keep, count * affine.zero_point, rescale)


def resolved_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes of input 1, each once, counted from 0; the batch may not be among them."""
    axes = node.integers(1, 0, 1)
    if not all(-rank <= axis < rank for axis in axes):
        raise node.error(f"axes={axes}; allowed are {-rank} to {rank - 1}")
    resolved = tuple(sorted({axis % rank for axis in axes}))
    if not resolved or 0 in resolved:
        raise node.error(f"axes={axes}; name at least one, and not the batch (0)")
    return resolved
