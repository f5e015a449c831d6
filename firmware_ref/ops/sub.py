"""SUB: ADD's arithmetic with a difference. TFLite ``reference/sub.h``."""

from __future__ import annotations

import numpy as np

from firmware_ref.ops.add import prepare_sum
from firmware_ref.ops.node import Kernel, Node


def prepare(node: Node) -> Kernel:
    """The first int8 map less the second."""
    return prepare_sum(node, np.subtract)
