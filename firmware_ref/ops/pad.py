"""PAD with the zero point. TFLite ``reference/pad.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True, eq=False)
class Pad:
    """``amounts`` (before, after) for each axis."""

    amounts: tuple[tuple[int, int], ...]
    value: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8, larger."""
        return np.pad(x, self.amounts, constant_values=self.value)


def prepare(node: Node) -> Kernel:
    """Paddings are a constant int32 input (rank, 2), 0 for the batch."""
    node.check_inputs(2)
    source, affine = node.activation(0)
    flat = node.integers(1, 2)
    amounts = tuple(zip(flat[::2], flat[1::2], strict=False))
    shape = node.tensor(1).shape
    if shape != (len(source.shape), 2) or min(flat) < 0 or amounts[0] != (0, 0):
        raise node.error(
            f"paddings={flat} of shape={shape}; allowed are two numbers from 0 an axis, and none "
            "for the batch"
        )
    sizes = zip(source.shape, amounts, strict=True)
    node.check_output_shape(tuple(size + before + after for size, (before, after) in sizes))
    node.check_same_quantization(affine)
    return Pad(amounts, affine.zero_point)
