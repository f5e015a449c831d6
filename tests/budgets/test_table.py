"""The report as aligned text."""

from __future__ import annotations

import dataclasses

import pytest

from budgets.baseline import Change
from budgets.count import Count, Total, count_network
from budgets.limits import LayerLimit, Limits, load_limits
from budgets.table import COLUMNS, aligned, as_table, cells
from firmware_ref.arch import PRESETS, preset
from tests.budgets.counts import LIMITS, flatbuffer, hostile, judged, network

HEADINGS = ["deployed", "weights B", "biases B", "other B", "MACs", "element-wise", "reduced"]
HEADINGS += ["output B", "live B", "cortex-m4 instr."]


def layer_lines(text: str) -> list[str]:
    """Heading, layers and total."""
    lines = text.splitlines()
    first, second = (n for n, line in enumerate(lines) if line and set(line) == {"-"})
    return [lines[first - 1], *lines[first + 1 : second], lines[second + 1]]


def test_cells_of_a_flatbuffer() -> None:
    heading, stem, first, second, total = cells(flatbuffer())
    assert heading == ["layer", "op", "output shape", *HEADINGS, "receptive field"]
    assert stem == [
        *("stem.conv", "CONV_2D", "1 x 4 x 5 x 6", "1,014", "1,008", "24", "2", "20,000"),
        *("0", "0", "120", "480", "40,000", "5 x 3   325 ms"),
    ]
    assert first[8:10] == ["120", "0"] and second[8:10] == ["0", "140"]
    assert second[-1] == "128 x 5"
    # Sums of the rows; bytes of outputs and alive at once are no sums.
    assert total == [
        *("total", "", "", "1,027", "1,021", "24", "3", "20,010", "120", "140", "", ""),
        *("42,010", ""),
    ]


def test_cells_of_a_network_have_what_is_trained_beside() -> None:
    heading, stem, norm, _, second, total = cells(network())
    assert heading[3:5] == ["trained", "deployed"]
    assert stem[3:5] == ["1,000", "1,014"]
    assert norm == ["stem.norm", "batch_norm", "6 x 4 x 5", "12", "folded", *[""] * len(COLUMNS)]
    assert second[3:5] == ["", "7"]
    assert total[3:5] == ["1,012", "1,027"]


def test_an_operator_of_unknown_cost_has_a_dash() -> None:
    odd = dataclasses.replace(flatbuffer().layers[0], instructions={})
    rows = cells(flatbuffer(layers=(odd,)))
    assert rows[1][12] == "-" and rows[2][12] == "0"


def test_columns_are_aligned() -> None:
    assert aligned([["a", "bb", "c", "1"], ["aaa", "b", "c", "1,000"]]) == [
        "a    bb  c      1",
        "aaa  b   c  1,000",
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_aligned_and_totalled(name: str) -> None:
    count = count_network(preset(name))
    text = as_table([judged(count)], load_limits(), 100.0)
    lines = layer_lines(text)
    assert len({len(line) for line in lines}) == 1
    total = lines[-1].split()
    device = count.on_device
    assert total[1:3] == [f"{count.parameters:,}", f"{device.parameters:,}"]
    assert f"{device.macs:,}" in total
    assert f"{device.instructions['cortex-m4']:,}" == total[-1]


def test_limits_and_conventions_follow_the_table() -> None:
    lines = as_table(
        [judged(count_network(preset("report-125k"), kind="preset"))], load_limits(), 80.0
    )
    lines = lines.splitlines()
    assert lines[0] == "report-125k (preset)"
    assert "125,330 of 128,000 parameters, 97.9 %" in lines
    assert any(line.startswith("torchinfo: 125,330 parameters, 8,915,378 MACs") for line in lines)
    assert any(line.endswith("time at 80 MHz:") for line in lines)
    assert not any("since the baseline" in line for line in lines)


def test_violations_unchecked_and_changes_are_listed() -> None:
    limits = Limits(
        {"parameters": 1_000, "flatbuffer_bytes": 9}, (LayerLimit("block*", {"live_bytes": 246}),)
    )
    changes = (Change("stem.conv", "live_bytes", 470, 480),)
    lines = as_table([judged(network(), limits, changes=changes)], limits, 100.0).splitlines()
    assert "1,012 of 1,000 parameters, 101.2 %, over by 12" in lines
    assert any("block2.sum: live_bytes=247; allowed are 246" in line for line in lines)
    assert "not checked, not known of a preset: flatbuffer_bytes" in lines
    at = lines.index("changed since the baseline:")
    assert lines[at + 1] == "  stem.conv: live_bytes 470 -> 480 (+10, +2.1 %)"


def test_it_says_that_nothing_changed_and_since_which_baseline() -> None:
    same = judged(flatbuffer(), baseline="m.tflite")
    *_, empty, last = as_table([same], LIMITS, 100.0).splitlines()
    assert (empty, last) == ("", "nothing changed since the baseline")
    changes = (Change("", "parameters", 1, 1_027),)
    other = judged(flatbuffer(), changes=changes, baseline="old/m.tflite")
    lines = as_table([other], LIMITS, 100.0).splitlines()
    assert lines[-2] == "changed since the baseline of old/m.tflite:"


def test_every_subject_has_a_table() -> None:
    text = as_table([judged(flatbuffer()), judged(network())], LIMITS, 100.0)
    assert "m.tflite (tflite)" in text and "\n\nnet (preset)\n" in text


def test_colour_only_when_asked() -> None:
    limits = Limits({"parameters": 1_000, "arena_bytes": 2_000})
    verdict = judged(flatbuffer(), limits)
    plain = as_table([verdict], limits, 100.0)
    coloured = as_table([verdict], limits, 100.0, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31m1,027 of 1,000 parameters" in coloured
    assert "\x1b[32m1,034 of 2,000 bytes of TFLM arena" in coloured
    for code in ("\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


def test_hostile_names_do_no_harm() -> None:
    text = as_table([judged(hostile())], LIMITS, 100.0)
    assert text.isascii() and "\x1b" not in text
    assert all(line.isprintable() for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 500
    assert len({len(line) for line in layer_lines(text)}) == 1


def test_an_empty_graph() -> None:
    text = as_table([judged(Count("empty", "tflite", (), {"plain": Total(0, 0)}))], LIMITS, 1.0)
    assert layer_lines(text)[-1].split() == ["total", *["0"] * 8]
