"""What the operators on one int8 value at a time share."""

from __future__ import annotations

from firmware_ref.ops.node import Affine, Node


def unary(node: Node) -> tuple[Affine, Affine]:
    """Quantisation of the one input and the output, whose shapes must be equal."""
    node.check_inputs(1)
    source, affine = node.activation(0)
    node.check_output_shape(source.shape)
    return affine, node.affine(node.output)
