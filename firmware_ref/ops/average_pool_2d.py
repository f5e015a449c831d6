"""AVERAGE_POOL_2D. TFLite ``integer_ops/pooling.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.ops.node import Kernel, Node
from firmware_ref.ops.pool import prepare_pool
from firmware_ref.ops.window import Window


@dataclass(frozen=True, eq=False)
class AveragePool2D:
    """Sums of int8 codes divided by ``counts`` (F', T', 1), half away from zero."""

    window: Window
    counts: np.ndarray
    low: int
    high: int

    @property
    def working(self) -> int:
        """Elements an example takes here: its padded map."""
        return self.window.padded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C) int8 -> (N, F', T', C) int8; padding does not count."""
        sums = self.window.sums(self.window.pad(x, 0))
        magnitude = (np.abs(sums) + self.counts // 2) // self.counts
        return np.clip(np.sign(sums) * magnitude, self.low, self.high).astype(np.int8)


def prepare(node: Node) -> Kernel:
    """One quantisation for input and output."""
    place, low, high = prepare_pool(node)
    ones = np.ones((1, *node.tensor(0).shape[1:3], 1), np.int8)
    return AveragePool2D(place, place.sums(place.pad(ones, 0))[0], low, high)
