"""Every kind of limit: on it holds, one more is a violation that says where, what and how much."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from budgets.check import (
    MOST_LAYER_VIOLATIONS,
    Violation,
    check,
    enforce,
    enforce_network,
    refuse_unused,
    unchecked,
)
from budgets.count import Count, Total, count_network
from budgets.figures import LAYER_FIGURES, MODEL_FIGURES, instruction_figures
from budgets.limits import LayerLimit, Limits, load_limits
from firmware_ref.arch import PRESETS, preset
from firmware_ref.errors import CheckFailedError, InputError
from tests.budgets.counts import flatbuffer, network

# What `counts.flatbuffer` has, and of its layers named `block*`: the one with more, and how much.
MODEL = {
    "parameters": 1_027,
    "multiply_accumulates": 20_010,
    "weight_bytes": 1_021,
    "flatbuffer_bytes": 2_500,
    "peak_activation_bytes": 480,
    "arena_bytes": 1_034,
    "instructions.cortex-m4": 42_010,
    "instructions.cortex-m7": 42_013,
    "instructions.cortex-m33": 42_016,
    "instructions.cortex-m55": 9_610,
}
LAYERS = {
    "parameters": 7,
    "multiply_accumulates": 10,
    "weight_bytes": 7,
    "activation_bytes": 121,
    "live_bytes": 247,
    "instructions.cortex-m4": 1_010,
    "instructions.cortex-m7": 1_011,
    "instructions.cortex-m33": 1_012,
    "instructions.cortex-m55": 310,
}


def test_the_tables_above_are_whole() -> None:
    assert set(MODEL) == {*MODEL_FIGURES, *instruction_figures()}
    assert set(LAYERS) == {*LAYER_FIGURES, *instruction_figures()}


@pytest.mark.parametrize(("figure", "value"), MODEL.items())
def test_each_figure_of_a_model(figure: str, value: int) -> None:
    count = flatbuffer()
    assert check(count, Limits({figure: value})) == []
    (violation,) = check(count, Limits({figure: value - 1}))
    assert violation == Violation("m.tflite", figure, value, value - 1)
    assert violation.message == (
        f"m.tflite: {figure}={value:,}; allowed are {value - 1:,}; save 1 with fewer or narrower "
        "layers"
    )


@pytest.mark.parametrize(("figure", "value"), LAYERS.items())
def test_each_figure_of_a_layer(figure: str, value: int) -> None:
    """Both layers of the pattern have a figure on the limit or below, one of them on it."""
    count, limits = flatbuffer(), Limits({}, (LayerLimit("block*", {figure: value}),))
    assert check(count, limits) == []
    (violation,) = check(count, Limits({}, (LayerLimit("block*", {figure: value - 1}),)))
    assert violation == Violation("m.tflite", figure, value, value - 1, layer="block2.sum")
    assert violation.message.startswith(
        f"m.tflite: block2.sum: {figure}={value:,}; allowed are {value - 1:,}; save 1 "
    )


def test_every_layer_and_pattern_is_held() -> None:
    patterns = LayerLimit("*", {"live_bytes": 246}), LayerLimit("block1.*", {"parameters": 5})
    found = check(flatbuffer(), Limits({}, patterns))
    assert [(v.layer, v.limit, v.value) for v in found] == [
        ("stem.conv", "live_bytes", 480),
        ("block1.sum", "parameters", 6),
        ("block2.sum", "live_bytes", 247),
    ]


def test_float_tensors_and_unknown_operators() -> None:
    count = flatbuffer(
        not_int8=tuple(f"t{i}: float32" for i in range(7)), not_counted=("spell: CUSTOM:Magic",)
    )
    tensors, operators = check(count, load_limits())
    assert (tensors.limit, tensors.value, tensors.allowed) == ("int8", 7, 0)
    assert tensors.message == (
        "m.tflite: int8=7 tensors are not INT8; allowed are 0; quantise them: t0: float32, "
        "t1: float32, t2: float32, t3: float32, t4: float32 and 2 more"
    )
    assert (operators.limit, operators.value, operators.allowed) == ("operators", 1, 0)
    assert operators.message == (
        "m.tflite: operators=1 that TFLM may not run in INT8, or of unknown cost; allowed are 0; "
        "replace them: spell: CUSTOM:Magic"
    )


def test_growth_says_what_it_was() -> None:
    violation = Violation("m.tflite", "growth of arena_bytes", 1_103, 1_100, before=1_000)
    assert violation.message == (
        "m.tflite: growth of arena_bytes=1,103; allowed over the baseline's 1,000 are 1,100; save "
        "3, or accept it with a new baseline"
    )


def test_a_network_is_held_as_trained_and_as_deployed() -> None:
    """10 MACs more once deployed: where trained ones hold, deployed ones still may not."""
    count = network()
    assert check(count, Limits({"multiply_accumulates": 20_010})) == []
    (violation,) = check(count, Limits({"multiply_accumulates": 20_009}))
    assert violation == Violation("net, deployed", "multiply_accumulates", 20_010, 20_009)
    # Over both, it is said once.
    (violation,) = check(count, Limits({"multiply_accumulates": 19_999}))
    assert violation == Violation("net", "multiply_accumulates", 20_000, 19_999)


def test_a_network_that_trains_within_its_limits_and_deploys_over_them() -> None:
    """Trained, the preset has 8,637,000 MACs; ResNorm's means become convolutions with more."""
    limits = Limits({"parameters": 128_000, "multiply_accumulates": 8_637_000})
    with pytest.raises(CheckFailedError, match=r"^report-125k, deployed: multiply_accumulates=8,7"):
        enforce_network(preset("report-125k"), limits)
    plain = dataclasses.replace(preset("report-125k"), res_norm=False)
    assert enforce_network(plain, limits).macs == 8_637_000


