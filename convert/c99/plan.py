"""Where each map of the generated C lies: one region for maps, and room for a few rows.

Steps work in place, so that a new map is made by a convolution or a mean alone, and only two live
at a time. They lie at opposite ends of the region; a convolution that reads from the upper end and
writes from the lower one may write over what it has read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from convert.c99.steps import (
    Convolution,
    FrequencyConvolution,
    MeanPool,
    Normalization,
    Step,
    TemporalConvolution,
)
from firmware_ref.graph import Graph, Operator
from firmware_ref.ops.node import Node
from firmware_ref.ops.window import Window, window

ALIGNMENT = 16
# As in tinyscene_kernels.h.
POSITIONS = 4
WEIGHT_GROUP = 8
TABLE_CODES = 256


@dataclass(frozen=True)
class Plan:
    """Offsets of each tensor and of a ``table`` of 256 codes in ``map_bytes`` of memory.

    Beside them lie ``columns`` int16 for the windows of a convolution.
    """

    offsets: dict[int, int]
    table: int
    map_bytes: int
    columns: int

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.map_bytes + 2 * self.columns


@dataclass
class _Places:
    """Tensors that share memory: each list of maps one buffer, and two rows."""

    maps: list[list[int]]
    makers: list[Convolution | MeanPool] = field(default_factory=list)
    first_row: list[int] = field(default_factory=list)
    second_row: list[int] = field(default_factory=list)


def plan(graph: Graph, steps: Sequence[Step]) -> Plan:
    """The offsets of a network's steps."""
    places = _places(graph, steps)
    region = _aligned(_region_bytes(graph, places))
    offsets: dict[int, int] = {}
    for number, tensors in enumerate(places.maps):
        # The first, the input, lies at the upper end.
        at = 0 if number % 2 else (region - _bytes(graph, tensors[0])) // ALIGNMENT * ALIGNMENT
        offsets |= dict.fromkeys(tensors, at)
    rows = [*places.first_row, *places.second_row]
    row = _aligned(max((_bytes(graph, tensor) for tensor in rows), default=0))
    offsets |= dict.fromkeys(places.first_row, region)
    offsets |= dict.fromkeys(places.second_row, region + row)
    table = region + 2 * row
    normalizes = any(isinstance(step, Normalization) for step in steps)
    depths = [depth(graph, step.operator) for step in steps if isinstance(step, Convolution)]
    columns = POSITIONS * max(depths, default=0)
    return Plan(offsets, table, table + (TABLE_CODES if normalizes else 0), columns)


def depth(graph: Graph, operator: Operator) -> int:
    """Weights of one output of a convolution, filled up to whole groups."""
    weights = math.prod(graph.tensors[operator.inputs[1]].shape[1:])
    return -(-weights // WEIGHT_GROUP) * WEIGHT_GROUP


def place(graph: Graph, operator: Operator) -> Window:
    """The window of a convolution over its input."""
    node = Node(operator, graph)
    kernel = node.constant(1).shape[1:3]
    return window(node, node.tensor(0), (kernel[0], kernel[1]), dilated=True)


def _places(graph: Graph, steps: Sequence[Step]) -> _Places:
    """Which tensors lie in the same memory, in order of execution."""
    found = _Places([[graph.inputs[0]]])
    for step in steps:
        if isinstance(step, FrequencyConvolution):
            found.maps[-1].append(step.whole.outputs[0])
            found.first_row.append(step.mean_output.outputs[0])
        elif isinstance(step, TemporalConvolution):
            found.first_row.append(step.silu.outputs[0])
        elif isinstance(step, Convolution) and step.operator.inputs[0] in found.first_row:
            found.second_row.append(step.operator.outputs[0])
        elif isinstance(step, Convolution | MeanPool):
            found.maps.append([step.operator.outputs[0]])
            found.makers.append(step)
        elif isinstance(step, Normalization):
            found.maps[-1].append(step.difference.outputs[0])
        else:
            found.maps[-1].append(step.operator.outputs[0])
    return found


def _region_bytes(graph: Graph, places: _Places) -> int:
    """The least region in which no map is written over while it is read."""
    least = _bytes(graph, places.maps[0][0])
    for number, maker in enumerate(places.makers):
        source, result = places.maps[number], places.maps[number + 1]
        size = _bytes(graph, result[0])
        if number % 2:  # from the lower end to the upper
            least = max(least, _aligned(_bytes(graph, source[-1])) + _aligned(size))
        else:
            gap = _gap(graph, maker) if isinstance(maker, Convolution) else size
            least = max(least, _aligned(gap) + _aligned(_bytes(graph, source[0])), size)
    return least


def _gap(graph: Graph, step: Convolution) -> int:
    """How far the output must begin before the input, for no window to read what is written."""
    found = place(graph, step.operator)
    _, _, frames, channels_in = graph.tensors[step.operator.inputs[0]].shape
    _, rows_out, frames_out, channels_out = graph.tensors[step.operator.outputs[0]].shape
    top = np.maximum(np.arange(rows_out) * found.height.stride - found.height.before, 0)
    left = np.maximum(np.arange(frames_out) * found.width.stride - found.width.before, 0)
    first_read = ((top[:, None] * frames + left) * channels_in).reshape(-1)
    # What any later window reads first.
    first_read = np.minimum.accumulate(first_read[::-1])[::-1]
    begun = np.arange(POSITIONS, len(first_read), POSITIONS)
    return int(max(0, (begun * channels_out - first_read[begun]).max(initial=0)))


def _bytes(graph: Graph, tensor: int) -> int:
    return math.prod(graph.tensors[tensor].shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
