"""SQUARED_DIFFERENCE. TFLite ``squared_difference.cc``, TFLM the same."""

from __future__ import annotations

import numpy as np

from firmware_ref.ops.elementwise import Rescale, TableBinary, operands, scaled_codes
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
    return TableBinary(
        inputs,
        (
            scaled_codes(first, LEFT_SHIFT, first.scale / twice_larger),
            scaled_codes(second, LEFT_SHIFT, second.scale / twice_larger),
        ),
        _squared_difference,
        Rescale(*node.multiplier(real), out.zero_point, INT8_MIN, INT8_MAX),
    )


def _squared_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    difference = first - second
    return difference * difference
