"""Places for a model's activations in TFLite Micro's arena, better than those it would find.

TFLM's own planner places the largest buffer first, which may leave gaps between those that live at
once. A plan found here travels in the model's metadata (`firmware_ref.memory_plan`), and TFLM obeys
it: the same numbers out of a smaller arena.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from budgets.arena import MOST_BUFFERS, head_buffers, placed
from budgets.placement import Buffer, greedy_plan, most_alive_bytes, place, plan_bytes
from firmware_ref.graph import Graph
from firmware_ref.memory_plan import ONLINE, PLAN_NAME, encode_offsets

# Exchanges tried, 400 for the 150 buffers of a member of the network family; each takes time with
# the square of them.
TRIALS_BY_BUFFERS_SQUARED = 400 * 150**2


def planned(graph: Graph) -> Graph:
    """``graph``, which has no plan yet, with one in its metadata where that spares memory.

    The plan has an offset in bytes for each activation; scratch buffers of kernels stay TFLM's to
    place, after them. A graph of more than `MOST_BUFFERS` buffers is left as it is.
    """
    buffers = head_buffers(graph)
    if len(buffers) > MOST_BUFFERS:
        return graph
    tensors = sorted(placed(graph))
    found = _best_offsets(buffers, len(tensors))
    if plan_bytes(buffers, found) >= plan_bytes(buffers, greedy_plan(buffers)):
        return graph
    offsets = [ONLINE] * len(graph.tensors)
    for index, offset in zip(tensors, found, strict=False):  # scratch comes last
        offsets[index] = offset
    return dataclasses.replace(
        graph, metadata={**graph.metadata, PLAN_NAME: encode_offsets(offsets)}
    )


def _best_offsets(buffers: Sequence[Buffer], tensors: int) -> list[int]:
    """Offsets in bytes that need little memory; the first ``tensors`` buffers are not scratch.

    Placed first by breadth: all that live at the operator where most is alive, the largest first,
    then at the next. Then, while that is above what is alive at once, two that live beside a buffer
    at the top change places, and back if that made it worse.
    """
    order = _by_breadth(buffers[:tensors])
    least = most_alive_bytes(buffers)
    offsets = _places(buffers, order)
    most = plan_bytes(buffers, offsets)
    draw = random.Random(0)
    for _ in range(TRIALS_BY_BUFFERS_SQUARED // len(buffers) ** 2):
        if most <= least:
            break
        top = draw.choice([b for o, b in zip(offsets, buffers, strict=True) if o + b.size == most])
        beside = [i for i in order if buffers[i].first <= top.last and buffers[i].last >= top.first]
        i, j = (order.index(draw.choice(beside)) for _ in range(2))
        changed = order.copy()
        changed[i], changed[j] = order[j], order[i]
        found = _places(buffers, changed)
        end = plan_bytes(buffers, found)
        if end <= most:
            order, offsets, most = changed, found, end
    return offsets


def _places(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    """Offsets in bytes of all: tensors placed in ``order``, then scratch as TFLM places it."""
    fixed = place(buffers[: len(order)], order)
    if len(order) == len(buffers):
        return fixed
    tensors = [dataclasses.replace(b, offset=o) for b, o in zip(buffers, fixed, strict=False)]
    return greedy_plan([*tensors, *buffers[len(order) :]])


def _by_breadth(buffers: Sequence[Buffer]) -> list[int]:
    """The order of places by breadth: operators by what is alive at each, its buffers by size.

    "Greedy by breadth" of Pisarchyk and Lee 2020, "Efficient memory management for deep neural net
    inference".
    """
    times = sorted({b.first for b in buffers})
    breadth = {t: sum(b.size for b in buffers if b.first <= t <= b.last) for t in times}
    found = dict[int, None]()
    for time in sorted(times, key=lambda t: -breadth[t]):
        alive = [i for i, b in enumerate(buffers) if b.first <= time <= b.last]
        found.update(dict.fromkeys(sorted(alive, key=lambda i: -buffers[i].size)))
    return list(found)
