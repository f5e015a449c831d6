"""What the operators on two broadcast maps share, and look-up tables for those on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firmware_ref.fixedpoint import mbqm, quantize_multiplier
from firmware_ref.graph import Tensor
from firmware_ref.ops.node import Affine, Kernel, Node

INT8_CODES = np.arange(256, dtype=np.uint8).view(np.int8)
"""Every int8 value, at the index of its bits read as uint8."""


SMALLEST_TABLED_MAP = 4096
"""Elements of one example from which a table of all pairs pays."""

MOST_PAIR_TABLES = 1000
"""In a graph: each takes a millisecond and 64 KB."""


def look_up(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``table[x]`` for int8 ``x`` and a table in the order of `INT8_CODES`."""
    # No index can be out of range; "wrap" spares NumPy the check and a copy.
    return np.take(table, x.view(np.uint8), mode="wrap")


@dataclass(frozen=True, eq=False)
class Table:
    """An operator on one activation: int8 results in the order of `INT8_CODES`."""

    entries: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8."""
        return look_up(self.entries, x)


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


Compute = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two arrays of int8 codes that broadcast to int8 results: an operator's arithmetic."""


@dataclass(frozen=True, eq=False)
class Binary:
    """An operator on two operands, computed."""

    operands: Operands
    compute: Compute

    def __call__(self, *activations: np.ndarray) -> np.ndarray:
        """One or two int8 activations (N, ...) -> int8 (N, ...)."""
        return self.compute(*self.operands(*activations))


@dataclass(frozen=True, eq=False)
class PairTable:
    """The same, looked up: ``entries[256 * second + first]``, both codes read as uint8."""

    operands: Operands
    entries: np.ndarray

    def __call__(self, *activations: np.ndarray) -> np.ndarray:
        """One or two int8 activations (N, ...) -> int8 (N, ...)."""
        first, second = self.operands(*activations)
        index = np.left_shift(second.view(np.uint8), 8, dtype=np.uint16)
        return np.take(self.entries, index | first.view(np.uint8), mode="wrap")


def binary(node: Node, inputs: Operands, compute: Compute) -> Kernel:
    """The fastest form of an operator: a table of one operand or of both, or computed.

    A table of both has 65,536 entries: worth it for maps that a few inputs fill.
    """
    tensors = node.operator.inputs
    if tensors[0] == tensors[1]:
        square = Table(compute(INT8_CODES, INT8_CODES))
        return lambda first, _: square(first)
    one_value = [constant is not None and constant.size == 1 for constant in inputs.constants]
    if any(one_value) and math.prod(node.output.shape) > len(INT8_CODES):
        first, second = (
            INT8_CODES if constant is None else constant.reshape(1) for constant in inputs.constants
        )
        table, varying = Table(compute(first, second)), one_value.index(False)
        # The operand in its padded shape: a constant of a higher rank gives the output its own.
        return lambda x: table(inputs(x)[varying])
    if math.prod(node.output.shape) < SMALLEST_TABLED_MAP or not node.share(MOST_PAIR_TABLES):
        return Binary(inputs, compute)
    entries = compute(INT8_CODES[None, :], INT8_CODES[:, None])
    return PairTable(inputs, entries.reshape(-1))
