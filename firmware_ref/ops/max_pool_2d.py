"""MAX_POOL_2D. TFLite ``integer_ops/pooling.h``."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.pool import prepare_pool
from firmware_ref.ops.window import Window
from firmware_ref.scheme import INT8_MIN


@dataclass(frozen=True, eq=False)
class MaxPool2D:
    """The largest value under each window; padding never wins."""

    window: Window
    low: int
    high: int

    @property
    def working(self) -> int:
        """Elements an example takes here: its padded map."""
        return self.window.padded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C) int8 -> (N, F', T', C) int8."""
        largest = functools.reduce(np.maximum, self.window.taps(self.window.pad(x, INT8_MIN)))
        return np.clip(largest, self.low, self.high)


def prepare(node: Node) -> Kernel:
    """One quantisation for input and output."""
    return MaxPool2D(*prepare_pool(node))
