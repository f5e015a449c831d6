"""The interpreter: batches, memory, and what it refuses before it runs."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from firmware_ref import run
from firmware_ref.errors import InputError
from firmware_ref.graph import MAX_OPERATORS, Graph, Operator, Quantization, Tensor, parse
from firmware_ref.ops.elementwise import SMALLEST_TABLED_MAP
from firmware_ref.run import BATCH, Interpreter
from firmware_ref.verify import random_inputs
from tests.firmware_ref.build import Model

GRID = Quantization((0.05,), (0,))


def test_a_batch_is_its_examples(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    interpreter = Interpreter(graph)
    inputs = random_inputs(graph, BATCH + 3, 0)
    outputs = interpreter.run(inputs)
    assert outputs.shape == (BATCH + 3, 3) and outputs.dtype == np.int8
    each = np.concatenate([interpreter.run(one[None]) for one in inputs])
    assert np.array_equal(outputs, each)
    assert len(np.unique(outputs, axis=0)) > 1


@pytest.mark.parametrize("elements", [1, 5000, 1 << 30])
def test_chunks_do_not_show(
    model_bytes: bytes, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of a batch of any size, in chunks of one, of a few, and all together."""
    graph = parse(model_bytes)
    inputs = random_inputs(graph, 7, 1)
    interpreter = Interpreter(graph)
    each = [interpreter.run_all(example[None]) for example in inputs]
    monkeypatch.setattr(run, "CHUNK_ELEMENTS", elements)
    chunked = Interpreter(graph)
    for count in (1, 2, 7):
        for index, values in chunked.run_all(inputs[:count]).items():
            alone = np.concatenate([example[index] for example in each[:count]])
            assert np.array_equal(values, alone), graph.tensors[index].name
        outputs = np.concatenate([example[graph.outputs[0]] for example in each[:count]])
        assert np.array_equal(chunked.run(inputs[:count]), outputs)


def test_a_kernel_sees_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHUNK_ELEMENTS", 100)
    seen: list[tuple[int, int]] = []

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        seen.append((len(a), len(b)))
        return a - b

    x, y = (Tensor(name, (1, 5, 6), "int8") for name in "xy")
    step = run._in_chunks(kernel, [x, x], y)
    a = np.arange(8 * 30, dtype=np.int8).reshape(8, 5, 6)
    assert np.array_equal(step(a, a[::-1]), a - a[::-1])
    assert seen == [(3, 3), (3, 3), (2, 2)]
    wide = run._in_chunks(kernel, [x, x], Tensor("y", (1, 500), "int8"))
    seen.clear()
    assert wide(a, a).shape == a.shape and seen == [(1, 1)] * 8
    monkeypatch.setattr(run, "WORKING_ELEMENTS", 60)
    seen.clear()
    assert run._in_chunks(kernel, [x, x], y)(a, a).shape == a.shape and seen == [(2, 2)] * 4


