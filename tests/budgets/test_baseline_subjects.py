"""Which subject of a baseline a run is compared with, and how the command goes about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgets.__main__ import judge, main
from budgets.baseline import Change
from budgets.limits import Limits
from firmware_ref.errors import InputError
from tests.budgets.commands import write_relu
from tests.budgets.counts import LIMITS, flatbuffer, network
from tests.budgets.test_baseline import document
from tests.budgets.test_main import LIMITS as LIMITS_FILE
from tests.budgets.test_main import fails_with_one_line

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a baseline and give its path."""

    def write(content: Any) -> Path:
        path = tmp_path / "baseline.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def report_of(*names: str) -> dict[str, Any]:
    """A baseline with these subjects, of 1,000 parameters, 1,001, and so on."""
    found = document()
    (subject,) = found["subjects"]
    found["subjects"] = [
        subject | {"name": name, "figures": {"parameters": 1_000 + place}}
        for place, name in enumerate(names)
    ]
    return found


@pytest.mark.parametrize("names", [["other.tflite", "b"], []])
def test_a_baseline_without_the_subject_is_refused(write: Write, names: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        judge([flatbuffer()], LIMITS, str(write(report_of(*names))))
    known = "'other.tflite', 'b'" if names else "none"
    assert f"has no subject 'm.tflite', only {known}; make it again: python -m" in str(caught.value)


def test_one_of_several_subjects_needs_its_name(write: Write) -> None:
    """The baseline's only one might be any of them."""
    counts = [flatbuffer(), flatbuffer(name="n.tflite")]
    with pytest.raises(InputError, match=r"has no subject 'n\.tflite', only 'm\.tflite'"):
        judge(counts, LIMITS, str(write(report_of("m.tflite"))))


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("m.tflite", "./m.tflite"),
        ("./a/m.tflite", "a/m.tflite"),
        ("a//m.tflite", "b/../a/m.tflite"),
        ("/w/a/m.tflite", "/w/./a/m.tflite"),
    ],
)
def test_a_path_written_otherwise_is_the_same(write: Write, here: str, there: str) -> None:
    for name, baseline in ((here, there), (there, here)):
        path = str(write(report_of("x.tflite", baseline)))
        (verdict,) = judge([flatbuffer(name=name)], LIMITS, path)
        assert verdict.baseline == baseline
        assert verdict.changes[0] == Change("", "parameters", 1_001, 1_027)
    with pytest.raises(InputError, match="has no subject"):
        judge([flatbuffer(name="other/m.tflite")], LIMITS, str(write(report_of("x", there))))


def test_the_only_subjects_are_compared_whatever_they_are_called(write: Write) -> None:
    path = str(write(report_of("old/model.tflite")))
    held = Limits(LIMITS.model, (), {"parameters": 0.0})
    (verdict,) = judge([flatbuffer(name="new/model.tflite")], held, path)
    assert verdict.baseline == "old/model.tflite"
    assert verdict.changes[0] == Change("", "parameters", 1_000, 1_027)
    (violation,) = verdict.violations
    assert (violation.subject, violation.before) == ("new/model.tflite", 1_000)


def test_an_optional_baseline_that_is_not_there_leaves_growth_unchecked(tmp_path: Path) -> None:
    limits = Limits({"parameters": 1_000}, (), {"flatbuffer_bytes": 0.0, "arena_bytes": 1.0})
    path = str(tmp_path / "baseline.json")
    with pytest.raises(InputError, match="cannot be read"):
        judge([flatbuffer()], limits, path)
    file, net = judge([flatbuffer(), network()], limits, path, optional=True)
    assert file.baseline is net.baseline is None and file.changes == ()
    growth = ("growth of flatbuffer_bytes", "growth of arena_bytes")
    assert file.unchecked == net.unchecked == growth
    assert [violation.limit for violation in file.violations] == ["parameters"]
    # One that is there is held, and one that is not given is a mistake still.
    Path(path).write_text(json.dumps(document()))
    with pytest.raises(InputError, match="says nothing of flatbuffer_bytes"):
        judge([flatbuffer()], limits, path, optional=True)
    with pytest.raises(InputError, match="no --baseline FILE given"):
        judge([flatbuffer()], limits, None, optional=True)


def test_growth_over_a_baseline(
    tmp_path: Path, limits: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The baseline of today, then of a day when the network had three parameters fewer."""
    baseline = tmp_path / "baseline.json"
    assert main(["report-125k", "--json", "--out", str(baseline)]) == 0
    path = limits(LIMITS_FILE.format(128_000) + "[growth_percent]\nparameters = 0.002\n")
    command = ["report-125k", "--limits", path, "--baseline", str(baseline)]
    capsys.readouterr()
    assert main(command) == 0
    assert "\nnothing changed since the baseline\n" in capsys.readouterr().out

    document = json.loads(baseline.read_text())
    document["subjects"][0]["figures"]["parameters"] -= 3
    baseline.write_text(json.dumps(document))
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "over limit: report-125k: growth of parameters=125,330; allowed over the baseline's "
        "125,327 are 125,329; save 1, or accept it with a new baseline\n"
    )
    assert (
        "changed since the baseline:\n  parameters 125,327 -> 125,330 (+3, +0.0 %)" in captured.out
    )
    # Shown without a limit, and then no reason to fail.
    assert main(["report-125k", "--baseline", str(baseline), "--quiet"]) == 0
    line = fails_with_one_line(capsys, ["report-125k", "--limits", path])
    assert "no --baseline FILE given" in line
    line = fails_with_one_line(capsys, ["report-125k", "qti-c40", "--baseline", str(baseline)])
    assert "has no subject 'qti-c40', only 'report-125k'" in line


def test_an_old_and_a_new_file_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    write_relu(Path("old/model.tflite"), 4)
    write_relu(Path("model.tflite"), 5)
    for name in ("old/model.tflite", "model.tflite"):
        assert main([name, "--out", "b.json", "--quiet"]) == 0
        assert main(["./model.tflite", "--baseline", "b.json"]) == 0
        text = capsys.readouterr().out
        assert ("\nchanged since the baseline of old/model.tflite:\n" in text) == ("old" in name)
        assert ("\nnothing changed since the baseline of model.tflite\n" in text) != ("old" in name)


def test_a_baseline_may_be_missing_where_it_is_optional(
    tmp_path: Path,
    limits: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, out = limits("[growth_percent]\nparameters = 0\n"), "b.json"
    command = ["report-125k", "--limits", path, "--baseline", out]
    assert "cannot be read" in fails_with_one_line(capsys, command)
    optional = [*command, "--baseline-optional"]
    note = f"note: baseline {out} is not there yet: growth is not checked\n"
    assert main(optional) == 0
    captured = capsys.readouterr()
    assert captured.err == note
    assert "\nnot checked, without a baseline: growth of parameters\n" in captured.out
    assert main([*optional, "--out", out, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    (subject,) = json.loads(Path(out).read_text())["subjects"]
    assert subject["unchecked"] == ["growth of parameters"] and subject["baseline"] is None
    assert main(optional) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "nothing changed since the baseline" in captured.out
    line = fails_with_one_line(capsys, ["report-125k", "--baseline-optional"])
    assert "--baseline-optional is of --baseline FILE" in line
