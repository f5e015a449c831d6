"""MUL. TFLite ``integer_ops/mul.h``, ``mul.cc``."""

from __future__ import annotations

import numpy as np

from firmware_ref.ops.elementwise import Rescale, binary, operands
from firmware_ref.ops.node import Kernel, Node


def prepare(node: Node) -> Kernel:
    """The product of two int8 maps, each less its zero point; ``double(s1) * s2 / s_out``.

    TFLM takes that multiplier in double, and so does this; tflite-runtime takes it in float32,
    which can differ by 1 in a few of all products unless the scales are `agreement.agreed`.
    """
    inputs, first, second = operands(node)
    out = node.affine(node.output)
    low, high = node.clamp()
    multiplier = node.multiplier(first.scale * second.scale / out.scale)
    rescale = Rescale(*multiplier, out.zero_point, low, high)

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        centred = a.astype(np.int32) - np.int32(first.zero_point)
        return rescale(centred * (b.astype(np.int32) - np.int32(second.zero_point)))

    return binary(node, inputs, compute)
