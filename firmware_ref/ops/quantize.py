"""QUANTIZE from int8 to int8: another scale. TFLite ``reference/requantize.h``."""

from __future__ import annotations

from firmware_ref.ops.elementwise import INT8_CODES, Rescale, Table
from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.unary import unary
from firmware_ref.scheme import INT8_MAX, INT8_MIN


def prepare(node: Node) -> Kernel:
    """The multiplier is ``s_in / s_out``."""
    source, out = unary(node)
    multiplier = node.multiplier(source.scale / out.scale)
    rescale = Rescale(*multiplier, out.zero_point, INT8_MIN, INT8_MAX)
    return Table(rescale(INT8_CODES.astype("int64") - source.zero_point))
