"""The planner of the arena worked by hand, what it refuses, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from budgets.arena import MOST_BUFFERS, Buffer, arena, greedy_plan_bytes, not_planned
from firmware_ref.arch import preset
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.lowering import lower


def plan(*buffers: tuple[int, int, int]) -> int:
    return greedy_plan_bytes([Buffer(*buffer) for buffer in buffers])


def test_the_largest_comes_first_and_the_dead_make_room() -> None:
    """48 at 0; 32 above it; 16 where 32 has ended."""
    assert plan((32, 0, 1), (48, 1, 2), (16, 2, 3)) == 80
    assert plan((32, 0, 1), (48, 1, 2), (16, 1, 3)) == 96


def test_the_first_gap_that_is_wide_enough() -> None:
    """64 at 0, 48 above, 32 at 112 to live with both; 16 fits at 0 once 64 has ended."""
    assert plan((64, 0, 1), (48, 0, 3), (32, 0, 3), (16, 2, 3)) == 144
    assert plan((64, 0, 1), (48, 0, 3), (32, 0, 3), (16, 1, 3)) == 160


def test_of_equal_ones_the_last_comes_first() -> None:
    """The same four in the other order pack into two."""
    buffers = (16, 0, 1), (16, 1, 3), (16, 3, 3), (16, 0, 0)
    assert (plan(*buffers), plan(*reversed(buffers))) == (48, 32)


def test_no_buffers() -> None:
    assert plan() == 0


def one(kind: str, dtype: str = "int8", inputs: int = 1) -> Graph:
    tensors = tuple(Tensor(name, (1, 4), dtype) for name in "xy")
    return Graph(tensors, (Operator(kind, (0,) * inputs, (1,)),), (0,), (1,))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (one("CUSTOM:magic"), "CUSTOM:magic"),
        (one("BATCH_MATMUL"), "BATCH_MATMUL"),
        (one("SOFTMAX", "int16"), "SOFTMAX of int16"),
        (one("CONCATENATION", inputs=11), "CONCATENATION of more than 10 inputs"),
        (
            replace(one("RELU"), metadata={"OfflineMemoryAllocation": b""}),
            "metadata OfflineMemoryAllocation",
        ),
    ],
)
def test_what_is_not_planned_is_named(graph: Graph, reason: str) -> None:
    assert (arena(graph), not_planned(graph)) == (None, (reason,))
    assert not_planned(one("RELU")) == ()


def test_a_convolution_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="has no input 1"):
        arena(one("CONV_2D"))


def seconds(work: Callable[[], Any]) -> float:
    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(3))


def test_a_plan_takes_milliseconds() -> None:
    graph = lower(preset("report-125k"))
    assert seconds(lambda: arena(graph)) < 0.05


@pytest.mark.parametrize("extra", [0, 1])
def test_as_many_buffers_as_are_planned_and_one_more(extra: int) -> None:
    """All alive at once, none of them the size of the one before."""
    count = MOST_BUFFERS + extra
    tensors = tuple(Tensor(f"t{n}", (1 + 16 * (n % 97),), "int8") for n in range(count))
    operators = tuple(Operator("RELU", (0,), (n,)) for n in range(1, count))
    graph = Graph(tensors, operators, (0,), tuple(range(1, count)))
    assert seconds(lambda: arena(graph)) < 0.5
    reasons = (f"more than {MOST_BUFFERS:,} buffers",) if extra else ()
    assert (arena(graph) is None, not_planned(graph)) == (bool(extra), reasons)
