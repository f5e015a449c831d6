"""SOFTMAX over the last axis. TFLite ``reference/softmax.h`` over gemmlowp ``exp``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firmware_ref.fixedpoint import (
    exp_on_negative_values,
    mbqm,
    quantize_multiplier,
    rdpot,
    reciprocal,
    srdhm,
)
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.unary import UNIT_OUTPUT, unary
from firmware_ref.scheme import INT8_MAX, INT8_MIN

INPUT_INTEGER_BITS = 5
SUM_INTEGER_BITS = 12
# A sum of 512 ones would take the kernels' last shift to 32, which C leaves undefined: TFLM aborts.
MAX_CLASSES = 511


@dataclass(frozen=True, eq=False)
class Softmax:
    """``exponentials[d]`` is exp of the difference -d in Q0.31; 0 where it is left out."""

    exponentials: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ..., C) int8 -> (N, ..., C) int8."""
        codes = x.astype(np.int64)
        values = self.exponentials[codes.max(axis=-1, keepdims=True) - codes]
        total = rdpot(values, SUM_INTEGER_BITS).sum(axis=-1, keepdims=True)
        inverse, bits_over_unit = reciprocal(total, SUM_INTEGER_BITS)
        results = rdpot(srdhm(values, inverse), bits_over_unit + 31 - 8)
        return np.clip(results + UNIT_OUTPUT.zero_point, INT8_MIN, INT8_MAX).astype(np.int8)


def prepare(node: Node) -> Kernel:
    """Differences from the largest input go to Q5.26 and through exp; their sum is in Q12.19."""
    source, out = unary(node)
    beta = float(node.option("beta"))
    shape = node.output.shape
    if out != UNIT_OUTPUT:
        raise node.error(f"output is {out}; the kernels allow {UNIT_OUTPUT}")
    if len(shape) < 2 or shape[-1] > MAX_CLASSES:
        raise node.error(
            f"shape={shape}; allowed are (1, ..., C) with C up to {MAX_CLASSES}, where the "
            "kernels' shifts stay inside 32 bits; give the model fewer classes"
        )
    # PreprocessSoftmaxScaling
    real = min(beta * source.scale * 2.0 ** (31 - INPUT_INTEGER_BITS), 2.0**31 - 1)
    if not real > 1:
        raise node.error(f"beta={beta} times the input scale {source.scale} must be over 2^-26")
    multiplier, shift = quantize_multiplier(real)
    # CalculateInputRadius: a larger difference would leave Q5.26, and its exp counts as 0.
    radius = math.floor((2**INPUT_INTEGER_BITS - 1) * 2.0 ** (31 - INPUT_INTEGER_BITS) / 2.0**shift)
    differences = np.arange(256, dtype=np.int64)
    kept = np.minimum(differences, radius)
    table = exp_on_negative_values(mbqm(-kept, multiplier, shift), INPUT_INTEGER_BITS)
    return Softmax(np.where(differences <= radius, table, 0))
