"""MUL. TFLite ``integer_ops/mul.h``, ``mul.cc``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.elementwise import Operands, Rescale, operands
from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True, eq=False)
class Mul:
    """The product of two int8 maps, each less its zero point."""

    operands: Operands
    zero_points: tuple[int, int]
    rescale: Rescale

    def __call__(self, *activations: np.ndarray) -> np.ndarray:
        """One or two int8 activations (N, ...) -> int8 (N, ...)."""
        first, second = self.operands(*activations)
        centred = first.astype(np.int32) - np.int32(self.zero_points[0])
        return self.rescale(centred * (second.astype(np.int32) - np.int32(self.zero_points[1])))


def prepare(node: Node) -> Kernel:
    """The multiplier is ``double(s1) * s2 / s_out``."""
    inputs, first, second = operands(node)
    out = node.affine(node.output)
    low, high = node.clamp()
    multiplier = node.multiplier(first.scale * second.scale / out.scale)
    rescale = Rescale(*multiplier, out.zero_point, low, high)
    return Mul(inputs, (first.zero_point, second.zero_point), rescale)
