"""What a flatbuffer costs on a microcontroller: instructions, estimated operator by operator.

An estimate from unit costs (``device_costs.toml``), not a measurement: the units were fitted to one
measured network, whose total they give back within 2 % (tests/budgets/test_cost.py).
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firmware_ref.graph import Graph, Operator

COSTS_FILE = Path(__file__).with_name("device_costs.toml")
CORES = ("cortex-m4", "cortex-m55")


def instructions(
    graph: Graph, operator: Operator, multiply_accumulates: int
) -> dict[str, int] | None:
    """Estimated instructions of one operator by core; None where its cost is not known.

    TFLite Micro with CMSIS-NN, whose kernels differ in speed where both operands of a sum or a
    product are maps of the output's shape.
    """
    known = _costs().get(operator.kind)
    if known is None:
        return None
    shapes = [graph.tensors[index].shape for index in operator.inputs if index >= 0]
    output = graph.tensors[operator.outputs[0]].shape
    if "same" in known:
        known = known["same" if all(shape == output for shape in shapes) else "broadcast"]
    amounts = {
        "mac": multiply_accumulates,
        "input": math.prod(shapes[0]),
        "output": math.prod(output),
        "im2col": _im2col_elements(operator, shapes, output),
    }
    return {
        core: round(sum(amounts[unit] * cost[place] for unit, cost in known.items()))
        for place, core in enumerate(CORES)
    }


def _im2col_elements(
    operator: Operator, shapes: list[tuple[int, ...]], output: tuple[int, ...]
) -> int:
    """Elements that CMSIS-NN copies to lay a convolution out as a matrix product."""
    if operator.kind != "CONV_2D" or len(shapes[1]) != 4 or len(output) != 4:
        return 0
    kernel = shapes[1][1:]
    return math.prod(output[1:3]) * math.prod(kernel) if kernel[:2] != (1, 1) else 0


@functools.cache
def _costs() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(COSTS_FILE.read_text(encoding="utf-8"))
