"""Counts written by hand, for tests of what is made of a count."""

from __future__ import annotations

import dataclasses
from typing import Any

from budgets.arena import Arena
from budgets.check import check, unchecked
from budgets.count import Count, LayerCount, Total
from budgets.limits import Limits
from budgets.verdict import Verdict

CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
HOSTILE = '<script>alert("1")</script>|`\x1b[31m\n\u202e\udc80' + "x" * 500
LIMITS = Limits({"parameters": 128_000, "multiply_accumulates": 30_000_000})


def by_core(*values: int) -> dict[str, int]:
    return dict(zip(CORES, values, strict=True))


STEM = LayerCount(
    name="stem.conv",
    op="CONV_2D",
    output_shape=(1, 4, 5, 6),
    parameters=1_014,
    macs=20_000,
    weight_bytes=1_008,
    bias_bytes=24,
    other_bytes=2,
    activation_bytes=120,
    live_bytes=480,
    receptive_bands=5,
    receptive_frames=3,
    receptive_ms=325.0794,
    instructions=by_core(40_000, 40_001, 40_002, 9_000),
)
FIRST = LayerCount(
    name="block1.sum",
    op="ADD",
    output_shape=(1, 4, 5, 6),
    parameters=6,
    macs=0,
    weight_bytes=6,
    other_bytes=1,
    elementwise=120,
    activation_bytes=120,
    live_bytes=246,
    receptive_bands=7,
    receptive_frames=5,
    receptive_ms=348.3,
    instructions=by_core(1_000, 1_001, 1_002, 300),
)
SECOND = LayerCount(
    name="block2.sum",
    op="MEAN",
    output_shape=(1, 1, 5, 7),
    parameters=7,
    macs=10,
    weight_bytes=7,
    reductions=140,
    activation_bytes=121,
    live_bytes=247,
    receptive_bands=128,
    receptive_frames=5,
    receptive_ms=None,
    instructions=by_core(1_010, 1_011, 1_012, 310),
)


def flatbuffer(**changes: Any) -> Count:
    """Of a ``.tflite`` file with three layers."""
    count = Count(
        name="m.tflite",
        kind="tflite",
        layers=(STEM, FIRST, SECOND),
        conventions={"plain": Total(1_027, 20_010), "nessi_tflite": Total(1_048, 20_400)},
        sizes={"weights": 1_021, "biases": 24, "other": 3, "file": 2_500},
        parts={"weights": 1_021, "integers": 24, "quantization": 60, "metadata": 0, "graph": 1_395},
        peak_bytes=480,
        peak_layer="stem.conv",
        arena=Arena(head_bytes=600, tail_bytes=434, total_bytes=1_034, gap_bytes=40),
        instructions=by_core(42_010, 42_013, 42_016, 9_610),
    )
    return dataclasses.replace(count, **changes)


def network(**changes: Any) -> Count:
    """Of a network that has the three layers once deployed, and a norm that is folded away."""
    trained = (
        LayerCount("stem.conv", "conv", (6, 4, 5), 1_000, 20_000),
        LayerCount("stem.norm", "batch_norm", (6, 4, 5), 12, 0),
        LayerCount("block1.sum", "add", (6, 4, 5), 0, 0),
    )
    device = flatbuffer(
        name="net, deployed", sizes={"weights": 1_021, "biases": 24, "other": 3}, parts={}
    )
    count = Count(
        name="net",
        kind="preset",
        layers=trained,
        conventions={"plain": Total(1_012, 20_000), "torchinfo": Total(1_012, 20_012)},
        deployed=device,
    )
    return dataclasses.replace(count, **changes)


def hostile() -> Count:
    """A flatbuffer whose names try every markup and a terminal escape."""
    row = dataclasses.replace(STEM, name=HOSTILE, op="CUSTOM:<b>|\\|@all\x1b")
    return flatbuffer(
        name=HOSTILE,
        layers=(row,),
        peak_layer=HOSTILE,
        not_costed=(row.op,),
        not_int8=(f"{HOSTILE}: float32",),
        not_counted=(f"{HOSTILE}: CUSTOM",),
    )


def judged(count: Count, limits: Limits = LIMITS, **more: Any) -> Verdict:
    """The verdict; with ``changes`` over a baseline of the same name, else without any."""
    if "changes" in more:
        more = {"baseline": count.name, **more}
    return Verdict(count, tuple(check(count, limits)), tuple(unchecked(count, limits)), **more)
