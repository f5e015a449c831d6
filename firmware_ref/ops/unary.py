"""What the operators on one int8 value at a time share."""

from __future__ import annotations

from firmware_ref.ops.node import Affine, Node
from firmware_ref.scheme import LOGISTIC_OUTPUT

# The one output that the kernels of LOGISTIC and SOFTMAX allow: [0, 1) in steps of 1/256.
UNIT_OUTPUT = Affine(LOGISTIC_OUTPUT.scale[0], LOGISTIC_OUTPUT.zero_point[0])


def unary(node: Node) -> tuple[Affine, Affine]:
    """Quantisation of the one input and the output, whose shapes must be equal."""
    node.check_inputs(1)
    source, affine = node.activation(0)
    node.check_output_shape(source.shape)
    return affine, node.affine(node.output)
