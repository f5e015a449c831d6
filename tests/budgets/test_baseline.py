"""Comparing with an earlier report: what changed, what grew too much, and bad baselines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgets.__main__ import judge
from budgets.baseline import BASELINE_BYTES, Change, Subject, changes, grown, load_baseline
from budgets.check import Violation
from budgets.count import Count, Total, count_network
from budgets.document import as_json
from budgets.figures import layer_figures, model_figures
from budgets.limits import Limits
from firmware_ref.arch import PRESETS, preset
from firmware_ref.errors import InputError
from tests.budgets.counts import FIRST, LIMITS, SECOND, STEM, flatbuffer, judged, network

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write JSON, text or bytes as a file."""

    def write(content: Any) -> Path:
        path = tmp_path / "baseline.json"
        if isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def before(count: Count) -> Subject:
    """The subject as the baseline of a count has it."""
    rows = count.on_device.layers
    return Subject(model_figures(count), {row.name: layer_figures(row) for row in rows})


def document(**changes: Any) -> dict[str, Any]:
    """The least that a baseline holds."""
    figures = {"parameters": 1_027, "arena_bytes": 1_034}
    layers = [{"name": "stem.conv", "figures": {"parameters": 1_014}}]
    subject = {"name": "m.tflite", "figures": figures, "layers": layers, "deployed": None}
    return {"schema_version": 2, "subjects": [subject | changes]}


@pytest.mark.parametrize("name", PRESETS)
def test_todays_report_is_a_baseline_without_changes(write: Write, name: str) -> None:
    count = count_network(preset(name))
    path = write(as_json([judged(count), judged(flatbuffer())], LIMITS))
    baseline = load_baseline(path)
    assert set(baseline) == {name, "m.tflite"}
    assert changes(count, baseline[name]) == []
    assert changes(flatbuffer(), baseline["m.tflite"]) == []
    # Nothing may grow, and nothing did.
    still = Limits({}, (), dict.fromkeys(model_figures(count), 0.0))
    assert grown(count, baseline[name], still) == []


def test_what_a_baseline_holds(write: Write) -> None:
    found = load_baseline(write(document()))
    layers = {"stem.conv": {"parameters": 1_014}}
    assert found == {"m.tflite": Subject({"parameters": 1_027, "arena_bytes": 1_034}, layers)}


def test_figures_of_another_version_are_left_out(write: Write) -> None:
    figures = {"parameters": 1, "arena_bytes": 2, "cycles": 3, "x" * 10**5: 4}
    layers = [{"name": "a", "figures": {"live_bytes": 5, "cycles": 6}}]
    found = load_baseline(write(document(figures=figures, layers=layers)))["m.tflite"]
    assert found == Subject({"parameters": 1, "arena_bytes": 2}, {"a": {"live_bytes": 5}})


def test_a_network_is_compared_as_deployed(write: Write) -> None:
    path = write(as_json([judged(network())], LIMITS))
    (subject,) = load_baseline(path).values()
    assert set(subject.layers) == {"stem.conv", "block1.sum", "block2.sum"}
    assert subject.layers["stem.conv"]["activation_bytes"] == 120
    assert subject.figures["parameters"] == 1_012


def test_a_figure_that_changed() -> None:
    wider = dataclasses.replace(FIRST, activation_bytes=121, live_bytes=200)
    count = flatbuffer(layers=(STEM, wider, SECOND), peak_bytes=479)
    assert changes(count, before(flatbuffer())) == [
        Change("", "peak_activation_bytes", 480, 479),
        Change("block1.sum", "activation_bytes", 120, 121),
        Change("block1.sum", "live_bytes", 246, 200),
    ]


def test_a_layer_that_came_and_one_that_went() -> None:
    new = dataclasses.replace(FIRST, name="block3.sum", instructions={"cortex-m4": 5})
    count = flatbuffer(layers=(new, STEM, SECOND))
    came = {"parameters": 6, "multiply_accumulates": 0, "weight_bytes": 6}
    came |= {"activation_bytes": 120, "live_bytes": 246, "instructions.cortex-m4": 5}
    went = layer_figures(FIRST)
    assert changes(count, before(flatbuffer())) == [
        *(Change("block3.sum", name, None, value) for name, value in came.items()),
        *(Change("block1.sum", name, value, None) for name, value in went.items()),
    ]


