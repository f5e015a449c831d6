"""RSQRT: one over the square root. TFLite ``elementwise.cc`` RsqrtEvalQuantized."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.fixedpoint import inverse_sqrt_multiplier, mbqm
from firmware_ref.ops.elementwise import INT8_CODES, look_up
from firmware_ref.ops.node import Kernel, Node
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
    # The root of a float32 and the product with one, in float32 as in tflite-runtime.
    product = np.sqrt(np.float32(source.scale)) * np.float32(out.scale)
    if not product > 0:
        raise node.error(f"scales {source.scale} and {out.scale} are too small")
    significand, exponent = node.multiplier(1.0 / float(product))
    if not significand or exponent - FRACTION_BITS < -31:
        raise node.error(
            f"the root of the input's scale {source.scale} times the output's {out.scale} is "
            f"{product:.6g}; allowed is up to {2 ** (32 - FRACTION_BITS):,}, where the kernels' "
            "shift stays inside 32 bits; give the output a smaller scale"
        )
    values = INT8_CODES.astype(np.int64) - source.zero_point
    roots = _roots()[np.maximum(values, 0)]
    results = mbqm(roots, significand, exponent - FRACTION_BITS) + out.zero_point
    table = np.where(values > 0, np.clip(results, INT8_MIN, INT8_MAX), INT8_MAX)
    return Rsqrt(node.output.name, source.zero_point, table.astype(np.int8))


@functools.cache
def _roots() -> np.ndarray:
    """``1 / sqrt(value)`` with `FRACTION_BITS`, int64 (256,), of every value a code can have."""
    pairs = [inverse_sqrt_multiplier(value) for value in range(256)]
    return np.array([int(mbqm(1, q, shift + FRACTION_BITS)) for q, shift in pairs])
