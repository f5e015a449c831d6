"""Buffers in an arena: where TFLite Micro's planner places them, and where another order would.

The planner is GreedyMemoryPlanner (tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc).
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from firmware_ref.memory_plan import ONLINE


@dataclass(frozen=True)
class Buffer:
    """``size`` bytes, needed from operator ``first`` to ``last``; ``offset`` where it is fixed."""

    size: int
    first: int
    last: int
    offset: int = ONLINE


def greedy_plan(buffers: Sequence[Buffer]) -> list[int]:
    """The offset in bytes of each buffer as GreedyMemoryPlanner places them.

    The fixed ones first; then the largest first, of equal ones the last.
    """
    order = range(len(buffers))
    fixed = [i for i in order if buffers[i].offset != ONLINE]
    free = sorted(set(order).difference(fixed), key=lambda i: (-buffers[i].size, -i))
    return place(buffers, [*fixed, *free])


def place(buffers: Sequence[Buffer], order: Iterable[int]) -> list[int]:
    """The offset in bytes of each buffer, placed in ``order``, which names each once.

    Each goes to its own offset, or to the lowest where it fits between those placed before that
    are alive at the same time.
    """
    offsets = [0] * len(buffers)
    walls = list[tuple[int, int, int, int]]()  # begin, end, first, last; by begin
    for i in order:
        buffer = buffers[i]
        begin = max(buffer.offset, 0)
        if buffer.offset == ONLINE:
            for wall, end, first, last in walls:
                if first <= buffer.last and last >= buffer.first:
                    if wall - begin >= buffer.size:
                        break
                    begin = max(begin, end)
        offsets[i] = begin
        bisect.insort(walls, (begin, begin + buffer.size, buffer.first, buffer.last))
    return offsets


def plan_bytes(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    """The end of the last buffer; 0 where there is none."""
    return max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)


def most_alive_bytes(buffers: Sequence[Buffer]) -> int:
    """Bytes of the buffers alive at once, at most: no plan is smaller."""
    changes = Counter[int]()
    for buffer in buffers:
        changes[buffer.first] += buffer.size
        changes[buffer.last + 1] -= buffer.size
    return max(itertools.accumulate(changes[time] for time in sorted(changes)), default=0)


def overlap(buffers: Sequence[Buffer], offsets: Sequence[int]) -> bool:
    """Whether two buffers with an offset share a byte while both are alive."""
    rows = [(o, o + b.size, b.first, b.last) for o, b in zip(offsets, buffers, strict=True)]
    begin, end, first, last = np.array([row for row in rows if row[0] != ONLINE] or [(0,) * 4]).T
    for i in range(len(begin)):
        later = slice(i + 1, None)
        shared = (begin[later] < end[i]) & (end[later] > begin[i])
        if (shared & (first[later] <= last[i]) & (last[later] >= first[i])).any():
            return True
    return False
