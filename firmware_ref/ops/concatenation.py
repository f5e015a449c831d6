"""CONCATENATION along any axis but the batch. TFLite ``reference/concatenation.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node


@dataclass(frozen=True)
class Concatenation:
    """Parts one after another along ``axis``."""

    axis: int

    def __call__(self, *parts: np.ndarray) -> np.ndarray:
        """int8 parts (N, ...) -> (N, ...) int8."""
        return np.concatenate(parts, axis=self.axis)


def prepare(node: Node) -> Kernel:
    """All parts have the quantisation of the output, and its sizes on every other axis."""
    node.check_inputs(1, len(node.operator.inputs))
    shapes = []
    for position in range(len(node.operator.inputs)):
        part, affine = node.activation(position)
        node.check_same_quantization(affine)
        shapes.append(part.shape)
    rank, axis = len(node.output.shape), node.option("axis")
    if not -rank <= axis < rank or axis % rank == 0:
        raise node.error(f"axis={axis}; allowed are those of {rank} but the batch (0)")
    axis %= rank
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rests) != 1 or any(len(shape) != rank for shape in shapes):
        raise node.error(f"parts of {shapes} do not fit together along axis {axis}")
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    node.check_output_shape(tuple(whole))
    if node.option("fused_activation") != "NONE":
        raise node.error(f"fused activation={node.option('fused_activation')}; allowed is NONE")
    return Concatenation(axis)
