"""The JSON report, key by key, as its docstring describes it."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from typing import Any

import pytest

from budgets import cost, document
from budgets.baseline import Change
from budgets.check import Violation
from budgets.count import CONVENTIONS, Count, Total, count_network
from budgets.document import as_json
from budgets.limits import LayerLimit, Limits
from firmware_ref.arch import preset
from tests.budgets.commands import ROOT
from tests.budgets.counts import LIMITS, flatbuffer, hostile, judged, network

INSTRUCTIONS = {
    "instructions.cortex-m4": 42_010,
    "instructions.cortex-m7": 42_013,
    "instructions.cortex-m33": 42_016,
    "instructions.cortex-m55": 9_610,
}
STEM_JSON = {
    "name": "stem.conv",
    "op": "CONV_2D",
    "output_shape": [1, 4, 5, 6],
    "figures": {
        "parameters": 1_014,
        "multiply_accumulates": 20_000,
        "weight_bytes": 1_008,
        "activation_bytes": 120,
        "live_bytes": 480,
        "instructions.cortex-m4": 40_000,
        "instructions.cortex-m7": 40_001,
        "instructions.cortex-m33": 40_002,
        "instructions.cortex-m55": 9_000,
    },
    "bytes": {"weights": 1_008, "biases": 24, "other": 2},
    "elementwise": 0,
    "reductions": 0,
    "receptive_field": {"bands": 5, "frames": 3, "milliseconds": 325.0794},
}


def read(text: str) -> dict[str, Any]:
    assert text.isascii() and text.endswith("}\n")
    return dict(json.loads(text))


def test_the_document() -> None:
    limits = Limits(LIMITS.model, (LayerLimit("stem*", {"live_bytes": 480}),), {"parameters": 1.5})
    found = read(as_json([judged(flatbuffer(), limits)], limits))
    assert list(found) == ["ok", "schema_version", "version", "limits", "costs", "subjects"]
    assert found["ok"] is True and found["schema_version"] == 2
    assert found["limits"] == {
        "model": {"parameters": 128_000, "multiply_accumulates": 30_000_000},
        "layers": [{"pattern": "stem*", "live_bytes": 480}],
        "growth_percent": {"parameters": 1.5},
    }
    assert set(found["costs"]) == set(cost.cores())
    m4 = found["costs"]["cortex-m4"]
    assert m4 == {
        "column": 0,
        "error_percent": 2.0,
        "same_as": None,
        "cycles_per_instruction": 1.35,
    }
    m7 = found["costs"]["cortex-m7"]
    assert (m7["error_percent"], m7["same_as"]) == (None, "cortex-m4")
    assert len(found["subjects"]) == 1


def test_a_flatbuffer() -> None:
    (found,) = read(as_json([judged(flatbuffer(sha256="5f"))], LIMITS))["subjects"]
    layers = found.pop("layers")
    assert found == {
        "name": "m.tflite",
        "kind": "tflite",
        "sha256": "5f",
        "figures": {
            "parameters": 1_027,
            "multiply_accumulates": 20_010,
            "weight_bytes": 1_021,
            "flatbuffer_bytes": 2_500,
            "peak_activation_bytes": 480,
            "arena_bytes": 1_034,
            **INSTRUCTIONS,
        },
        "violations": [],
        "unchecked": [],
        "baseline": None,
        "changes": [],
        "conventions": {
            "plain": {"definition": CONVENTIONS["plain"], "parameters": 1_027, "macs": 20_010},
            "nessi_tflite": {
                "definition": CONVENTIONS["nessi_tflite"],
                "parameters": 1_048,
                "macs": 20_400,
            },
        },
        "bytes": {"weights": 1_021, "biases": 24, "other": 3, "file": 2_500},
        "parts": {
            "weights": 1_021,
            "integers": 24,
            "quantization": 60,
            "metadata": 0,
            "graph": 1_395,
        },
        "peak_activation": {"bytes": 480, "layer": "stem.conv"},
        "arena": {"head_bytes": 600, "tail_bytes": 434, "total_bytes": 1_034, "gap_bytes": 40},
        "instructions": {name.partition(".")[2]: n for name, n in INSTRUCTIONS.items()},
        "deployed": None,
    }
    assert [layer["name"] for layer in layers] == ["stem.conv", "block1.sum", "block2.sum"]
    assert layers[0] == STEM_JSON
    assert layers[2]["receptive_field"] == {"bands": 128, "frames": 5, "milliseconds": None}
    assert (layers[1]["elementwise"], layers[2]["reductions"]) == (120, 140)


def test_a_network_has_its_device_graph_beside_it() -> None:
    (found,) = read(as_json([judged(network())], LIMITS))["subjects"]
    assert (found["name"], found["kind"]) == ("net", "preset")
    assert found["figures"]["parameters"] == 1_012
    assert found["figures"]["arena_bytes"] == 1_034 and "flatbuffer_bytes" not in found["figures"]
    assert found["layers"][1] == {
        "name": "stem.norm",
        "op": "batch_norm",
        "output_shape": [6, 4, 5],
        "figures": {"parameters": 12, "multiply_accumulates": 0},
    }
    assert found["bytes"] == found["parts"] == found["instructions"] == {}
    assert found["arena"] is None and found["peak_activation"] == {"bytes": 0, "layer": ""}
    device = found["deployed"]
    assert device["layers"][0] == STEM_JSON
    assert device["arena"]["total_bytes"] == 1_034 and device["deployed"] is None
    assert device["bytes"] == {"weights": 1_021, "biases": 24, "other": 3}
    assert device["figures"]["parameters"] == 1_027 and device["figures"]["arena_bytes"] == 1_034
    assert set(found) - set(device) == {
        *("name", "kind", "sha256", "violations", "unchecked", "baseline", "changes")
    }
    assert found["sha256"] is None


def test_violations_unchecked_and_changes() -> None:
    limits = Limits({"parameters": 1_000, "flatbuffer_bytes": 1}, (LayerLimit("*", {}),))
    grown = Violation("net", "growth of arena_bytes", 1_034, 1_033, before=1_033)
    verdict = judged(network(deployed=flatbuffer(not_int8=("t: int16",))), limits)
    verdict = dataclasses.replace(
        verdict,
        violations=(*verdict.violations, grown),
        unchecked=("flatbuffer_bytes",),
        changes=(Change("stem.conv", "parameters", None, 4),),
        baseline="old/net",
    )
    document = read(as_json([judged(flatbuffer()), verdict], limits))
    assert document["ok"] is False
    found = document["subjects"][1]
    assert found["unchecked"] == ["flatbuffer_bytes"] and found["baseline"] == "old/net"
    assert found["changes"] == [
        {"layer": "stem.conv", "figure": "parameters", "before": None, "after": 4}
    ]
    parameters, _file, int8, growth = found["violations"]
    assert parameters == {
        "subject": "net",
        "limit": "parameters",
        "value": 1_012,
        "allowed": 1_000,
        "layer": "",
        "names": [],
        "before": None,
        "message": verdict.violations[0].message,
    }
    assert (int8["limit"], int8["names"]) == ("int8", ["t: int16"])
    assert (growth["limit"], growth["before"]) == ("growth of arena_bytes", 1_033)


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert read(as_json([], LIMITS))["version"] == project["version"]
    monkeypatch.setattr(document, "PACKAGE", "tinyscene-not-installed")
    assert read(as_json([], LIMITS))["version"] is None


def keys(value: Any) -> set[str]:
    """Every key of nested tables."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_the_docstring_names_every_key_of_the_document_and_its_subjects() -> None:
    text = document.__doc__ or ""
    found = read(as_json([judged(network()), judged(flatbuffer())], LIMITS))
    top = {*found, *found["subjects"][0], *STEM_JSON} - {"bytes"}
    assert top <= keys(found)
    judgements = {field.name for kind in (Violation, Change) for field in dataclasses.fields(kind)}
    costs = {"error_percent", "same_as"}
    assert costs <= keys(found)
    for key in top | judgements | costs | {"message"}:
        assert f"``{key}``" in text, key


