"""Where maps lie: never over what is still to be read, and no larger than that takes."""

from __future__ import annotations

import numpy as np
import pytest

from convert.c99.fuse import fuse
from convert.c99.plan import POSITIONS, Plan, depth, place, plan
from convert.c99.steps import Convolution, MeanPool, Step
from firmware_ref.arch import PRESETS
from firmware_ref.graph import Graph
from tests.convert.members import SMALL
from tests.convert.test_c99_generate import built, member


def size(graph: Graph, tensor: int) -> int:
    return int(np.prod(graph.tensors[tensor].shape))


def overlaps(graph: Graph, memory: Plan, step: Step) -> bool:
    """Whether a step writes a byte that it has yet to read, by going through it window by window.

    Outputs are written after the windows of `POSITIONS` of them have been read.
    """
    if isinstance(step, MeanPool):
        source, result = step.operator.inputs[0], step.operator.outputs[0]
        a, b = memory.offsets[source], memory.offsets[result]
        return a < b + size(graph, result) and b < a + size(graph, source)
    assert isinstance(step, Convolution)
    operator = step.operator
    window = place(graph, operator)
    _, rows, frames, channels = graph.tensors[operator.inputs[0]].shape
    _, rows_out, frames_out, out = graph.tensors[operator.outputs[0]].shape
    reads = []
    for row in range(rows_out):
        for frame in range(frames_out):
            top = row * window.height.stride - window.height.before
            left = frame * window.width.stride - window.width.before
            reads.append(
                min(
                    (r * frames + t) * channels
                    for r in range(max(top, 0), min(top + window.height.kernel, rows))
                    for t in range(max(left, 0), min(left + window.width.kernel, frames))
                )
            )
    x, y = memory.offsets[operator.inputs[0]], memory.offsets[operator.outputs[0]]
    if y >= x + size(graph, operator.inputs[0]):
        return False
    for done in range(POSITIONS, len(reads), POSITIONS):
        if y + done * out > x + min(reads[done:]):
            return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_no_step_writes_what_is_still_to_be_read(seed: int) -> None:
    graph = built(member(np.random.default_rng(seed)), seed)
    steps = fuse(graph)
    memory = plan(graph, steps)
    for step in steps:
        if isinstance(step, Convolution | MeanPool):
            assert not overlaps(graph, memory, step)
    for tensor, offset in memory.offsets.items():
        assert 0 <= offset <= memory.map_bytes - size(graph, tensor) and offset % 16 == 0


def test_a_plan_one_step_tighter_would_overlap() -> None:
    """The check above sees it, and the stem's overlap is as large as it can be."""
    graph = built(PRESETS["report-125k"])
    steps = fuse(graph)
    memory = plan(graph, steps)
    stem = next(step for step in steps if isinstance(step, Convolution))
    source = stem.operator.inputs[0]
    assert not overlaps(graph, memory, stem)
    memory.offsets[source] -= 64
    assert overlaps(graph, memory, stem)


def test_the_depth_of_a_window_is_filled_up_to_eights() -> None:
    graph = built(SMALL)
    depths = {graph.name(op): depth(graph, op) for op in graph.operators if op.kind == "CONV_2D"}
    assert depths["stem.conv"] == 80 and depths["stage1.block1.expand"] == 8
