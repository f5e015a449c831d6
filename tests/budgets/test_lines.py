"""The words that every form of the report shares."""

from __future__ import annotations

import dataclasses

import pytest

from budgets import cost
from budgets.baseline import Change
from budgets.check import Violation
from budgets.count import Count, LayerCount, Total, count_graph, count_network
from budgets.figures import MODEL_FIGURES, instruction_figures
from budgets.limits import LayerLimit, Limits, load_limits
from budgets.lines import (
    Share,
    change_line,
    changes_heading,
    error_text,
    label,
    other_lines,
    printable,
    rows,
    shape_text,
    shares,
    total_lines,
    unchecked_lines,
    violation_line,
)
from budgets.verdict import Verdict
from firmware_ref.arch import PRESETS, layers, preset
from firmware_ref.graph import Graph, Operator, Tensor
from tests.budgets.counts import HOSTILE, LIMITS, flatbuffer, hostile, judged, network


def test_share_line_is_the_one_people_read() -> None:
    parameters, macs = shares(count_network(preset("report-125k")), load_limits())
    assert parameters.line == "125,330 of 128,000 parameters, 97.9 %"
    assert macs.line == "8,637,000 of 30,000,000 MACs, 28.8 %"
    assert parameters.holds
    over, _ = shares(count_network(preset("qti-c80")), load_limits())
    assert not over.holds
    assert over.line == "314,650 of 128,000 parameters, 245.8 %, over by 186,650"


def test_a_share_on_the_limit_holds_and_one_over_does_not() -> None:
    assert Share("arena_bytes", 100, 100).holds
    over = Share("arena_bytes", 101, 100)
    assert not over.holds
    assert over.line == "101 of 100 bytes of TFLM arena, 101.0 %, over by 1"


def test_shares_of_what_is_known_in_the_order_of_the_limits() -> None:
    limits = Limits({"arena_bytes": 2_068, "flatbuffer_bytes": 1, "instructions.cortex-m4": 84_020})
    arena, instructions = shares(network(), limits)
    assert arena.line == "1,034 of 2,068 bytes of TFLM arena, 50.0 %"
    assert instructions.line == ("42,010 of 84,020 instructions on cortex-m4, estimated, 50.0 %")


