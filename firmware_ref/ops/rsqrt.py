"""RSQRT: one over the square root. TFLite ``elementwise.cc`` RsqrtEvalQuantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.fixedpoint import inverse_sqrt_multiplier, mbqm
from firmware_ref.ops.elementwise import INT8_CODES, look_up
from firmware_ref.ops.node import Affine, Kernel, Node
from firmware_ref.ops.unary import unary
from firmware_ref.scheme import INT8_MAX, INT8_MIN

# The result of 1 / sqrt(value) is carried with so many bits of fraction.
FRACTION_BITS = 20


@dataclass(frozen=True, eq=False)
class Rsqrt:
    """A table of results, for values at or above the zero point only."""

    name: str
    zero_point: int
    entries: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8; a value below the zero point raises `InputError`."""
        if self.zero_point > INT8_MIN and (x < self.zero_point).any():
            raise InputError(
                f"RSQRT {self.name!r}: input {x.min()} is below its zero point "
                f"{self.zero_point}, a negative number, which every interpreter refuses; "
                "give the variance a zero point of -128"
            )
        return look_up(self.entries, x)


def prepare(node: Node) -> Kernel:
    """A value equal to the zero point gives 127, whatever the scales."""
    source, out = unary(node)
    codes = INT8_CODES.astype(np.int64)
    # The root of a float32 and the product with one, in float32 as in tflite-runtime.
    product = np.sqrt(np.float32(source.scale)) * np.float32(out.scale)
    if not product > 0:
        raise node.error(f"scales {source.scale} and {out.scale} are too small")
    multiplier = node.multiplier(1.0 / float(product))
    table = [_entry(int(code) - source.zero_point, multiplier, out) for code in codes]
    return Rsqrt(node.output.name, source.zero_point, np.array(table, np.int8))


def _entry(value: int, multiplier: tuple[int, int], out: Affine) -> int:
    if value <= 0:
        return INT8_MAX
    q, shift = inverse_sqrt_multiplier(value)
    root = int(mbqm(1, q, shift + FRACTION_BITS))
    significand, exponent = multiplier
    result = int(mbqm(root, significand, exponent - FRACTION_BITS)) + out.zero_point
    return min(max(result, INT8_MIN), INT8_MAX)
