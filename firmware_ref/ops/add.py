"""ADD and its arithmetic, which SUB shares. TFLite ``integer_ops/add.h``, ``add.cc``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_ref.ops.elementwise import Rescale, binary, look_up, operands, scaled_codes
from firmware_ref.ops.node import Kernel, Node

LEFT_SHIFT = 20


def prepare(node: Node) -> Kernel:
    """The sum of two int8 maps."""
    return prepare_sum(node, np.add)


def prepare_sum(node: Node, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Kernel:
    """Both inputs go to the scale ``2 max(s1, s2) / 2**20``; ``combine``; then to the output's.

    Those of the inputs are at most 1/2; the output's must be below 1.
    """
    inputs, first, second = operands(node)
    out = node.affine(node.output)
    twice_larger = 2.0 * max(first.scale, second.scale)
    multiplier, shift = node.multiplier_below_one(twice_larger / (2**LEFT_SHIFT * out.scale))
    low, high = node.clamp()
    rescale = Rescale(multiplier, shift, out.zero_point, low, high)
    tables = (
        scaled_codes(first, LEFT_SHIFT, first.scale / twice_larger),
        scaled_codes(second, LEFT_SHIFT, second.scale / twice_larger),
    )

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return rescale(combine(look_up(tables[0], a), look_up(tables[1], b)))

    return binary(node, inputs, compute)
