"""TRANSPOSE: the axes in another order, the batch first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True)
class Transpose:
    """``permutation`` of all axes; the first is 0."""

    permutation: tuple[int, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8."""
        return np.ascontiguousarray(x.transpose(self.permutation))


def prepare(node: Node) -> Kernel:
    """The permutation is a constant int32 input."""
    node.check_inputs(2)
    source, affine = node.activation(0)
    permutation = node.integers(1)
    rank = len(source.shape)
    if sorted(permutation) != list(range(rank)) or permutation[0] != 0:
        raise node.error(
            f"permutation={permutation}; allowed are those of 0 to {rank - 1}, 0 first"
        )
    node.check_output_shape(tuple(source.shape[axis] for axis in permutation))
    node.check_same_quantization(affine)
    return Transpose(permutation)
