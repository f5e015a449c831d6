"""The planned arena, held against TFLM's own account of one and the least that it starts with."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_micro.python.tflite_micro import runtime

from budgets import rules
from budgets.arena import Arena, arena, head_buffers, not_planned, placed, tail_by_part
from budgets.memory import live_activations
from budgets.placement import place
from firmware_ref.arch import PRESETS, preset
from firmware_ref.graph import Graph, Quantization, Tensor, parse
from firmware_ref.lowering import lower
from firmware_ref.memory_plan import ONLINE, PLAN_NAME, encode_offsets
from tests.budgets.operators import CASES, model_of
from tests.budgets.test_count_members import draw
from tests.firmware_ref.build import Model, random_int8, write

PLENTY = 1 << 22
KNOWN = sorted((rules.FREE | set(rules.WEIGHTED)) & set(CASES))
PARTS = {
    "TfLiteEvalTensor data": "tensors",
    "NodeAndRegistration struct": "operators",
    "Persistent buffer data": "buffers",
    "Persistent TfLiteTensor data": "inputs and outputs",
    "Persistent TfLiteTensor quantization data": "inputs and outputs",
}


@dataclass(frozen=True)
class Account:
    """Bytes that TFLM says it took, by end and part, and the least arena that it started with."""

    head: int
    tail: int
    parts: Mapping[str, int]
    least: int


Measure = Callable[[bytes], Account]


@pytest.fixture
def account(capfd: pytest.CaptureFixture[str]) -> Measure:
    def measure(data: bytes) -> Account:
        interpreter = started(data, PLENTY)
        capfd.readouterr()
        interpreter.print_allocations()
        text = "".join(capfd.readouterr())
        ends = dict(re.findall(r"allocation (\w+) (\d+) bytes", text))
        head, tail = int(ends["head"]), int(ends["tail"])
        assert int(ends["total"]) == head + tail
        parts = dict.fromkeys(PARTS.values(), 0)
        for name, used in re.findall(r"'(.+)' used (\d+)", text):
            parts[PARTS[name]] += int(used)
        return Account(head, tail, parts, least_arena(data, 2 * (head + tail)))

    return measure


def started(data: bytes, arena_size: int) -> Any:
    return runtime.Interpreter.from_bytes(data, arena_size=arena_size)


def works(data: bytes, arena_size: int) -> bool:
    """Whether the interpreter starts; in a process of its own, for it may crash instead."""
    child = os.fork()
    if not child:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            started(data, arena_size)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def least_arena(data: bytes, enough: int) -> int:
    assert works(data, enough)
    low = 0
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if works(data, middle) else (middle, enough)
    return enough


def complaints(planned: Arena | None, account: Account) -> list[str]:
    """What is wrong with a plan: an end that is off, a total too small or over 2 % too large."""
    if planned is None:
        return ["not planned"]
    needed = max(account.least, account.head + account.tail)
    wrong = {
        "head": planned.head_bytes != account.head,
        "tail": planned.tail_bytes != account.tail,
        "too small": planned.total_bytes < needed,
        "too large": planned.total_bytes > 1.02 * needed,
    }
    return [what for what, is_wrong in wrong.items() if is_wrong]


def agrees(data: bytes, account: Account) -> None:
    graph = parse(data)
    planned = arena(graph)
    assert not_planned(graph) == ()
    assert planned and complaints(planned, account) == []
    parts = dict(tail_by_part(graph))
    assert sum(parts.values()) == planned.tail_bytes
    del parts["interpreter"]
    assert parts == account.parts
    assert live_activations(graph).peak_bytes <= planned.head_bytes - planned.gap_bytes
    assert works(data, planned.total_bytes)


def file_of(plan: Graph, rng: np.random.Generator) -> bytes:
    """A flatbuffer of a plan with random weights, its scales such as TFLM accepts."""
    kinds = {op.outputs[0]: op.kind for op in plan.operators}
    axes = {op.inputs[1]: 3 for op in plan.operators if op.kind == "DEPTHWISE_CONV_2D"}

    def filled(index: int, tensor: Tensor) -> Tensor:
        if tensor.data is not None:
            return tensor
        if not tensor.name.endswith(("/weight", "/bias")):
            unit = kinds.get(index) == "LOGISTIC"
            grid = Quantization((1 / 256,), (-128,)) if unit else Quantization((0.05,), (0,))
            return replace(tensor, quantization=grid)
        axis = axes.get(index, 0)
        channels, weights = tensor.shape[axis], tensor.dtype == "int8"
        grid = Quantization((0.004 if weights else 0.0002,) * channels, (0,) * channels, axis)
        data = random_int8(rng, tensor.shape).astype(tensor.dtype)
        return replace(tensor, quantization=grid, data=data)

    tensors = tuple(filled(index, tensor) for index, tensor in enumerate(plan.tensors))
    return write(replace(plan, tensors=tensors))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset(name: str, account: Measure, rng: np.random.Generator) -> None:
    agrees(data := file_of(lower(preset(name)), rng), account(data))


@pytest.mark.parametrize("seed", range(12))
def test_a_member_of_the_family(seed: int, account: Measure, rng: np.random.Generator) -> None:
    """Small maps: most of them need more while the interpreter plans than while it runs."""
    agrees(data := file_of(lower(draw(seed)), rng), account(data))


@pytest.mark.parametrize("name", PRESETS)
def test_a_network_without_weights(name: str, rng: np.random.Generator) -> None:
    plan = lower(preset(name))
    assert arena(plan) == arena(parse(file_of(plan, rng)))


@pytest.mark.parametrize("kind", KNOWN)
def test_one_operator(kind: str, account: Measure) -> None:
    agrees(data := model_of(kind), account(data))


def test_every_operator_that_is_counted_is_planned() -> None:
    assert set(KNOWN) == rules.FREE | set(rules.WEIGHTED)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_stock_converted_model(
    dtype: str, account: Measure, convert_small_model: Callable[[str], Path]
) -> None:
    agrees(data := convert_small_model(dtype).read_bytes(), account(data))


def test_the_shipped_model(account: Measure) -> None:
    path = Path(__file__).parents[2] / "build" / "bundle" / "model.tflite"
    if not path.is_file():
        pytest.skip("needs the shipped model: ./scripts/demo builds it")
    agrees(data := path.read_bytes(), account(data))


def tangle(rng: np.random.Generator) -> bytes:
    """Maps that live long and short, results and inputs that nothing reads, several outputs."""
    model, made = Model(), list[tuple[int, tuple[int, ...]]]()

    def add(kind: str, inputs: list[int], shape: tuple[int, ...], **options: Any) -> None:
        made.append((model.tensor(f"t{len(model.tensors)}", shape, 0.1), shape))
        model.add(kind, inputs, [made[-1][0]], **options)

    for number in range(3):
        shape = (1, *map(int, rng.integers(1, 9, 3)))
        made.append((model.tensor(f"x{number}", shape, 0.1), shape))
    model.tensor("of no use", (1, 100), 0.1)
    steps = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    for _ in range(int(rng.integers(20, 50))):
        x, shape = made[int(rng.integers(max(0, len(made) - 12), len(made)))]
        kind = str(rng.choice(["MUL", "CONCATENATION", "MEAN", "CONV_2D", "TRANSPOSE"]))
        if kind == "MUL":
            add(kind, [x, int(rng.choice([y for y, s in made if s == shape]))], shape)
        elif kind == "CONCATENATION" and shape[1] < 100:
            add(kind, [x, x], (1, 2 * shape[1], *shape[2:]), axis=1)
        elif kind == "MEAN":
            add(kind, [x, model.integers("axis", [3])], (*shape[:3], 1), keepDims=True)
        elif kind == "CONV_2D":
            size = (int(rng.integers(1, 12)), 1, 1, shape[3])
            weights = model.tensor("w", size, [0.01] * size[0], data=np.ones(size))
            add(kind, [x, weights], (*shape[:3], size[0]), **steps)
        else:
            order = model.integers("order", [0, 2, 1, 3])
            add("TRANSPOSE", [x, order], (1, shape[2], shape[1], shape[3]))
    return model.pack([0, 1, 2], [made[5][0], made[-1][0]])


@pytest.mark.parametrize("seed", range(12))
def test_a_tangle(seed: int, account: Measure) -> None:
    agrees(data := tangle(np.random.default_rng(seed)), account(data))


@pytest.mark.parametrize("seed", range(3))
def test_the_planned_arena_computes_what_a_plentiful_one_does(seed: int) -> None:
    data = tangle(rng := np.random.default_rng(seed))
    graph = parse(data)
    planned = arena(graph)
    assert planned
    values = [random_int8(rng, graph.tensors[index].shape) for index in graph.inputs]
    results = []
    for size in (planned.total_bytes, PLENTY):
        interpreter = started(data, size)
        for number, value in enumerate(values):
            interpreter.set_input(value, number)
        interpreter.invoke()
        results.append([interpreter.get_output(number) for number in range(len(graph.outputs))])
    assert all(map(np.array_equal, *results))


def with_plan(data: bytes, seed: int, share: float) -> bytes:
    """The model with a plan of memory in its metadata: most tensors, placed in a drawn order."""
    graph, rng = parse(data), np.random.default_rng(seed)
    tensors = sorted(placed(graph))
    buffers = head_buffers(graph)[: len(tensors)]
    found = place(buffers, rng.permutation(len(tensors)).tolist())
    offsets = [ONLINE] * len(graph.tensors)
    for index, offset in zip(tensors, found, strict=True):
        offsets[index] = offset if rng.random() < share else ONLINE
    return write(replace(graph, metadata={PLAN_NAME: encode_offsets(offsets)}))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_in_the_metadata(seed: int, share: float, account: Measure) -> None:
    plain = tangle(np.random.default_rng(seed))
    agrees(data := with_plan(plain, seed, share), account(data))
    if share:
        assert arena(parse(data)) != arena(parse(plain))


def fully_connected(channels: int, bias: bool) -> bytes:
    """With a scale for each of so many channels, or one for all."""
    model, scales = Model(), [0.1] * channels
    x, y = model.tensor("x", (3, 8), 0.1), model.tensor("y", (3, 5), 0.2)
    weights = model.tensor("w", (5, 8), scales, data=np.ones((5, 8)))
    biases = model.tensor("b", (5,), 0.01, data=np.ones(5), dtype="int32") if bias else -1
    model.add("FULLY_CONNECTED", [x, weights, biases], [y])
    return model.pack([x], [y])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [1, 5])
def test_fully_connected(channels: int, bias: bool, account: Measure) -> None:
    agrees(data := fully_connected(channels, bias), account(data))


@pytest.mark.parametrize(
    ("end", "by", "complaint"),
    [
        ("head_bytes", 16, "head"),
        ("tail_bytes", -16, "tail"),
        ("total_bytes", -16, "too small"),
        ("total_bytes", 3_600, "too large"),
    ],
)
def test_a_nudged_plan_is_complained_of(
    end: str, by: int, complaint: str, account: Measure, rng: np.random.Generator
) -> None:
    data = file_of(lower(preset("report-125k")), rng)
    planned, wanted = arena(parse(data)), account(data)
    assert planned and complaints(planned, wanted) == []
    nudged = replace(planned, **{end: getattr(planned, end) + by})
    assert complaints(nudged, wanted) == [complaint]
    assert complaints(None, wanted) == ["not planned"]
    assert not works(data, wanted.least - 1)
