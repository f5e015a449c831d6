"""What the operators on two broadcast maps share, and look-up tables for those on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firmware_ref.fixedpoint import mbqm, quantize_multiplier
from firmware_ref.graph import Tensor
from firmware_ref.ops.node import Affine, Node

INT8_CODES = np.arange(256, dtype=np.uint8).view(np.int8)
"""Every int8 value, at the index of its bits read as uint8."""


def look_up(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``table[x]`` for int8 ``x`` and a table in the order of `INT8_CODES`."""
    # No index can be out of range; "wrap" spares NumPy the check and a copy.
    return np.take(table, x.view(np.uint8), mode="wrap")


@dataclass(frozen=True, eq=False)
class Operands:
    """Two int8 operands of one rank: the activations, and the constant (if any) in its place."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    constants: tuple[np.ndarray | None, np.ndarray | None]

    def __call__(self, *activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two arrays, ready to broadcast: (N, ...) or, for a constant, (1, ...)."""
        waiting = iter(activations)
        first, second = (
            next(waiting).reshape(-1, *shape[1:]) if constant is None else constant
            for shape, constant in zip(self.shapes, self.constants, strict=True)
        )
        return first, second


def operands(node: Node) -> tuple[Operands, Affine, Affine]:
    """The two inputs, checked to broadcast to the output's shape (NumPy's rule, TFLite's too)."""
    node.check_inputs(2)
    tensors = (node.tensor(0), node.tensor(1))
    affines = [node.affine(tensor) for tensor in tensors]
    if all(tensor.data is not None for tensor in tensors):
        raise node.error("both inputs are constants; fold them before converting")
    try:
        shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except ValueError:
        shapes = " and ".join(str(tensor.shape) for tensor in tensors)
        raise node.error(f"inputs of {shapes} do not broadcast") from None
    node.check_output_shape(shape)
    node.affine(node.output)
    first, second = (_padded(tensor, len(shape)) for tensor in tensors)
    constants = tuple(
        None if tensor.data is None else tensor.data.reshape(padded)
        for tensor, padded in zip(tensors, (first, second), strict=True)
    )
    return Operands((first, second), (constants[0], constants[1])), affines[0], affines[1]


def _padded(tensor: Tensor, rank: int) -> tuple[int, ...]:
    """The tensor's shape with leading ones, so that its batch stays the first axis."""
    return (1,) * (rank - len(tensor.shape)) + tensor.shape


def scaled_codes(affine: Affine, left_shift: int, real_multiplier: float) -> np.ndarray:
    """int32 of each int8 code: its offset value, shifted left, then multiplied.

    The first half of ADD, SUB and SQUARED_DIFFERENCE depends on one operand only, so a table of
    256 entries holds it, in the order of `INT8_CODES`.
    """
    values = (INT8_CODES.astype(np.int64) - affine.zero_point) << left_shift
    return mbqm(values, *quantize_multiplier(real_multiplier)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Rescale:
    """int32 to int8: multiplier (Q0.31), shift, zero point and clamp, the same everywhere."""

    multiplier: int
    shift: int
    zero_point: int
    low: int
    high: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Any integer array to int8."""
        scaled = mbqm(values, self.multiplier, self.shift)
        scaled += self.zero_point
        return np.clip(scaled, self.low, self.high, out=scaled).astype(np.int8)


@dataclass(frozen=True, eq=False)
class TableBinary:
    """ADD, SUB, SQUARED_DIFFERENCE: a table for each operand, ``combine``, one rescaling."""

    operands: Operands
    tables: tuple[np.ndarray, np.ndarray]
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
    rescale: Rescale

    def __call__(self, *activations: np.ndarray) -> np.ndarray:
        """One or two int8 activations (N, ...) -> int8 (N, ...)."""
        first, second = self.operands(*activations)
        combined = self.combine(look_up(self.tables[0], first), look_up(self.tables[1], second))
        return self.rescale(combined)
