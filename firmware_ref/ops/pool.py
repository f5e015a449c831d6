"""What the two pools share: the window and the clamp."""

from __future__ import annotations

from firmware_ref.ops.node import Node
from firmware_ref.ops.window import Window, window


def prepare_pool(node: Node) -> tuple[Window, int, int]:
    """Window, smallest and largest output; input and output must have one quantisation."""
    node.check_inputs(1)
    source, affine = node.activation(0)
    kernel = (node.positive("filter_height"), node.positive("filter_width"))
    place = window(node, source, kernel, dilated=False)
    node.check_output_shape((1, place.height.output, place.width.output, source.shape[3]))
    node.check_same_quantization(affine)
    return place, *node.clamp()