def test_a_figure_that_came_and_one_that_went() -> None:
    """As where a file is given in place of a preset, with an operator of unknown cost."""
    found = changes(flatbuffer(not_costed=("SVDF",)), before(network()))
    assert Change("", "flatbuffer_bytes", None, 2_500) in found
    assert Change("", "instructions.cortex-m4", 42_010, None) in found
    assert [change.figure for change in found if change.before and change.after] == [
        "parameters",
        "multiply_accumulates",
    ]


@pytest.mark.parametrize(
    ("was", "percent", "most"),
    [
        (1_000, 0.0, 1_000),
        (1_000, 10.0, 1_100),
        (1_000, 0.19, 1_001),  # rounded down
        (1_000, 0.1, 1_001),
        (7, 1_000.0, 77),
        (0, 1_000.0, 0),
        # Exact where a product of floats is not.
        (300_000_000, 0.1, 300_300_000),
        (10**12, 0.7, 1_007_000_000_000),
        (10**12, 1e-7, 10**12 + 1_000),
    ],
)
def test_growth_up_to_its_limit_and_one_more(was: int, percent: float, most: int) -> None:
    limits = Limits({}, (), {"parameters": percent})
    earlier = Subject({"parameters": was}, {})

    def of(parameters: int) -> Count:
        return flatbuffer(conventions={"plain": Total(parameters, 1)})

    assert grown(of(most), earlier, limits) == []
    assert grown(of(max(most - 5, 0)), earlier, limits) == []
    assert grown(of(most + 1), earlier, limits) == [
        Violation("m.tflite", "growth of parameters", most + 1, most, before=was)
    ]


def test_each_figure_can_be_held_from_growing() -> None:
    now = model_figures(flatbuffer())
    assert len(now) == 10
    for figure, value in now.items():
        limits = Limits({}, (), {figure: 0.0})
        assert grown(flatbuffer(), Subject(now, {}), limits) == []
        (violation,) = grown(flatbuffer(), Subject(now | {figure: value - 1}, {}), limits)
        assert (violation.limit, violation.value) == (f"growth of {figure}", value)
        assert (violation.allowed, violation.before) == (value - 1, value - 1)


def test_a_network_may_grow_neither_as_trained_nor_as_deployed(write: Write) -> None:
    (subject,) = load_baseline(write(as_json([judged(network())], LIMITS))).values()
    assert subject.deployed["parameters"] == 1_027 and subject.figures["parameters"] == 1_012
    limits = Limits({}, (), {"parameters": 0.0, "arena_bytes": 0.0})
    assert grown(network(), subject, limits) == []
    wider = {"conventions": {"plain": Total(1_028, 20_010)}}
    deployed = dataclasses.replace(flatbuffer(name="net, deployed"), **wider)
    (violation,) = grown(network(deployed=deployed), subject, limits)
    assert violation == Violation(
        "net, deployed", "growth of parameters", 1_028, 1_027, before=1_027
    )
    # Of both it is said once.
    (violation,) = grown(network(deployed=deployed, **wider), subject, limits)
    assert (violation.subject, violation.value) == ("net", 1_028)


def test_growth_over_a_baseline_without_a_device_graph_is_refused(write: Write) -> None:
    """Of an earlier version, which wrote no figures of it."""
    report = json.loads(as_json([judged(network())], LIMITS))
    del report["subjects"][0]["deployed"]["figures"]
    path = str(write(report))
    limits = Limits(LIMITS.model, (), {"parameters": 0.0})
    with pytest.raises(InputError, match="says nothing of parameters of 'net, deployed', whose"):
        judge([network()], limits, path)
    assert judge([network()], LIMITS, path)[0].violations == ()


def test_growth_of_what_is_not_known_here_is_not_held() -> None:
    """Such as the size of the file of a preset."""
    limits = Limits({}, (), {"flatbuffer_bytes": 0.0})
    assert grown(network(), Subject({}, {}), limits) == []


def test_growth_over_a_baseline_that_lacks_the_figure_is_refused() -> None:
    limits = Limits({}, (), {"arena_bytes": 0.0})
    with pytest.raises(InputError, match="baseline says nothing of arena_bytes"):
        grown(flatbuffer(), Subject({"parameters": 3}, {}), limits)


