"""The plan of memory: smaller than TFLM's own, safe by brute force, the same numbers in TFLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budgets.arena import Arena, arena, head_buffers, not_planned
from budgets.count import count_network
from budgets.memory import lifetimes, tensor_bytes
from budgets.memory_plan import planned
from budgets.placement import most_alive_bytes
from firmware_ref.arch import preset
from firmware_ref.graph import Graph
from firmware_ref.lowering import lower
from firmware_ref.memory_plan import planned_offsets
from tests.budgets.test_count_members import draw

STEM = replace(preset("report-125k"), first_res_norm="stem")  # the shipped network


def sizes(graph: Graph) -> Arena:
    found = arena(graph)
    assert found and not_planned(graph) == ()
    return found


def bytes_in_two_places_at_once(graph: Graph) -> int:
    """By a map of the arena for every operator, byte by byte: how often one is taken twice."""
    offsets = planned_offsets(graph)
    assert offsets is not None
    twice = 0
    for time in range(-1, len(graph.operators)):
        taken = np.zeros(2**19, np.int8)
        for index, (first, last) in lifetimes(graph).items():
            if first <= time <= last:
                assert offsets[index] >= 0
                taken[offsets[index] :][: tensor_bytes(graph.tensors[index])] += 1
        twice += int((taken > 1).sum())
    return twice


@pytest.mark.parametrize("name", ["qti-c40", "qti-c80"])
def test_a_preset_needs_what_is_alive_at_once(name: str) -> None:
    """TFLM's own plan of them is 22 % larger."""
    plan = lower(preset(name))
    found = planned(plan)
    assert sizes(plan).head_bytes > 1.2 * sizes(found).head_bytes
    assert sizes(found).gap_bytes == 0
    assert sizes(found).head_bytes == most_alive_bytes(head_buffers(plan))
    assert sizes(found).tail_bytes == sizes(plan).tail_bytes
    assert bytes_in_two_places_at_once(found) == 0


def test_the_shipped_network_spares_a_quarter_of_its_arena() -> None:
    plan = lower(STEM)
    assert (sizes(plan).total_bytes, sizes(planned(plan)).total_bytes) == (216_768, 162_144)
    assert bytes_in_two_places_at_once(planned(plan)) == 0


def test_a_network_is_counted_with_the_plan_its_file_will_have() -> None:
    arena_of = count_network(STEM).on_device.arena
    assert arena_of and (arena_of.total_bytes, arena_of.gap_bytes) == (162_144, 0)


def test_no_plan_where_tflm_finds_as_good_a_one() -> None:
    plan = lower(preset("report-125k"))
    assert sizes(plan).gap_bytes == 0
    assert planned(plan) is plan


@pytest.mark.parametrize("seed", range(12))
def test_a_member_of_the_family_never_needs_more(seed: int) -> None:
    plan = lower(draw(seed))
    found = planned(plan)
    assert sizes(found).total_bytes <= sizes(plan).total_bytes
    if found is not plan:
        assert sizes(found).head_bytes < sizes(plan).head_bytes
        assert bytes_in_two_places_at_once(found) == 0


def test_the_comparison_sees_one_nudged_offset() -> None:
    found = planned(lower(STEM))
    words = np.frombuffer(found.metadata["OfflineMemoryAllocation"], "<i4").copy()
    (place,) = np.flatnonzero(words[3:] == words[3:].max())[:1]
    words[3 + place] -= 16
    nudged = replace(found, metadata={"OfflineMemoryAllocation": words.tobytes()})
    assert bytes_in_two_places_at_once(nudged) == 2 * 16  # alive at two operators


def test_the_same_plan_every_time() -> None:
    plan = lower(preset("qti-c40"))
    assert planned(plan).metadata == planned(plan).metadata
