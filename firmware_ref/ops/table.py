"""Operators on one int8 value at a time, as a table of all 256 results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.elementwise import look_up
from firmware_ref.ops.node import Affine, Node


@dataclass(frozen=True, eq=False)
class Table:
    """int8 results in the order of `elementwise.INT8_CODES`."""

    entries: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, ...) int8 -> (N, ...) int8."""
        return look_up(self.entries, x)


def unary(node: Node) -> tuple[Affine, Affine]:
    """Quantisation of the one input and the output, whose shapes must be equal."""
    node.check_inputs(1)
    source, affine = node.activation(0)
    node.check_output_shape(source.shape)
    return affine, node.affine(node.output)
