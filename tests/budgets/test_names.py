"""Names of layers, each its own whatever the file says, and texts cut to a number of characters."""

from __future__ import annotations

from pathlib import Path
from time import process_time

import numpy as np
import pytest

from budgets.__main__ import count_subject, judge
from budgets.baseline import Change
from budgets.check import check, refuse_unused
from budgets.count import count_graph
from budgets.document import as_json
from budgets.limits import LayerLimit, Limits
from budgets.lines import printable, total_lines, violation_line
from budgets.memory import live_activations
from budgets.names import layer_names, shortened
from firmware_ref.graph import MAX_OPERATORS, Graph, Operator, Tensor
from tests.budgets.conftest import make_tensor
from tests.firmware_ref.build import Model

LIMITS = Limits({"parameters": 128_000})


def named(names: list[str]) -> Graph:
    """A chain of operators with these names, each of a map one byte larger than the last."""
    tensors = [make_tensor("x", (1, 4))]
    tensors += [Tensor(name, (1, 5 + place), "int8") for place, name in enumerate(names)]
    operators = [Operator("RELU", (place,), (place + 1,)) for place in range(len(names))]
    return Graph(tuple(tensors), tuple(operators), (0,), (len(names),))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a", "b"], ["a", "b"]),
        (["", "b", ""], ["#1 RELU", "b", "#3 RELU"]),
        ([" ", "\n\t"], ["#1 RELU", "#2 RELU"]),
        (["same", "same", "same"], ["same", "same#2", "same#3"]),
        (["same", "same#2", "same"], ["same", "same#2", "same#3"]),
        (["same", "same", "same#2"], ["same", "same#3", "same#2"]),
        (["a", "a", "a#2", "a#2", "a"], ["a", "a#3", "a#2", "a#2#2", "a#4"]),
        (["#2 RELU", "", "#2 RELU"], ["#2 RELU", "#2 RELU#2", "#2 RELU#3"]),
        (["#2 RELU#2", "", "#2 RELU"], ["#2 RELU#2", "#2 RELU", "#2 RELU#3"]),
        ([], []),
    ],
)
def test_names_by_hand(given: list[str], found: list[str]) -> None:
    assert layer_names(named(given)) == tuple(found)


def test_any_names_become_different_ones(rng: np.random.Generator) -> None:
    """Of few letters, so that most are repeated; the first of a name keeps it."""
    for _ in range(300):
        parts = rng.choice(["a", "#2", "#3", "", " "], (int(rng.integers(1, 20)), 3))
        given = ["".join(line) for line in parts]
        found = layer_names(named(given))
        assert len(set(found)) == len(found) == len(given)
        for name in filter(str.strip, set(given)):
            assert found[given.index(name)] == name


def test_as_many_repeated_names_as_may_be_take_no_time() -> None:
    half = MAX_OPERATORS // 2
    given = ["same"] * half + [f"same#{number}" for number in range(2, half + 2)]
    graph, start = named(given), process_time()
    assert len(set(layer_names(graph))) == len(given)
    assert process_time() - start < 0.2


def test_a_count_and_its_peak_have_these_names() -> None:
    """The last two maps are the largest."""
    graph = named(["", "same", "same"])
    count = count_graph(graph, "m.tflite", 1)
    assert [row.name for row in count.layers] == ["#1 RELU", "same", "same#2"]
    assert (count.peak_bytes, count.peak_layer) == (6 + 7, "same#2")
    assert live_activations(named(["", ""])).peak_layer == "#2 RELU"
    assert "activations at once: at most 13 bytes, in same#2" in total_lines(count, 100.0)
    (line,) = (n for n in total_lines(count_graph(named([""]), "m", 1), 100.0) if "at once" in n)
    assert line == "activations at once: at most 9 bytes, in #1 RELU"


def test_tensors_and_operators_without_a_name_are_named_in_violations() -> None:
    tensors = (Tensor("", (1, 4), "float32"), Tensor("", (1, 4), "int8"))
    graph = Graph(tensors, (Operator("SVDF", (0,), (1,)),), (0,), (1,))
    count = count_graph(graph, "m.tflite", 1)
    assert count.not_int8 == ("tensor 0: float32",)
    assert count.not_counted == ("#1 SVDF: SVDF",)


def test_violations_of_layers_of_one_name_are_told_apart() -> None:
    limits = Limits({}, (LayerLimit("*", {"live_bytes": 1}),))
    (verdict,) = judge([count_graph(named(["same", "same", ""]), "m.tflite", 1)], limits, None)
    lines = [violation_line(violation) for violation in verdict.violations]
    assert [line.split(": ")[1] for line in lines] == ["same", "same#2", "#3 RELU"]


def convolutions(path: Path, first: int, name: str) -> Path:
    """A file of two 1x1 convolutions of one name, the first of so many channels."""
    model = Model()
    x = start = model.tensor("x", (1, 8, 8, 4), 0.5)
    channels = 4
    for wider in (first, 4):
        shape = (wider, 1, 1, channels)
        weights = model.tensor("w", shape, 0.5, data=np.ones(shape, np.int8))
        y = model.tensor(name, (1, 8, 8, wider), 0.5)
        model.add("CONV_2D", [x, weights, -1], [y])
        x, channels = y, wider
    path.write_bytes(model.pack([start], [x]))
    return path


@pytest.mark.parametrize("name", ["same", ""])
def test_a_change_of_any_layer_of_one_name_is_seen(tmp_path: Path, name: str) -> None:
    """Of the first one too, which a table by the file's names would lose; written and read."""
    path = convolutions(tmp_path / "m.tflite", 4, name)
    baseline = tmp_path / "baseline.json"
    baseline.write_text(as_json(judge([count_subject(str(path))], LIMITS, None), LIMITS))
    convolutions(path, 5, name)
    (verdict,) = judge([count_subject(str(path))], LIMITS, str(baseline))
    first, second = ("same", "same#2") if name else ("#1 CONV_2D", "#2 CONV_2D")
    found = [change for change in verdict.changes if change.figure == "parameters"]
    assert found == [
        Change("", "parameters", 32, 40),
        Change(first, "parameters", 16, 20),
        Change(second, "parameters", 16, 20),
    ]


@pytest.mark.parametrize(
    ("text", "most", "gap", "short"),
    [
        ("abcdefghij", 10, "...", "abcdefghij"),
        ("abcdefghijk", 10, "...", "abcd...ijk"),
        ("abcdefghijkl", 11, "...", "abcd...ijkl"),
        ("abcdefghijk", 10, "…", "abcde…hijk"),
        ("abcd", 3, "…", "a…d"),
        ("abcd", 2, "…", "a…"),
    ],
)
def test_a_text_without_its_middle(text: str, most: int, gap: str, short: str) -> None:
    assert shortened(text, most, gap) == short and len(short) <= most


def test_long_names_that_end_differently_stay_different() -> None:
    first, second = (printable("a" * 150 + end) for end in ("/conv1", "/conv2"))
    assert first != second and len(first) == len(second) == 100


def test_a_limit_on_layers_that_share_a_name_holds_for_each() -> None:
    """Maps of 5, 6 and 7 bytes are named ``same``; the second is ``same#2`` too."""
    count = count_graph(named(["same", "same", "same"]), "m.tflite")

    def broken(pattern: str) -> list[str]:
        limits = Limits({}, (LayerLimit(pattern, {"activation_bytes": 5}),))
        refuse_unused(limits, [count])
        return [violation.layer for violation in check(count, limits)]

    assert broken("same") == broken("same*") == ["same#2", "same#3"]
    assert broken("same[#]2") == ["same#2"]