def test_every_figure_has_a_label_of_its_own() -> None:
    names = [*MODEL_FIGURES, *instruction_figures()]
    assert len({label(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1.block1.mean", "stage1.block1.mean"),
        ("it's", "it's"),
        ("a\x1b[0m", "a\\x1b[0m"),
        ("caf\xe9\n", "caf\\xe9\\n"),
        ("\u202eabc\udc80", "\\u202eabc\\udc80"),
        ("::error::x", "\\x3a:error::x"),
        ("  ::add-mask::x", "  \\x3a:add-mask::x"),
        ("\u2003::error::x", "\\u2003::error::x"),
        ("a::b", "a::b"),
        ("a ###[error]x##[", "a #\\x23#[error]x\\x23#["),
        ("x" * 100, "x" * 100),
        ("a" * 50 + "b" * 51, "a" * 49 + "..." + "b" * 48),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_shapes() -> None:
    assert shape_text((1, 4, 5, 6)) == "1 x 4 x 5 x 6" and shape_text(()) == ""


def test_rows_of_a_flatbuffer_are_its_operators() -> None:
    count = flatbuffer()
    found = rows(count)
    assert [row.shown for row in found] == list(count.layers)
    assert all(row.trained is None for row in found)


def test_rows_of_a_network_join_what_is_trained_and_what_is_deployed() -> None:
    """By hand: a norm is folded away, the second sum is only on the device."""
    found = [(row.shown.name, bool(row.trained), bool(row.deployed)) for row in rows(network())]
    assert found == [
        ("stem.conv", True, True),
        ("stem.norm", True, False),
        ("block1.sum", True, True),
        ("block2.sum", False, True),
    ]


def test_rows_where_the_orders_differ_lose_nothing() -> None:
    def row(name: str) -> LayerCount:
        return LayerCount(name, "op", (1,), 1, 1, activation_bytes=1)

    device = flatbuffer(layers=tuple(map(row, "xbaay")))
    count = network(layers=tuple(map(row, "anb")), deployed=device)
    found = [(r.shown.name, bool(r.trained), bool(r.deployed)) for r in rows(count)]
    assert [name for name, _, deployed in found if deployed] == list("xbaay")
    assert [name for name, trained, _ in found if trained] == list("anb")


@pytest.mark.parametrize("name", PRESETS)
def test_rows_of_a_preset_keep_both_orders(name: str) -> None:
    count = count_network(preset(name))
    found = rows(count)
    assert [row.trained for row in found if row.trained] == list(count.layers)
    assert [row.deployed for row in found if row.deployed] == list(count.on_device.layers)
    both = [row for row in found if row.trained and row.deployed]
    assert all(row.trained.name == row.deployed.name for row in both)  # type: ignore[union-attr]
    folded = {row.shown.op for row in found if row.deployed is None}
    assert folded == {"batch_norm", "sub_spectral_norm"}
    assert len(both) == len([layer for layer in layers(preset(name)) if layer.kind not in folded])


def test_total_lines_of_a_flatbuffer() -> None:
    assert total_lines(flatbuffer(), 50.0) == [
        "plain: 1,027 parameters, 20,010 MACs (weights and biases; MACs of convolutions and fully "
        "connected layers only)",
        "nessi_tflite: 1,048 parameters, 20,400 MACs (parameters: bytes of all constant inputs; "
        "MACs with pools, MEAN and ADD)",
        "bytes: weights 1,021, biases 24, other 3, file 2,500 (a constant counts at each use; a "
        "file stores it once)",
        "bytes of the file by part: weights 1,021, integers 24, quantization 60, metadata 0, "
        "graph 1,395",
        "activations at once: at most 480 bytes, in stem.conv",
        "TFLM arena, planned for TFLM's own kernels: 1,034 bytes, 600 of them scratch "
        "(activations, buffers of kernels, 40 lost in gaps), 434 persistent",
        "whole bundle on TFLM: flash about 234,136 bytes with 218,000 of code and 13,636 of the "
        "front end, RAM about 41,998 with 8,192 more of arena, for other kernels than TFLM's own, "
        "and 32,772 of the front end, without the stack",
        "estimated for TFLM with CMSIS-NN; time at 50 MHz:",
        "  cortex-m4      0.0 M instructions (up to 2 % off on the network "
        "they are fitted to), about 1 ms "
        "if one takes 1.35 cycles",
        "  cortex-m7      0.0 M instructions (not measured, as cortex-m4), about 1 ms "
        "if one takes 0.9 cycles",
        "  cortex-m33     0.0 M instructions (up to 2 % off on the network "
        "they are fitted to), about 1 ms "
        "if one takes 1.15 cycles",
        "  cortex-m55     0.0 M instructions (up to 2 % off on the network "
        "they are fitted to), about 0 ms "
        "if one takes 1.6 cycles",
    ]


def test_only_what_hears_our_features_has_a_front_end() -> None:
    """The lines of a model of other inputs are those of one of ours, without that of the bundle."""
    ours = total_lines(flatbuffer(), 100.0)
    rows = (dataclasses.replace(row, receptive_ms=None) for row in flatbuffer().layers)
    other = total_lines(flatbuffer(layers=tuple(rows)), 100.0)
    assert [line for line in ours if line not in other] == [ours[6]]
    assert ours[6].startswith("whole bundle on TFLM: ") and "front end" not in " ".join(other)


@pytest.mark.parametrize("shape", [(1, 128, 44, 3), (1, 128, 44, 1)])
def test_features_are_heard_by_their_shape(shape: tuple[int, ...]) -> None:
    def lines(*sizes: int) -> str:
        tensors = Tensor("x", sizes, "int8"), Tensor("y", sizes, "int8")
        graph = Graph(tensors, (Operator("RELU", (0,), (1,)),), (0,), (1,))
        return "\n".join(total_lines(count_graph(graph, "m.tflite", 9), 100.0))

    assert "whole bundle" in lines(*shape)
    assert "whole bundle" not in lines(*shape[:2], 49, shape[3]) + lines(*shape[:3], 2)


def test_time_by_hand() -> None:
    """80 M instructions of 1.35 cycles at 100 MHz: 1.08 s."""
    count = flatbuffer(instructions={**flatbuffer().instructions, "cortex-m4": 80_000_000})
    line = next(line for line in total_lines(count, 100.0) if "cortex-m4 " in line)
    assert "  80.0 M instructions" in line and "about 1,080 ms" in line


def test_total_lines_of_a_network_are_of_both() -> None:
    found = total_lines(network(), 100.0)
    assert found[1].startswith("torchinfo: 1,012 parameters, 20,012 MACs (")
    assert found[2] == "deployed, plain: 1,027 parameters, 20,010 MACs"
    assert found[3] == "deployed, nessi_tflite: 1,048 parameters, 20,400 MACs"
    assert not any("of the file" in line for line in found)


def test_an_operator_left_out_of_the_estimate_is_named() -> None:
    found = total_lines(flatbuffer(not_costed=("SVDF", "CUSTOM:\x1b")), 100.0)
    assert "CMSIS-NN, without SVDF, CUSTOM:\\x1b; time at" in found[7]
    nothing = flatbuffer(not_costed=("SVDF",), instructions=dict.fromkeys(("cortex-m4",), 0))
    assert not any("estimated" in line for line in total_lines(nothing, 100.0))


def test_an_empty_graph_has_few_lines() -> None:
    found = total_lines(Count("empty", "tflite", (), {"plain": Total(0, 0)}), 1.0)
    assert len(found) == 2 and found[1].startswith("bytes: ")


def test_violations_that_no_share_shows() -> None:
    limits = Limits({"parameters": 1_000}, (LayerLimit("block*", {"live_bytes": 246}),))
    verdict = judged(flatbuffer(not_counted=("o: LSTM",)), limits)
    growth = Violation("m.tflite", "growth of parameters", 1_027, 1_026, before=1_026)
    verdict = dataclasses.replace(verdict, violations=(*verdict.violations, growth))
    assert [line.partition("=")[0] for line in other_lines(verdict, limits)] == [
        "m.tflite: block2.sum: live_bytes",
        "m.tflite: operators",
        "m.tflite: growth of parameters",
    ]
    # Trained parameters are a share, deployed ones beside them are not.
    limits = Limits({"parameters": 1_020})
    (line,) = other_lines(judged(network(), limits), limits)
    assert line.startswith("net, deployed: parameters=1,027")


def test_violation_lines_are_printable() -> None:
    for violation in judged(
        hostile(), Limits({"parameters": 1}, (LayerLimit("*", {}),))
    ).violations:
        line = violation_line(violation)
        assert line.isascii() and line.isprintable() and len(line) < 500
    layer = Violation("m", "live_bytes", 2, 1, layer=HOSTILE)
    assert violation_line(layer).isprintable() and len(violation_line(layer)) < 250


def test_unchecked_limits_are_named_in_a_line() -> None:
    limits = Limits({**LIMITS.model, "flatbuffer_bytes": 9})
    assert unchecked_lines(judged(network(), limits)) == [
        "not checked, not known of a preset: flatbuffer_bytes"
    ]
    assert unchecked_lines(judged(flatbuffer(), limits)) == []
    assert unchecked_lines(Verdict(flatbuffer(), ())) == []


def test_growth_without_a_baseline_is_named_apart() -> None:
    names = ("flatbuffer_bytes", "growth of flatbuffer_bytes", "growth of parameters")
    assert unchecked_lines(Verdict(network(), (), names)) == [
        "not checked, not known of a preset: flatbuffer_bytes",
        "not checked, without a baseline: growth of flatbuffer_bytes, growth of parameters",
    ]
    assert unchecked_lines(Verdict(network(), (), names[:2], baseline="net")) == [
        "not checked, not known of a preset: flatbuffer_bytes, growth of flatbuffer_bytes"
    ]


def test_headings_of_changes() -> None:
    verdict = Verdict(flatbuffer(), ())
    assert changes_heading(verdict) == ""
    same = dataclasses.replace(verdict, baseline="m.tflite")
    assert changes_heading(same) == "nothing changed since the baseline"
    other = dataclasses.replace(verdict, baseline="old/\x1b.tflite")
    assert changes_heading(other) == "nothing changed since the baseline of old/\\x1b.tflite"
    changed = dataclasses.replace(other, changes=(Change("", "parameters", 1, 2),))
    assert changes_heading(changed, repr) == "changed since the baseline of 'old/\\x1b.tflite'"


def test_how_sure_an_estimate_is() -> None:
    cores = cost.cores()
    assert error_text(cores["cortex-m4"]) == "up to 2 %"
    assert error_text(cores["cortex-m4"], " off") == "up to 2 % off"
    assert error_text(cores["cortex-m7"], " off") == "not measured, as cortex-m4"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            Change("stem.conv", "parameters", 3_040, 3_200),
            "stem.conv: parameters 3,040 -> 3,200 (+160, +5.3 %)",
        ),
        (Change("", "arena_bytes", 1_000, 990), "arena_bytes 1,000 -> 990 (-10, -1.0 %)"),
        (Change("a", "live_bytes", 0, 7), "a: live_bytes 0 -> 7 (+7)"),
        (Change("a", "live_bytes", None, 7), "a: live_bytes none -> 7"),
        (Change("a\x1b", "b\n", 7, None), "a\\x1b: b\\n 7 -> none"),
    ],
)
def test_change_lines(change: Change, line: str) -> None:
    assert change_line(change) == line
