"""The instruction estimate, held against the measured run that its units were fitted to."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from budgets import cost
from budgets.count import count_graph
from firmware_ref.arch import preset
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.lowering import lower

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
    stated = cost.cores()[core].error_percent / 100
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
    graph = Graph(tensors, (Operator("TANH", (0,), (1,)),), (0,), (1,))
    assert cost.instructions(graph, graph.operators[0], 0) is None
    count = count_graph(graph, "odd", 1)
    assert count.not_costed == ("TANH",) and set(count.instructions.values()) == {0}


def test_report_125k_costs_70_million_or_less() -> None:
    """The aim of the lowering on Cortex-M4; a stock conversion of such a net was 167 million."""
    graph = lower(preset("report-125k"))
    count = count_graph(graph, "report-125k", 1)
    assert count.not_costed == ()
    assert count.instructions["cortex-m4"] <= 70_000_000


def test_every_core_takes_the_units_of_a_measured_one() -> None:
    """Cortex-M7 and M33 run Cortex-M4's instructions: they differ in cycles, and in how sure."""
    cores = cost.cores()
    assert list(cores) == ["cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
    assert [core.column for core in cores.values()] == [0, 0, 0, 1]
    instructions = count_graph(lower(preset("report-125k")), "report-125k", 1).instructions
    assert list(instructions) == list(cores)
    m4, m7, m33, m55 = instructions.values()
    assert m4 == m7 == m33 > m55 > 0
    assert cores["cortex-m7"].error_percent > cores["cortex-m4"].error_percent


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
    """425 KB of flash with a model of 207 KB, and the front end's share, by hand."""
    whole = cost.bundle_bytes()
    assert whole.flash(207_000) == 207_000 + 218_000 + 13_636
    assert whole.ram(100_000) == 100_000 + 128 * 44 * 4 + 1024 * 8 + 1024 * 2 + 4
