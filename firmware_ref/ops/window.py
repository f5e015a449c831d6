"""Where a sliding window lies: output sizes, padding and taps of convolutions and pools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firmware_ref.graph import Tensor
from firmware_ref.ops.node import Node


@dataclass(frozen=True)
class Axis:
    """One spatial axis: window ``kernel``, ``stride``, ``dilation``, and padding in elements."""

    kernel: int
    stride: int
    dilation: int
    output: int
    before: int
    after: int

    def tap(self, number: int) -> slice:
        """The padded input elements that tap ``number`` meets, one for each output."""
        start = number * self.dilation
        return slice(start, start + (self.output - 1) * self.stride + 1, self.stride)


def axis(size: int, kernel: int, stride: int, dilation: int, padding: str) -> Axis:
    """Lay a window on ``size`` elements; ``output`` is below 1 where it does not fit.

    TFLite ComputePaddingHeightWidth: SAME gives ceil(size / stride) outputs and puts the odd
    element of padding after.
    """
    extent = (kernel - 1) * dilation + 1
    if padding == "SAME":
        output = -(-size // stride)
        total = max((output - 1) * stride + extent - size, 0)
    else:
        output, total = (size - extent) // stride + 1, 0
    return Axis(kernel, stride, dilation, output, total // 2, total - total // 2)


def offset(x: np.ndarray, zero_point: int, dtype: np.typing.DTypeLike) -> np.ndarray:
    """int8 less the zero point, in another dtype; the padding is then 0."""
    centred = x.astype(dtype)
    centred -= zero_point
    return centred


@dataclass(frozen=True)
class Window:
    """The window of one operator over the height (F) and width (T) of a (N, F, T, C) map."""

    height: Axis
    width: Axis

    def pad(self, x: np.ndarray, value: int) -> np.ndarray:
        """Pad a (N, F, T, C) array on both spatial axes."""
        sides = (self.height.before, self.height.after, self.width.before, self.width.after)
        if not any(sides):
            return x
        count, height, width, channels = x.shape
        size = (count, height + sum(sides[:2]), width + sum(sides[2:]), channels)
        padded = np.full(size, value, x.dtype)
        inner = slice(sides[0], sides[0] + height), slice(sides[2], sides[2] + width)
        padded[:, inner[0], inner[1]] = x
        return padded

    def taps(self, padded: np.ndarray) -> Iterator[np.ndarray]:
        """For each tap in row order, the (N, F', T', C) inputs it meets, as views."""
        for row in range(self.height.kernel):
            for column in range(self.width.kernel):
                yield padded[:, self.height.tap(row), self.width.tap(column), :]

    def sums(self, padded: np.ndarray) -> np.ndarray:
        """The sum under each window of integers (N, F, T, C), as int32 (N, F', T', C)."""
        rows = _sums(padded, 1, self.height)
        return _sums(rows, 2, self.width)


def _sums(x: np.ndarray, number: int, axis: Axis) -> np.ndarray:
    """Sums along one axis."""
    before = (slice(None),) * number
    if axis.output == 1:
        return x[(*before, slice(axis.kernel))].sum(axis=number, keepdims=True, dtype=np.int32)
    taps = (x[(*before, axis.tap(tap))] for tap in range(axis.kernel))
    total = next(taps).astype(np.int32)
    for tap in taps:
        total += tap
    return total


def window(node: Node, source: Tensor, kernel: tuple[int, int], dilated: bool) -> Window:
    """The window that an operator's options describe over ``source``, checked to fit."""
    if len(source.shape) != 4:
        raise node.error(f"input has shape={source.shape}; allowed is (1, F, T, C)")
    axes = []
    for size, extent, side in zip(source.shape[1:3], kernel, ("h", "w"), strict=True):
        stride = node.positive(f"stride_{side}")
        dilation = node.positive(f"dilation_{side}_factor") if dilated else 1
        found = axis(size, extent, stride, dilation, node.option("padding"))
        # A window larger than its input and padding together is never wanted, only slow.
        if found.output < 1 or extent > size + found.before + found.after:
            raise node.error(f"a kernel of {kernel} does not fit the input of {source.shape}")
        axes.append(found)
    return Window(*axes)
