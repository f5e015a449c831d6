"""RESHAPE: the same values in the same order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True)
class Reshape:
    """``shape`` of one example, without the batch."""

    shape: tuple[int, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, *shape) int8."""
        return x.reshape(len(x), *self.shape)


def prepare(node: Node) -> Kernel:
    """The shape is a constant int32 input or an option; one entry may be -1. The batch stays."""
    node.check_inputs(1, 2)
    source, affine = node.activation(0)
    wanted = node.option("new_shape") if node.input(1) is None else node.integers(1)
    elements = math.prod(source.shape)
    known = math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) == 1 and known > 0:
        wanted = tuple(elements // known if size == -1 else size for size in wanted)
    if math.prod(wanted) != elements or min(wanted, default=0) < 1:
        raise node.error(f"shape={wanted} does not hold the {elements} elements of the input")
    node.check_output_shape(tuple(wanted))
    node.check_same_quantization(affine)
    return Reshape(node.output.shape[1:])
