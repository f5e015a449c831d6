"""The planner of the arena worked by hand, what it refuses, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from budgets.arena import (
    MOST_BUFFERS,
    arena,
    not_planned,
    refuse_bad_plan,
)
from budgets.count import count_graph
from budgets.placement import (
    Buffer,
    greedy_plan,
    most_alive_bytes,
    overlap,
    place,
    plan_bytes,
)
from firmware_ref.arch import preset
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.lowering import lower
from firmware_ref.memory_plan import PLAN_NAME, encode_offsets


def plan(*buffers: tuple[int, ...]) -> int:
    found = [Buffer(*buffer) for buffer in buffers]
    return plan_bytes(found, greedy_plan(found))


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
    assert plan() == most_alive_bytes([]) == 0
    assert not overlap([], [])


def test_fixed_ones_come_first_and_the_rest_between_them() -> None:
    """16 and 32 fixed at 0 and 64; 48 fits between them, of 64 only above; 64 above all later."""
    fixed = (16, 0, 3, 0), (32, 0, 3, 64)
    assert plan(*fixed) == 96
    assert plan(*fixed, (48, 0, 1)) == 96
    assert plan(*fixed, (64, 0, 1)) == plan((64, 0, 1), *fixed) == 160
    assert plan(*fixed, (48, 0, 1), (32, 1, 2)) == 128


def test_any_order_of_placing() -> None:
    """Small to large needs 32 more: 32 over 16, and 48 over both."""
    buffers = [Buffer(16, 0, 1), Buffer(32, 0, 2), Buffer(48, 2, 3)]
    assert place(buffers, [0, 1, 2]) == [0, 16, 48]
    assert place(buffers, [2, 1, 0]) == [0, 48, 0]
    assert most_alive_bytes(buffers) == 80


def test_what_is_in_one_place_at_once() -> None:
    first, second = Buffer(32, 0, 2), Buffer(16, 2, 3)
    for offset, wrong in ((16, True), (31, True), (32, False), (0, True), (-1, False)):
        assert overlap([first, second], [0, offset]) is wrong
    assert not overlap([first, Buffer(16, 3, 3)], [0, 16])


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
    ],
)
def test_what_is_not_planned_is_named(graph: Graph, reason: str) -> None:
    assert (arena(graph), not_planned(graph)) == (None, (reason,))
    assert not_planned(one("RELU")) == ()


@pytest.mark.parametrize("offsets", [(0, 0), (16, 16)])
def test_a_plan_with_two_tensors_in_one_place_is_refused(offsets: tuple[int, int]) -> None:
    graph = replace(one("RELU"), metadata={PLAN_NAME: encode_offsets(offsets)})
    with pytest.raises(InputError, match="two tensors in one place while both are needed"):
        count_graph(graph, "m.tflite")


@pytest.mark.parametrize("offsets", [(0, 16), (16, 0), (0, -1), (-1, -1), (-1, 4_096)])
def test_a_plan_that_can_be(offsets: tuple[int, int]) -> None:
    graph = replace(one("RELU"), metadata={PLAN_NAME: encode_offsets(offsets)})
    refuse_bad_plan(graph)
    found = arena(graph)
    assert found and found.head_bytes == max(max(offsets) + 16, 32)
    assert count_graph(graph, "m.tflite").arena == found


def test_a_damaged_plan_is_refused() -> None:
    graph = replace(one("RELU"), metadata={PLAN_NAME: b"\0" * 16})
    with pytest.raises(InputError, match="16 bytes for 0 tensors; 20 are needed"):
        count_graph(graph, "m.tflite")


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
