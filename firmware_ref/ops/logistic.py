"""LOGISTIC: the sigmoid. TFLite ``integer_ops/logistic.h`` over gemmlowp ``logistic``."""

from __future__ import annotations

import math

import numpy as np

from firmware_ref.fixedpoint import logistic, mbqm, quantize_multiplier, rdpot
from firmware_ref.ops.elementwise import Table
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.unary import UNIT_OUTPUT, unary
from firmware_ref.scheme import INT8_MAX, INT8_MIN

INPUT_INTEGER_BITS = 4


def prepare(node: Node) -> Kernel:
    """The input goes to Q4.27, the sigmoid comes in Q0.31 and is rounded to 8 bits.

    This is what TFLM computes. tflite-runtime rounds a table of float32 sigmoids instead: equal,
    but for ties (input scales of 2^-7 and smaller powers of two) and for input scales of about 2
    and above, where values at the edge of Q4.27 saturate here. `verify` shows such a model.
    """
    source, out = unary(node)
    if out != UNIT_OUTPUT:
        raise node.error(f"output is {out}; the kernels allow {UNIT_OUTPUT}")
    if not 2.0**-27 <= source.scale < 16:
        raise node.error(f"input scale={source.scale}; allowed are 2^-27 to below 16")
    return Table(np.roll(sigmoid_codes(source.scale, source.zero_point), INT8_MIN).astype(np.int8))


def sigmoid_codes(scale: float, zero_point: int) -> np.ndarray:
    """Output code (256,) int64 of every input code from -128 up, in fixed point."""
    multiplier, shift = quantize_multiplier(scale * 2.0 ** (31 - INPUT_INTEGER_BITS))
    # CalculateInputRadius: beyond it the input would leave Q4.27, and the sigmoid has saturated.
    radius = math.floor((2**INPUT_INTEGER_BITS - 1) * 2 ** (31 - INPUT_INTEGER_BITS) / 2**shift)
    values = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int64) - zero_point
    within = np.clip(values, -radius, radius)
    raw = logistic(mbqm(within, multiplier, shift), INPUT_INTEGER_BITS)
    results = np.clip(rdpot(raw, 23) + UNIT_OUTPUT.zero_point, INT8_MIN, INT8_MAX)
    results[values >= radius] = INT8_MAX
    results[values <= -radius] = INT8_MIN
    return results
