"""SQUARED_DIFFERENCE. TFLite ``squared_difference.cc``, TFLM the same."""

from __future__ import annotations

import numpy as np

from firmware_ref.ops.elementwise import Rescale, binary, look_up, operands, scaled_codes
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.scheme import INT8_MAX, INT8_MIN

# 255**2 << 14 still fits int32.
LEFT_SHIFT = 7


def prepare(node: Node) -> Kernel:
    """Both inputs go to the scale ``2 max(s1, s2) / 2**7``; their difference squared; rescaled."""
    inputs, first, second = operands(node)
    out = node.affine(node.output)
    twice_larger = 2.0 * max(first.scale, second.scale)
    real = twice_larger * twice_larger / (2 ** (2 * LEFT_SHIFT) * out.scale)
    rescale = Rescale(*node.multiplier_below_one(real), out.zero_point, INT8_MIN, INT8_MAX)
    tables = (
        scaled_codes(first, LEFT_SHIFT, first.scale / twice_larger),
        scaled_codes(second, LEFT_SHIFT, second.scale / twice_larger),
    )

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        difference = look_up(tables[0], a) - look_up(tables[1], b)
        return rescale(difference * difference)

    return binary(node, inputs, compute)