@pytest.mark.parametrize("limit", ["int8", "operators"])
def test_rules_hold_a_network_as_deployed(limit: str) -> None:
    names = {"int8": {"not_int8": ("t: float32",)}, "operators": {"not_counted": ("o: LSTM",)}}
    count = network(deployed=flatbuffer(name="net, deployed", **names[limit]))
    (violation,) = check(count, load_limits())
    assert (violation.subject, violation.limit) == ("net, deployed", limit)


def test_memory_of_a_network_is_that_of_its_device_graph() -> None:
    (violation,) = check(network(), Limits({"arena_bytes": 1_033}))
    assert (violation.subject, violation.value) == ("net", 1_034)


def test_a_layer_of_a_network_is_held_as_deployed() -> None:
    (violation,) = check(network(), Limits({}, (LayerLimit("stem.*", {"parameters": 1_013}),)))
    assert (violation.subject, violation.layer) == ("net, deployed", "stem.conv")


def test_limits_without_a_figure_are_named() -> None:
    everything = Limits(dict.fromkeys(MODEL, 10**9))
    assert unchecked(flatbuffer(), everything) == []
    assert unchecked(network(), everything) == ["flatbuffer_bytes"]
    growing = Limits({}, (), {"flatbuffer_bytes": 0.0, "arena_bytes": 0.0})
    assert unchecked(network(), growing) == ["growth of flatbuffer_bytes"]
    assert unchecked(Count("empty", "tflite", (), {"plain": Total(0, 0)}), everything) == [
        name for name in MODEL if name not in ("parameters", "multiply_accumulates")
    ]


@pytest.mark.parametrize(
    ("figure", "changes"),
    [
        ("arena_bytes", {"arena": None, "not_planned": ("ADD of int16", "SVDF")}),
        # The sum of instructions would be too small.
        ("instructions.cortex-m33", {"not_costed": ("ADD of int16", "SVDF")}),
    ],
)
def test_a_limit_on_what_cannot_be_told_is_broken(figure: str, changes: dict[str, Any]) -> None:
    """Else one operator of unknown cost would lift it."""
    said = (
        "unknown=1 limited figures cannot be told; allowed are 0; replace what is in the way, or "
        "leave the limits out: "
    )
    count = flatbuffer(**changes)
    for limits, limit in (
        (Limits({figure: 10**9}), figure),
        (Limits({}, (), {figure: 1_000.0}), f"growth of {figure}"),
    ):
        (violation,) = check(count, limits)
        assert violation.message == f"m.tflite: {said}{limit}: ADD of int16, SVDF"
        assert unchecked(count, limits) == []
        (violation,) = check(network(deployed=count), limits)
        assert violation.limit == "unknown"
        assert check(flatbuffer(), limits) == check(network(), limits) == []
    assert check(count, Limits({"parameters": 10**9})) == []


