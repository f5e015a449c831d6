"""What a flatbuffer costs on a microcontroller: instructions, estimated operator by operator.

An estimate from unit costs (``device_costs.toml``), not a measurement: the units were fitted to one
measured network, whose total they give back within 2 % (tests/budgets/test_cost.py). Operators that
it does not have count with upper bounds.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgets.rules import weights_shape
from firmware_ref.graph import Graph, Operator

COSTS_FILE = Path(__file__).with_name("device_costs.toml")


@dataclass(frozen=True)
class Core:
    """A processor: its ``column`` of unit costs, and what is known of it.

    ``error_percent`` is how far the estimate of the measured network is off at most; None on a core
    that was not measured, with the instructions of ``same_as``. ``cycles_per_instruction`` is an
    assumption.
    """

    column: int
    cycles_per_instruction: float
    error_percent: float | None = None
    same_as: str | None = None

    def milliseconds(self, instructions: int, clock_mhz: float) -> float:
        """Time of so many instructions at a clock."""
        return instructions * self.cycles_per_instruction / (1000 * clock_mhz)


@functools.cache
def cores() -> Mapping[str, Core]:
    """Every core with unit costs, by name."""
    return {name: Core(**values) for name, values in _costs()["cores"].items()}


@dataclass(frozen=True)
class BundleBytes:
    """What a bundle for TFLite Micro takes besides flatbuffer and arena, measured.

    ``arena_margin_bytes`` make an arena that is enough for TFLM's own kernels enough for others.
    """

    runtime_flash_bytes: int
    frontend_flash_bytes: int
    frontend_ram_bytes: int
    arena_margin_bytes: int

    def flash(self, flatbuffer_bytes: int) -> int:
        """Of the whole bundle."""
        return flatbuffer_bytes + self.runtime_flash_bytes + self.frontend_flash_bytes

    def ram(self, arena_bytes: int) -> int:
        """Of the whole bundle, without the stack; ``arena_bytes`` without the margin."""
        return arena_bytes + self.arena_margin_bytes + self.frontend_ram_bytes


@functools.cache
def bundle_bytes() -> BundleBytes:
    """Measured on Cortex-M4."""
    return BundleBytes(**_costs()["bundle"])


def instructions(
    graph: Graph, operator: Operator, multiply_accumulates: int
) -> dict[str, int] | None:
    """Estimated instructions of one operator by core; None where its cost is not known.

    TFLite Micro with CMSIS-NN, whose kernels differ in speed where both operands of a sum or a
    product are maps of the output's shape.
    """
    known = _costs()["operators"].get(operator.kind)
    if known is None:
        return None
    read = dict.fromkeys(operator.inputs)  # each once
    shapes = [graph.tensors[index].shape for index in read if index >= 0]
    output = graph.tensors[operator.outputs[0]].shape
    if "same" in known:
        known = known["same" if all(shape == output for shape in shapes) else "broadcast"]
    amounts = {
        "mac": multiply_accumulates,
        "input": math.prod(shapes[0]) if shapes else 0,
        "output": sum(math.prod(graph.tensors[index].shape) for index in operator.outputs),
        "im2col": _im2col_elements(graph, operator, output),
    }
    return {
        name: round(sum(amounts[unit] * cost[core.column] for unit, cost in known.items()))
        for name, core in cores().items()
    }


def _im2col_elements(graph: Graph, operator: Operator, output: tuple[int, ...]) -> int:
    """Elements that CMSIS-NN copies to lay a convolution out as a matrix product."""
    if operator.kind != "CONV_2D":
        return 0
    kernel = weights_shape(graph, operator, rank=4)[1:]
    return math.prod(output[1:3]) * math.prod(kernel) if kernel[:2] != (1, 1) else 0


@functools.cache
def _costs() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(COSTS_FILE.read_text(encoding="utf-8"))