def test_judge_says_what_changed_and_grew(write: Write) -> None:
    path = str(write(document()))
    count = flatbuffer(conventions={"plain": Total(1_038, 20_010)})
    roomy = Limits(LIMITS.model, (), {"parameters": 1.1})
    (verdict,) = judge([count], roomy, path)
    assert verdict.violations == ()
    assert verdict.changes[0] == Change("", "parameters", 1_027, 1_038)
    (verdict,) = judge([count], dataclasses.replace(roomy, growth_percent={"parameters": 1}), path)
    assert verdict.violations == (
        Violation("m.tflite", "growth of parameters", 1_038, 1_037, before=1_027),
    )


def test_growth_without_a_baseline_is_a_mistake() -> None:
    limits = Limits(LIMITS.model, (), {"parameters": 0.0})
    with pytest.raises(InputError, match="no --baseline FILE given"):
        judge([flatbuffer()], limits, None)


DEEP = "[" * 100_000
SUBJECT = document()["subjects"][0]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        ("{", "is not JSON"),
        (DEEP, "is not JSON"),
        ('{"subjects": ' + DEEP, "is not JSON"),
        ('{"schema_version": 1' + "0" * 5_000 + "}", "is not JSON"),
        ("[]", "schema_version=None"),
        ("null", "schema_version=None"),
        ("{}", "schema_version=None; allowed is 2"),
        ({"schema_version": 1, "subjects": []}, "schema_version=1; allowed is 2"),
        ({"schema_version": 3, "subjects": []}, "schema_version=3; allowed is 2"),
        ({"schema_version": 2.0, "subjects": []}, "schema_version=2.0"),
        ({"schema_version": True, "subjects": []}, "schema_version=True"),
        ({"schema_version": "2" * 9_000, "subjects": []}, "schema_version='2222"),
        ({"schema_version": 2}, "subjects is not a list of tables"),
        ({"schema_version": 2, "subjects": {}}, "subjects is not a list"),
        ({"schema_version": 2, "subjects": [3]}, "subjects is not a list"),
        (document(name=3), "name=3 is not a text"),
        (document(name=None), "name=None is not a text"),
        (document(figures=None), "figures is not a table"),
        (document(figures=[1]), "figures is not a table"),
        (document(figures={"parameters": "3"}), "'parameters'='3' is not a whole number"),
        (document(figures={"parameters": True}), "'parameters'=True"),
        (document(figures={"parameters": 1.5}), "'parameters'=1.5"),
        (document(figures={"parameters": float("nan")}), "'parameters'=nan"),
        (document(figures={"parameters": float("inf")}), "'parameters'=inf"),
        (document(figures={"parameters": -1}), "'parameters'=-1"),
        (document(figures={"parameters": None}), "'parameters'=None"),
        (document(figures={"x" * 9_000: 10**400}), "'xxx"),
        (document(layers=None), "layers is not a list of tables"),
        (document(layers=[[]]), "layers is not a list of tables"),
        (document(layers=[{"figures": {}}]), "name=None"),
        (document(layers=[{"name": "a"}]), "figures is not a table"),
        (document(layers=[{"name": "a", "figures": {"macs": []}}]), r"'macs'=\[\]"),
        (document(deployed=[3]), "deployed is not a table"),
        (document(layers=[{}] * 2_501), "it has 2,501 layers; at most 2,500 are counted"),
        (document(deployed={"layers": 3}), "layers is not a list of tables"),
        (document(deployed={"layers": [], "figures": 3}), "figures is not a table"),
        (document(deployed={"layers": [], "figures": {"a": -1}}), "'a'=-1 is not a whole number"),
    ],
)
def test_a_bad_baseline_is_refused_in_one_line(write: Write, content: Any, match: str) -> None:
    path = write(content)
    with pytest.raises(InputError, match=match) as caught:
        load_baseline(path)
    message = str(caught.value)
    assert message.startswith(f"baseline {str(path)!r}") and "python -m budgets SUBJECT" in message
    assert "\n" not in message and len(message) < 500


def test_a_huge_baseline_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(BASELINE_BYTES + 1)
    with pytest.raises(InputError, match=r"at most .*; make it again: .* of some 50 models"):
        load_baseline(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_baseline(tmp_path / "missing.json")
