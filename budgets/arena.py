"""The arena that TFLite Micro needs for a graph, planned as its own interpreter plans it.

The head holds activations and the scratch buffers of kernels, placed by GreedyMemoryPlanner
(tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc) within the lifetimes of
AllocationInfoBuilder (micro_allocation_info.cc), or where the model's metadata say
(`firmware_ref.memory_plan`); the tail what lasts: micro_allocator.cc, micro_interpreter.cc, and
``Init`` and ``Prepare`` of each of kernels/.

The figures are a 64-bit host's (``tflm_arena.toml`` says of which version): above those of a 32-bit
Arm, by 1.8 % in the one network measured on both. They are for TFLM's own kernels; CMSIS-NN's ask
for scratch buffers besides.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgets.memory import BEFORE, lifetimes, tensor_bytes
from budgets.placement import Buffer, greedy_plan, most_alive_bytes, overlap, plan_bytes
from budgets.rules import REDUCTIONS, weights_shape
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.memory_plan import ONLINE, PLAN_NAME, planned_offsets

SIZES_FILE = Path(__file__).with_name("tflm_arena.toml")
ALIGNMENT = 16
# The planner takes time with the square of them; a member of the network family has a few hundred.
MOST_BUFFERS = 1_024
# Kernels ask for more where they compute on other types.
TYPES = ("int8", "int32", "float32")


@dataclass(frozen=True)
class Arena:
    """Bytes of the arena's two ends, and of an arena that is enough, a multiple of 16.

    Of the head, ``gap_bytes`` are lost: it is larger by so much than all buffers that are alive at
    once, at most. ``total_bytes`` is more than head and tail together where the interpreter needs
    more while it prepares kernels and plans than later, as in graphs of small maps.
    """

    head_bytes: int
    tail_bytes: int
    total_bytes: int
    gap_bytes: int


def arena(graph: Graph) -> Arena | None:
    """Plan a graph; None where `not_planned` says why.

    A tensor of a plan without weights (`firmware_ref.lowering.lower`) counts as quantised per
    tensor. Raises `InputError` for a convolution or fully connected layer without weights.
    """
    if not_planned(graph):
        return None
    buffers = head_buffers(graph)
    head = plan_bytes(buffers, greedy_plan(buffers))
    tail = _Tail()
    preparing = _prepare(tail, graph)
    planning = _plan(tail, graph, len(buffers))
    _publish(tail, graph)
    total = _aligned(max(preparing, planning, head + tail.used))
    return Arena(head, tail.used, total, head - most_alive_bytes(buffers))


def tail_by_part(graph: Graph) -> Mapping[str, int]:
    """The tail of a planned graph, in the parts that TFLM's ``PrintAllocations`` names.

    ``interpreter`` is what it leaves out: the interpreter's own records, options of operators and
    handles of scratch buffers.
    """
    tail = _Tail()
    _prepare(tail, graph)
    _plan(tail, graph, 0)
    _publish(tail, graph)
    return dict(tail.parts)


def not_planned(graph: Graph) -> tuple[str, ...]:
    """What is in the way of a plan, such as operators of unknown needs; nothing if empty."""
    reasons = set[str]().union(*(_unknown(graph, operator) for operator in graph.operators))
    if not reasons and len(head_buffers(graph)) > MOST_BUFFERS:
        reasons.add(f"more than {MOST_BUFFERS:,} buffers")
    return tuple(sorted(reasons))


def refuse_bad_plan(graph: Graph) -> None:
    """An `InputError` for a plan in the metadata that is damaged or lets two tensors overlap."""
    offsets = planned_offsets(graph)
    if offsets is None:
        return
    tensors = placed(graph)
    buffers = [Buffer(tensor_bytes(graph.tensors[i]), *needed) for i, needed in tensors.items()]
    if overlap(buffers, [offsets[index] for index in tensors]):
        raise InputError(
            f"model metadata {PLAN_NAME!r} put two tensors in one place while both are needed; "
            "convert the model again"
        )


def _unknown(graph: Graph, operator: Operator) -> set[str]:
    known = _sizes()["operators"].get(operator.kind)
    if known is None:
        return {operator.kind}
    most = known.get("most_inputs", math.inf)
    if len(operator.inputs) > most:
        return {f"{operator.kind} of more than {most} inputs"}
    used = {*operator.inputs, *operator.outputs} - {-1}
    types = {graph.tensors[index].dtype for index in used}.difference(TYPES)
    return {f"{operator.kind} of {name}" for name in types}


def head_buffers(graph: Graph) -> list[Buffer]:
    """What is placed in the head: tensors without data in their order, then scratch buffers.

    A plan in the metadata must not be damaged (`refuse_bad_plan`).
    """
    offsets = planned_offsets(graph) or (ONLINE,) * len(graph.tensors)
    buffers = [
        Buffer(_aligned(tensor_bytes(graph.tensors[index])), *needed, offsets[index])
        for index, needed in sorted(placed(graph).items())
    ]
    for number, operator in enumerate(graph.operators):
        buffers += [Buffer(_aligned(size), number, number) for size in _scratch(graph, operator)]
    return buffers


def placed(graph: Graph) -> dict[int, tuple[int, int]]:
    """The tensors that TFLM places in the head, and from which operator to which it keeps them."""
    needed = dict(lifetimes(graph))
    read = set[int]().union(*(operator.inputs for operator in graph.operators))
    for index, tensor in enumerate(graph.tensors):
        # What nothing writes and nothing reads is placed all the same, beside nothing else.
        if index not in needed and index not in read and tensor.data is None:
            needed[index] = BEFORE - 1, BEFORE - 1
    return needed


@dataclass
class _Tail:
    """The arena's end, which grows downwards: bytes in use, and of which parts."""

    used: int = 0
    parts: Counter[str] = field(default_factory=Counter)

    def take(self, part: str, size: int, alignment: int = ALIGNMENT) -> None:
        """Allocate ``size`` bytes."""
        before, self.used = self.used, _aligned(self.used + size, alignment)
        self.parts[part] += self.used - before


