"""Where a sliding window lies: output sizes, padding and taps of convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firmware_ref.graph import Tensor
from firmware_ref.ops.node import Node

# A few bytes of a file can ask for a kernel of billions of taps, or for as much padding. Taps of a
# graph's windows (each costs microseconds a call); elements of one padded map; and inputs that all
# taps of one window meet, of which those of a graph may meet so many times as much.
MOST_TAPS = 1 << 18
# So many may be one window's in any graph: that of a pool over a whole map, in a deep network.
USUAL_TAPS = 1 << 12
MOST_PADDED = 1 << 24
MOST_MET = 1 << 26
MOST_MET_TIMES = 64


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
    """The window of one operator over the height (F) and width (T) of a (N, F, T, C) map.

    ``padded`` and ``met`` are elements an example: of the padded map, and of the inputs that all
    taps meet together.
    """

    height: Axis
    width: Axis
    padded: int
    met: int

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


def window(
    node: Node, source: Tensor, kernel: tuple[int, int], dilated: bool, repeats: int = 1
) -> Window:
    """The window that an operator's options describe over ``source``, checked to fit.

    Every channel of ``source`` is there ``repeats`` times once it is padded.
    """
    if len(source.shape) != 4:
        raise node.error(f"input has shape={source.shape}; allowed is (1, F, T, C)")
    axes = []
    for size, extent, side in zip(source.shape[1:3], kernel, ("h", "w"), strict=True):
        stride = node.positive(f"stride_{side}")
        dilation = node.positive(f"dilation_{side}_factor") if dilated else 1
        found = axis(size, extent, stride, dilation, node.option("padding"))
        if found.output < 1:
            raise node.error(f"a kernel of {kernel} does not fit the input of {source.shape}")
        axes.append(found)
    height, width = axes
    taps, channels = math.prod(kernel), source.shape[3] * repeats
    sizes = zip(source.shape[1:3], axes, strict=True)
    padded = channels * math.prod(size + found.before + found.after for size, found in sizes)
    met = taps * height.output * width.output * channels
    most_met = min(MOST_MET, node.share(MOST_MET_TIMES * MOST_MET))
    most_taps = max(USUAL_TAPS, node.share(MOST_TAPS))
    if taps > most_taps or padded > MOST_PADDED or met > most_met:
        raise node.error(
            f"input {source.shape} and a kernel of {kernel} are too large to run: {taps:,} taps, "
            f"{padded:,} elements once padded, {met:,} under all taps; at most "
            f"{most_taps:,}, {MOST_PADDED:,} and {most_met:,} are allowed, of what a "
            "graph's operators share; give a smaller kernel"
        )
    return Window(height, width, padded, met)
