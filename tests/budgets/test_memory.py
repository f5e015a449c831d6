"""Activations alive, on graphs worked by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from budgets.deployed import deployed_graph
from budgets.memory import BEFORE, lifetimes, live_activations, tensor_bytes
from firmware_ref.arch import PRESETS, preset
from firmware_ref.graph import MAX_OPERATORS, Graph, Operator, Tensor
from firmware_ref.lowering import lower


def graph_of(
    sizes: dict[str, int],
    operators: list[tuple[str, str]],
    inputs: str,
    outputs: str,
    constants: str = "",
) -> Graph:
    """Tensors of one letter each; an operator is the letters that it reads and writes."""
    place = {name: index for index, name in enumerate(sizes)}

    def indices(names: str) -> tuple[int, ...]:
        return tuple(place[name] for name in names)

    tensors = tuple(
        Tensor(name, (size,), "int8", None, np.zeros(size, np.int8) if name in constants else None)
        for name, size in sizes.items()
    )
    made = tuple(Operator("ADD", indices(read), indices(write)) for read, write in operators)
    return Graph(tensors, made, indices(inputs), indices(outputs))


RESIDUAL = graph_of(
    {"x": 10, "w": 1000, "a": 20, "b": 30, "y": 5},
    [("xw", "a"), ("aw", "b"), ("xb", "y")],
    inputs="x",
    outputs="y",
    constants="w",
)


def test_a_residual_block() -> None:
    """x + a, then x + a + b, then x + b + y: the identity stays, constants are no activations."""
    live = live_activations(RESIDUAL)
    assert live.bytes_by_operator == (30, 60, 45)
    assert (live.peak_bytes, live.peak_layer) == (60, "b")
    assert lifetimes(RESIDUAL) == {0: (BEFORE, 2), 2: (0, 1), 3: (1, 2), 4: (2, 2)}


@pytest.mark.parametrize("nudged", range(5))
def test_one_byte_more_of_any_activation_is_seen(nudged: int) -> None:
    sizes = {t.name: t.shape[0] + (n == nudged) for n, t in enumerate(RESIDUAL.tensors)}
    operators = [("xw", "a"), ("aw", "b"), ("xb", "y")]
    found = live_activations(graph_of(sizes, operators, "x", "y", "w")).bytes_by_operator
    wanted = {0: (31, 61, 46), 1: (30, 60, 45), 2: (31, 61, 45), 3: (30, 61, 46), 4: (30, 60, 46)}
    assert found == wanted[nudged]


def test_the_first_of_equal_peaks_is_named() -> None:
    live = live_activations(graph_of({"x": 7, "a": 7, "b": 7}, [("x", "a"), ("a", "b")], "x", "b"))
    assert (live.bytes_by_operator, live.peak_layer) == ((14, 14), "a")


def test_outputs_live_to_the_end_and_unread_results_do_not() -> None:
    """a is an output, read or not; b is written for nothing."""
    sizes = {"x": 1, "a": 10, "b": 100, "c": 1000}
    graph = graph_of(sizes, [("x", "a"), ("x", "b"), ("x", "c")], "x", "ac")
    assert live_activations(graph).bytes_by_operator == (11, 111, 1011)


def test_an_operator_with_two_outputs_and_one_that_reads_twice() -> None:
    graph = graph_of({"x": 1, "a": 10, "b": 100}, [("xx", "ab")], "x", "a")
    assert live_activations(graph).bytes_by_operator == (111,)


def test_an_input_that_nothing_reads_is_alive_only_before() -> None:
    graph = graph_of({"x": 1, "u": 10, "a": 100}, [("x", "a")], "xu", "a")
    assert live_activations(graph).bytes_by_operator == (101,)
    assert lifetimes(graph)[1] == (BEFORE, BEFORE)


def test_an_input_that_is_an_output_lives_throughout() -> None:
    graph = graph_of({"x": 1, "a": 10, "b": 100}, [("x", "a"), ("a", "b")], "x", "bx")
    assert live_activations(graph).bytes_by_operator == (11, 111)


def test_an_absent_operand_and_a_tensor_of_no_use() -> None:
    plain = graph_of({"x": 1, "a": 10, "u": 100}, [("x", "a")], "x", "a")
    graph = Graph(plain.tensors, (Operator("ADD", (0, -1), (1,)),), (0,), (1,))
    assert live_activations(graph).bytes_by_operator == (11,)


def test_no_operators() -> None:
    live = live_activations(graph_of({"x": 3}, [], "x", "x"))
    assert (live.bytes_by_operator, live.peak_bytes, live.peak_layer) == ((), 0, "")


@pytest.mark.parametrize(
    ("dtype", "size"), [("int8", 1), ("bool", 1), ("int32", 4), ("float32", 4), ("int64", 8)]
)
def test_bytes_of_a_tensor(dtype: str, size: int) -> None:
    assert tensor_bytes(Tensor("t", (2, 3), dtype)) == 6 * size
    assert tensor_bytes(Tensor("scalar", (), dtype)) == size


@pytest.mark.parametrize("name", PRESETS)
def test_constants_without_data_are_constants(name: str) -> None:
    """As `lower` leaves them, and with data."""
    network = preset(name)
    assert live_activations(lower(network)) == live_activations(deployed_graph(network))


@pytest.mark.parametrize("read", ["the one before", "the input", "all"])
def test_as_many_operators_as_may_be_take_linear_time(read: str) -> None:
    """A chain, one input for all, and activations that all live until the last operator."""
    count = MAX_OPERATORS
    tensors = tuple(Tensor(f"t{n}", (1,), "int8") for n in range(count + 1))
    operators = [
        Operator("ADD", (n if read == "the one before" else 0,), (n + 1,)) for n in range(count)
    ]
    if read == "all":
        operators[-1] = Operator("ADD", tuple(range(count)), (count,))
    graph = Graph(tensors, tuple(operators), (0,), (count,))
    start = time.process_time()
    live = live_activations(graph)
    assert time.process_time() - start < 0.5
    assert live.peak_bytes == (count + 1 if read == "all" else 2)
