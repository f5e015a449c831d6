"""The instruction estimate, held against the measured run that its units were fitted to."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from budgets import cost, rules
from budgets.check import check
from budgets.count import count_graph
from budgets.limits import Limits
from convert.bundle.arena import MeasuredArena
from firmware_ref.arch import preset
from firmware_ref.graph import Graph, Operator, Tensor, parse
from firmware_ref.lowering import lower
from tests.budgets.operators import model_of

SHAPES = (1, 10), (10, 10), (1, 10), (1, 10)
COLUMNS = {"cortex-m4": "m4_cmsis", "cortex-m55": "m55_cmsis"}


def shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def one_operator(row: dict[str, str]) -> tuple[Graph, Operator] | None:
    """A measured operator as a graph; None for a grouped convolution, which no lowering writes."""
    source, output = shape(row["input_shape"]), shape(row["output_shape"])
    second = row["filter_or_second_shape"]
    shapes = [source] + ([shape(second)] if "x" in second else [])
    if row["op"] in ("ADD", "MUL") and len(shapes) == 1:
        shapes.append((1, 1, 1, 1))  # a constant of one value
    if row["op"] == "CONV_2D" and shapes[1][3] != source[3]:
        return None
    tensors = (*(Tensor(f"t{i}", s, "int8") for i, s in enumerate(shapes)),)
    operator = Operator(row["op"], tuple(range(len(shapes))), (len(shapes),))
    return Graph(
        (*tensors, Tensor("y", output, "int8")), (operator,), (0,), (len(shapes),)
    ), operator


@pytest.fixture(scope="module")
def measured(audio_data: Path) -> list[dict[str, str]]:
    """The table of instructions counted under emulation, beside the recordings."""
    table = audio_data / "device_costs.csv"
    if not table.is_file():
        pytest.skip(f"needs the measured run: {table} is not there")
    with table.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("core", COLUMNS)
def test_the_measured_run_is_given_back(measured: list[dict[str, str]], core: str) -> None:
    found: dict[str, float] = defaultdict(float)
    wanted: dict[str, float] = defaultdict(float)
    for row in measured:
        made = one_operator(row)
        if made is None:
            continue
        estimate = cost.instructions(*made, int(row["macs"]))
        assert estimate is not None, row["op"]
        found[row["op"]] += estimate[core]
        wanted[row["op"]] += int(row[COLUMNS[core]])
    assert set(found) >= {"CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "ADD", "SUB", "MUL", "RSQRT"}
    stated = (cost.cores()[core].error_percent or 0) / 100
    assert sum(found.values()) == pytest.approx(sum(wanted.values()), rel=stated)
    # The measure can fail: a tenth off is not within what is stated.
    assert 1.1 * sum(found.values()) != pytest.approx(sum(wanted.values()), rel=stated)
    for op in found:
        assert found[op] == pytest.approx(wanted[op], rel=0.08), op


def test_units_by_hand() -> None:
    """A 1x1 convolution, a stem, a sum of two maps and one that broadcasts, on Cortex-M4."""
    point = {"op": "CONV_2D", "input_shape": "1x4x5x8", "filter_or_second_shape": "6x1x1x8"}
    graph, operator = one_operator({**point, "output_shape": "1x4x5x6"}) or pytest.fail("grouped")
    estimate = cost.instructions(graph, operator, 960)
    assert estimate is not None
    assert estimate["cortex-m4"] == round(960 * 1.48 + 120 * 42.6)
    stem = {"op": "CONV_2D", "input_shape": "1x8x10x3", "filter_or_second_shape": "6x5x5x3"}
    graph, operator = one_operator({**stem, "output_shape": "1x4x5x6"}) or pytest.fail("grouped")
    estimate = cost.instructions(graph, operator, 9000)
    assert estimate is not None
    assert estimate["cortex-m4"] == round(9000 * 1.48 + 120 * 42.6 + 20 * 75 * 27.4)
    for second, unit in (("1x4x5x6", 81.2), ("1x1x5x6", 114.6)):
        sum_ = {"op": "ADD", "input_shape": "1x4x5x6", "filter_or_second_shape": second}
        graph, operator = one_operator({**sum_, "output_shape": "1x4x5x6"}) or pytest.fail("?")
        estimate = cost.instructions(graph, operator, 0)
        assert estimate is not None and estimate["cortex-m4"] == round(120 * unit)


def test_an_operator_of_unknown_cost_is_named_and_not_summed() -> None:
    tensors = tuple(Tensor(name, (1, 4), "int8") for name in ("a", "b"))
    graph = Graph(tensors, (Operator("SVDF", (0,), (1,)),), (0,), (1,))
    assert cost.instructions(graph, graph.operators[0], 0) is None
    count = count_graph(graph, "odd", 1)
    assert count.not_costed == ("SVDF",) and set(count.instructions.values()) == {0}


def test_report_125k_costs_70_million_or_less() -> None:
    """The aim of the lowering on Cortex-M4; a stock conversion of such a net was 167 million."""
    graph = lower(preset("report-125k"))
    count = count_graph(graph, "report-125k", 1)
    assert count.not_costed == ()
    assert count.instructions["cortex-m4"] <= 70_000_000


def test_every_core_takes_the_units_of_a_measured_one() -> None:
    """Cortex-M7 and M33 run Cortex-M4's instructions: they differ in cycles, and in how sure.

    Cortex-M7 was not measured: it has no error of its own, but a core whose instructions it runs.
    """
    cores = cost.cores()
    assert list(cores) == ["cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
    assert [core.column for core in cores.values()] == [0, 0, 0, 1]
    instructions = count_graph(lower(preset("report-125k")), "report-125k", 1).instructions
    assert list(instructions) == list(cores)
    m4, m7, m33, m55 = instructions.values()
    assert m4 == m7 == m33 > m55 > 0
    errors = [core.error_percent for core in cores.values()]
    assert errors == [2.0, None, 2.0, 2.0]
    for core in cores.values():
        assert (core.error_percent is None) == (core.same_as is not None)
        if core.same_as is not None:
            measured = cores[core.same_as]
            assert measured.error_percent is not None and measured.column == core.column


def test_milliseconds_by_hand() -> None:
    """60 million instructions of 1.35 cycles at 80 MHz: 81 million cycles in 1.0125 s."""
    m4 = cost.cores()["cortex-m4"]
    assert m4.cycles_per_instruction == 1.35
    assert m4.milliseconds(60_000_000, 80.0) == pytest.approx(1012.5)
    assert m4.milliseconds(0, 1.0) == 0


def test_operators_without_inputs_cost_what_they_write() -> None:
    """As a damaged file may have them."""
    tensors = (Tensor("a", (1, 4), "int8"), Tensor("b", (1, 4), "int8"))
    graph = Graph(tensors, (Operator("MEAN", (), (1,)), Operator("PAD", (-1,), (1,))), (0,), (1,))
    assert set((cost.instructions(graph, graph.operators[0], 0) or {}).values()) == {0}
    estimate = cost.instructions(graph, graph.operators[1], 0)
    assert estimate and estimate["cortex-m4"] == round(4 * 1.34)


def test_a_bundle_adds_runtime_and_front_end() -> None:
    """425 KB of flash with a model of 207 KB, and the front end's share, by hand.

    The margin of the arena is what a bundle adds to the one it measured.
    """
    whole = cost.bundle_bytes()
    assert whole.flash(207_000) == 207_000 + 218_000 + 13_636
    assert whole.ram(100_000) == 100_000 + 8 * 1024 + 128 * 44 * 4 + 1024 * 8 + 1024 * 2 + 4
    measured = MeasuredArena(least=100_000, head=60_000, tail=40_000)
    assert whole.ram(100_000) == measured.bytes + whole.frontend_ram_bytes


def test_every_operator_that_is_counted_has_a_cost() -> None:
    for kind in rules.FREE | set(rules.WEIGHTED):
        graph = parse(model_of(kind))
        (estimate,) = (row.instructions for row in count_graph(graph, kind, 1).layers)
        assert set(estimate) == set(cost.cores()) and min(estimate.values()) > 0, kind


def test_what_is_not_measured_is_no_less_than_what_is_like_it() -> None:
    """An upper bound: a kernel with the arithmetic of a measured one, or more, costs as much."""

    def unit(kind: str) -> dict[str, int]:
        """Of 1,000 elements in and out, the second operand of one."""
        tensors = [Tensor("a", (1, 1_000), "int8"), Tensor("b", (1, 1), "int8")]
        tensors.append(Tensor("y", (1, 1_000), "int8"))
        graph = Graph(tuple(tensors), (Operator(kind, (0, 1), (2,)),), (0,), (2,))
        return cost.instructions(graph, graph.operators[0], 0) or pytest.fail(kind)

    for bound, measured in (
        ("SOFTMAX", "LOGISTIC"),
        ("TANH", "LOGISTIC"),
        ("DIV", "RSQRT"),
        ("SQUARED_DIFFERENCE", "SUB"),
        ("PRELU", "MUL"),
        ("QUANTIZE", "ADD"),
        ("SUM", "MEAN"),
        ("PADV2", "PAD"),
        ("STRIDED_SLICE", "TRANSPOSE"),
        ("SQUEEZE", "RESHAPE"),
    ):
        for core, estimate in unit(bound).items():
            assert estimate >= unit(measured)[core], (bound, core)


def test_a_classifier_that_ends_in_softmax_holds_a_limit_on_instructions() -> None:
    """Ten classes: 100 products and 5,000 instructions of SOFTMAX at most."""
    x, w, y, z = (Tensor(n, s, "int8") for n, s in zip("xwyz", SHAPES, strict=True))
    dense, softmax = Operator("FULLY_CONNECTED", (0, 1), (2,)), Operator("SOFTMAX", (2,), (3,))
    graph = Graph((x, w, y, z), (dense, softmax), (0,), (3,))
    count = count_graph(graph, "m.tflite", 1)
    assert count.layers[1].instructions["cortex-m4"] == 10 * 500
    total = count.instructions["cortex-m4"]
    assert total == round(100 * 2.29) + 5_000 and count.not_costed == ()
    assert check(count, Limits({"instructions.cortex-m4": total})) == []
    (violation,) = check(count, Limits({"instructions.cortex-m4": total - 1}))
    assert violation.limit == "instructions.cortex-m4"


def test_an_operator_costs_what_it_writes_to_all_outputs() -> None:
    """As SPLIT, whose first input is an axis."""
    tensors = [Tensor("axis", (), "int32"), Tensor("x", (1, 8), "int8")]
    tensors += [Tensor(f"y{number}", (1, 4), "int8") for number in range(2)]
    graph = Graph(tuple(tensors), (Operator("SPLIT", (0, 1), (2, 3)),), (1,), (2, 3))
    estimate = cost.instructions(graph, graph.operators[0], 0)
    assert estimate is not None and estimate["cortex-m55"] == 8 * 60
