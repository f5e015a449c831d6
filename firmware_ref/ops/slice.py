"""SLICE: a box of a map. TFLite ``reference/slice.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True)
class Slice:
    """``box`` holds a slice for each axis but the batch."""

    box: tuple[slice, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8, smaller; a view."""
        return x[(slice(None), *self.box)]


def prepare(node: Node) -> Kernel:
    """Begin and size are constant int32 inputs, one entry an axis; a size of -1 is the rest."""
    node.check_inputs(3)
    source, affine = node.activation(0)
    begin, size = node.integers(1), node.integers(2)
    if not len(begin) == len(size) == len(source.shape):
        raise node.error(
            f"begin={begin} and size={size}; the input of {source.shape} needs "
            f"{len(source.shape)} of each"
        )
    sizes = [
        whole - first if wanted == -1 else wanted
        for whole, first, wanted in zip(source.shape, begin, size, strict=True)
    ]
    ends = [first + wanted for first, wanted in zip(begin, sizes, strict=True)]
    if (
        min(begin) < 0
        or min(sizes) < 1
        or any(end > whole for end, whole in zip(ends, source.shape, strict=True))
    ):
        raise node.error(f"begin={begin} and size={size} leave the input of {source.shape}")
    node.check_output_shape(tuple(sizes))
    node.check_same_quantization(affine)
    return Slice(tuple(map(slice, begin[1:], ends[1:])))