def test_a_convolution_of_many_taps_takes_the_memory_of_few_examples() -> None:
    """Its patches are 16,384 times the size of its input and of its output."""
    model = Model()
    x = model.tensor("x", (1, 128, 128, 1), 0.5, 0)
    w = model.tensor("w", (1, 64, 64, 1), 0.5, 0, np.ones((1, 64, 64, 1)))
    y = model.tensor("y", (1, 65, 65, 1), 0.5, 0)
    model.add("CONV_2D", [x, w], [y], padding=1, strideH=1, strideW=1)
    graph = parse(model.pack([x], [y]))
    interpreter, inputs = Interpreter(graph), np.ones((4, 128, 128, 1), np.int8)
    tracemalloc.start()
    outputs = interpreter.run(inputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (outputs == 127).all()
    assert peak < 1.5 * 4 * 64**2 * 65**2  # of one example, in float32


def test_run_all_ends_in_what_run_gives(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    inputs = random_inputs(graph, 2, 0)
    values = Interpreter(graph).run_all(inputs)
    written = [operator.outputs[0] for operator in graph.operators]
    assert list(values) == [graph.inputs[0], *written]
    assert all(
        v.dtype == np.int8 and v.shape[1:] == graph.tensors[i].shape[1:] for i, v in values.items()
    )
    assert np.array_equal(values[graph.outputs[0]], Interpreter(graph).run(inputs))


def test_run_leaves_its_inputs_and_reports_progress(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    inputs = random_inputs(graph, BATCH + 1, 0)
    kept = inputs.copy()
    seen: list[int] = []
    Interpreter(graph).run(inputs, seen.append)
    assert np.array_equal(inputs, kept)
    assert seen == [BATCH, BATCH + 1]


def test_run_frees_what_it_no_longer_needs() -> None:
    """Forty maps in a chain take the memory of a few, beside what one operator uses."""
    model = Model()
    shape = (1, 64, 64, 16)
    tensors = [model.tensor(f"t{i}", shape, 0.5, 0) for i in range(41)]
    for source, output in itertools.pairwise(tensors):
        model.add("QUANTIZE", [source], [output])
    graph = parse(model.pack([tensors[0]], [tensors[-1]]))
    interpreter, inputs = Interpreter(graph), random_inputs(graph, BATCH, 0)
    tracemalloc.start()
    interpreter.run(inputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * inputs.nbytes


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((1, 128, 44, 3), np.float32),
        np.zeros((1, 128, 44, 1), np.int8),
        np.zeros((128, 44, 3), np.int8),
        np.zeros((0, 128, 44, 3), np.int8),
    ],
)
def test_refuses_other_inputs(model_bytes: bytes, inputs: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"int8 \(N, 128, 44, 3\)"):
        Interpreter(parse(model_bytes)).run(inputs)


def test_names_the_operator_it_cannot_run() -> None:
    model = Model()
    x, y = (model.tensor(name, (1, 4), 0.5, 0) for name in ("x", "layer"))
    model.add("CUSTOM:Mystery", [x], [y])
    with pytest.raises(InputError, match=r"CUSTOM:Mystery of 'layer'.*allowed: ADD"):
        Interpreter(parse(model.pack([x], [y])))


def test_refuses_a_float_model() -> None:
    model = Model()
    x, y = (model.tensor(name, (1, 4), dtype="float32") for name in ("x", "y"))
    model.add("LOGISTIC", [x], [y])
    with pytest.raises(InputError, match="dtype=float32; only full INT8"):
        Interpreter(parse(model.pack([x], [y])))


@pytest.mark.parametrize(("place", "what"), [(0, "input"), (1, "output")])
def test_refuses_reals_that_float32_cannot_hold(place: int, what: str) -> None:
    model = Model()
    ends = [
        model.tensor(name, (1, 4), 1e30 if place == number else 0.5)
        for number, name in enumerate(("x", "y"))
    ]
    model.add("QUANTIZE", ends[:1], ends[1:])
    with pytest.raises(InputError, match=f"graph {what} .* has scale=1.*; allowed is less than"):
        Interpreter(parse(model.pack(ends[:1], ends[1:])))


def test_refuses_a_float_tensor_inside(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    inner = graph.operators[3].outputs[0]
    tensors = list(graph.tensors)
    tensors[inner] = replace(tensors[inner], dtype="float32")
    with pytest.raises(InputError, match="not quantised to int8"):
        Interpreter(replace(graph, tensors=tuple(tensors)))


def shared_constant(operators: int, length: int) -> Graph:
    """Products of one input with one constant: three tensors of ``length`` an operator."""
    shape = (1, length)
    tensors = [Tensor("x", shape, "int8", GRID), Tensor("c", shape, "int8", GRID, np.ones(shape))]
    tensors += [Tensor(f"y{number}", shape, "int8", GRID) for number in range(operators)]
    options = {"fused_activation": "NONE"}
    made = [Operator("MUL", (0, 1), (2 + number,), options) for number in range(operators)]
    return Graph(tuple(tensors), tuple(made), (0,), (2,))


def test_refuses_a_graph_whose_operators_read_one_constant_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file is small, and its preparation would not be."""
    monkeypatch.setattr(run, "MAX_USED_ELEMENTS", 3 * 20 * 8)
    Interpreter(shared_constant(20, 8))
    with pytest.raises(InputError, match="read and write 504 elements in all; at most 480 can"):
        Interpreter(shared_constant(21, 8))


def test_a_graph_of_thousands_of_operators_is_prepared_in_seconds() -> None:
    """What operators precompute, as often as a file may hold them: tables of pairs, of roots, of
    sigmoids."""
    started = time.process_time()
    Interpreter(shared_constant(MAX_OPERATORS, SMALLEST_TABLED_MAP))
    for kind, output in (("RSQRT", GRID), ("LOGISTIC", Quantization((1 / 256,), (-128,)))):
        tensors = [
            Tensor(f"t{number}", (1, 8), "int8", output) for number in range(MAX_OPERATORS + 1)
        ]
        tensors[0] = Tensor("x", (1, 8), "int8", GRID)
        made = [Operator(kind, (0,), (number,)) for number in range(1, len(tensors))]
        Interpreter(Graph(tuple(tensors), tuple(made), (0,), (1,)))
    assert time.process_time() - started < 10


def test_refuses_two_inputs_or_outputs(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    with pytest.raises(InputError, match="graph outputs=2"):
        Interpreter(replace(graph, outputs=(graph.outputs[0], graph.operators[0].outputs[0])))
    with pytest.raises(InputError, match="graph inputs=0"):
        Interpreter(replace(graph, inputs=()))
    with pytest.raises(InputError, match="inputs=1 and outputs=2"):
        split = Operator("LOGISTIC", (0,), (1, 2))
        Interpreter(replace(graph, operators=(split,)))