def test_hostile_names_come_back_the_same() -> None:
    count = hostile()
    found = read(as_json([judged(count)], LIMITS))["subjects"][0]
    assert found["name"] == found["layers"][0]["name"] == count.name


def test_huge_figures_and_an_empty_graph() -> None:
    empty = Count("empty", "tflite", (), {"plain": Total(0, 10**30)})
    found = read(as_json([judged(empty)], LIMITS))["subjects"][0]
    assert found["figures"] == {"parameters": 0, "multiply_accumulates": 10**30}
    assert found["layers"] == []


def test_a_preset_in_full() -> None:
    (found,) = read(as_json([judged(count_network(preset("report-125k")))], LIMITS))["subjects"]
    assert found["figures"]["parameters"] == 125_330
    assert found["conventions"]["torchinfo"]["macs"] == 8_915_378
    stem = next(row for row in found["layers"] if row["name"] == "stem.conv")
    assert stem["figures"] == {"parameters": 3_040, "multiply_accumulates": 4_224_000}
    assert stem["output_shape"] == [40, 64, 22]
    stem = next(row for row in found["deployed"]["layers"] if row["name"] == "stem.conv")
    assert stem["output_shape"] == [1, 64, 22, 40]
    assert stem["bytes"] == {"weights": 3_000, "biases": 160, "other": 0}
    assert (stem["receptive_field"]["bands"], stem["receptive_field"]["frames"]) == (5, 5)