def _prepare(tail: _Tail, graph: Graph) -> int:
    """Fill the tail up to the last kernel's ``Prepare``; the most bytes in use meanwhile."""
    structs, known = _sizes()["structs"], _sizes()["operators"]
    tail.take("interpreter", structs["interpreter"], 8)
    tail.take("tensors", structs["eval_tensor"] * len(graph.tensors), 8)
    tail.take("operators", structs["node"] * len(graph.operators), 8)
    for operator in graph.operators:
        if "options" in known[operator.kind]:
            tail.take("interpreter", *known[operator.kind]["options"])
    for operator in graph.operators:
        if "data" in known[operator.kind]:
            tail.take("buffers", known[operator.kind]["data"])
    most = requests = 0
    for operator in graph.operators:
        for size in _per_channel(graph, operator):
            tail.take("buffers", size)
        head = structs["scratch_request"] * (requests + structs["spare_requests"])
        head += sum(map(_tensor_struct_bytes, _operands(graph, operator)))
        most = max(most, head + tail.used)
        requests += len(_scratch(graph, operator))
    return most


def _plan(tail: _Tail, graph: Graph, buffers: int) -> int:
    """Fill the tail up to the plan of the head; the bytes in use while it is made."""
    structs = _sizes()["structs"]
    requests = sum(len(_scratch(graph, operator)) for operator in graph.operators)
    if requests:
        tail.take("interpreter", structs["scratch_handle"] * requests, 8)
    head = structs["scratch_request"] * (requests + structs["spare_requests"])
    head += structs["subgraph_offset"]
    head += structs["allocation"] * (len(graph.tensors) + requests)
    return _aligned(head) + structs["planned_buffer"] * buffers + _aligned(tail.used)


def _publish(tail: _Tail, graph: Graph) -> None:
    """Fill the tail with what the application sees of inputs and outputs."""
    structs = _sizes()["structs"]
    for indices in (graph.inputs, graph.outputs):
        tail.take("buffers", structs["pointer"] * len(indices))
        for index in indices:
            tail.take("inputs and outputs", _tensor_struct_bytes(graph.tensors[index]), 8)


def _tensor_struct_bytes(tensor: Tensor) -> int:
    """A TfLiteTensor with its quantisation; a multiple of 8, which TFLM aligns them to."""
    structs = _sizes()["structs"]
    if tensor.quantization is None and tensor.dtype != "int8":
        return int(structs["tensor"])
    channels = 1 if tensor.quantization is None else len(tensor.quantization.scale)
    zero_points = structs["zero_points"] * (1 + channels)
    return int(structs["tensor"] + structs["quantization"] + _aligned(zero_points, 8))


def _operands(graph: Graph, operator: Operator) -> list[Tensor]:
    """The tensors that a kernel looks at while it prepares, as often as it does."""
    indices: list[int] = []
    for place in _sizes()["operators"][operator.kind].get("operands", ()):
        if place == "all":
            indices += operator.inputs
        elif place == "output":
            indices.append(operator.outputs[0])
        else:
            indices += operator.inputs[place : place + 1]
    return [graph.tensors[index] for index in indices if index >= 0]


def _per_channel(graph: Graph, operator: Operator) -> tuple[int, ...]:
    """Bytes of multipliers and of shifts (int32), one a channel.

    Source: conv_common.cc, depthwise_conv_common.cc, fully_connected.cc.
    """
    if operator.kind == "CONV_2D":
        channels = weights_shape(graph, operator, rank=4)[0]
    elif operator.kind == "DEPTHWISE_CONV_2D":
        channels = weights_shape(graph, operator, rank=4)[3]
    elif operator.kind == "FULLY_CONNECTED":
        channels = weights_shape(graph, operator, rank=2)[0]
        quantization = graph.tensors[operator.inputs[1]].quantization
        if quantization is None or len(quantization.scale) == 1:
            return ()
    else:
        return ()
    return 4 * channels, 4 * channels


def _scratch(graph: Graph, operator: Operator) -> tuple[int, ...]:
    """Bytes of the scratch buffers of a kernel, in the order of its requests (reduce_common.cc)."""
    if operator.kind not in REDUCTIONS:
        return ()
    shapes = [graph.tensors[index].shape for index in operator.inputs if index >= 0]
    integers = 4 * sum(len(shape) for shape in shapes[:1]), 4 * sum(map(math.prod, shapes[1:2]))
    output = graph.tensors[operator.outputs[0]]
    if output.dtype == "float32":
        return integers
    return 4 * math.prod(output.shape), *integers


def _aligned(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


@functools.cache
def _sizes() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(SIZES_FILE.read_text(encoding="utf-8"))