def test_a_layer_limit_on_what_cannot_be_told_is_broken() -> None:
    odd = dataclasses.replace(flatbuffer().layers[0], op="SVDF", instructions={})
    count = flatbuffer(layers=(odd, *flatbuffer().layers[1:]), not_costed=("SVDF",))
    figure = "instructions.cortex-m7"
    assert check(count, Limits({}, (LayerLimit("block*", {figure: 10**9}),))) == []
    (violation,) = check(count, Limits({}, (LayerLimit("*", {figure: 10**9}),)))
    assert violation == Violation("m.tflite", "unknown", 1, 0, "stem.conv", (f"{figure}: SVDF",))


def test_of_many_layers_the_first_are_named() -> None:
    layers = (flatbuffer().layers[0],) * (MOST_LAYER_VIOLATIONS + 1)
    limits = Limits({"parameters": 1}, (LayerLimit("*", {"live_bytes": 1}),))
    found = check(flatbuffer(layers=layers, not_counted=("o: LSTM",)), limits)
    assert len(found) == MOST_LAYER_VIOLATIONS + 2
    assert (found[0].limit, found[-1].limit) == ("parameters", "operators")


def test_a_pattern_that_matches_no_layer_is_a_mistake() -> None:
    limits = Limits({}, (LayerLimit("block*", {"parameters": 1}), LayerLimit("Stem*", {})))
    with pytest.raises(InputError, match=r"layers 'Stem\*' matches no layer; mend the pattern"):
        refuse_unused(limits, [flatbuffer()])
    # A norm that is folded away is no layer of the device.
    with pytest.raises(InputError, match=r"'stem\.norm'"):
        refuse_unused(Limits({}, (LayerLimit("stem.norm", {}),)), [network()])


def test_a_pattern_may_match_in_any_subject() -> None:
    limits = Limits({}, (LayerLimit("stage1.*", {"parameters": 10**6}),))
    refuse_unused(limits, [flatbuffer(), count_network(preset("report-125k"))])
    refuse_unused(Limits({}), [])


def test_enforce_names_every_broken_limit() -> None:
    limits = Limits(
        {"parameters": 1_026, "arena_bytes": 1_000}, (LayerLimit("*", {"parameters": 10**6}),)
    )
    with pytest.raises(CheckFailedError) as caught:
        enforce(flatbuffer(not_int8=("t: int16",)), limits)
    assert str(caught.value) == (
        "m.tflite: parameters=1,027; allowed are 1,026; save 1 with fewer or narrower layers; "
        "m.tflite: arena_bytes=1,034; allowed are 1,000; save 34 with fewer or narrower layers; "
        "m.tflite: int8=1 tensors are not INT8; allowed are 0; quantise them: t: int16"
    )
    enforce(flatbuffer(), Limits(MODEL))


def test_enforce_network_holds_the_shipped_limits() -> None:
    assert enforce_network(preset("report-125k")).parameters == 125_330
    with pytest.raises(CheckFailedError) as caught:
        enforce_network(preset("qti-c80"))
    message = str(caught.value)
    assert "parameters=314,650; allowed are 128,000" in message
    assert "multiply_accumulates=33,926,360; allowed are 30,000,000" in message


def test_enforce_network_takes_other_limits() -> None:
    roomy = Limits({"parameters": 400_000, "multiply_accumulates": 40_000_000})
    assert enforce_network(preset("qti-c80"), roomy).macs == 33_926_360


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_nothing_but_int8_and_known_operators(name: str) -> None:
    device = count_network(preset(name)).on_device
    assert device.not_int8 == device.not_counted == device.not_costed == ()
