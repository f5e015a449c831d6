"""What GitHub Actions is told: annotations, and the summary of the step."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from budgets.__main__ import FORMATS, render
from budgets.baseline import Change
from budgets.check import Violation
from budgets.github import SUMMARY_VARIABLE, append_summary, notice, workflow_commands
from budgets.limits import LayerLimit, Limits
from budgets.verdict import Verdict
from firmware_ref.errors import InputError
from tests.budgets.counts import STEM, flatbuffer, hostile, judged, network

# A command as actions/runner reads it (ActionCommand.cs): properties up to the second "::".
COMMAND = re.compile(r"::(?P<command>\w+) (?P<name>\w+)=(?P<value>[^:,\r\n]*)::(?P<data>[^\r\n]*)")


def unescaped(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def read(text: str) -> list[tuple[str, str, str]]:
    """Command, title and message of each line."""
    assert text.endswith("\n")
    found = []
    for line in text.splitlines():
        match = COMMAND.fullmatch(line)
        assert match and match["name"] == "title", line
        found.append((match["command"], unescaped(match["value"]), unescaped(match["data"])))
    return found


def test_each_broken_limit_is_an_error() -> None:
    limits = Limits({"parameters": 1_000}, (LayerLimit("block2*", {"live_bytes": 246}),))
    verdicts = [judged(flatbuffer(), limits), judged(network(), Limits({"parameters": 1_020}))]
    assert read(workflow_commands(verdicts)) == [
        (
            "error",
            "Budget: parameters",
            "m.tflite: parameters=1,027; allowed are 1,000; save 27 with fewer or narrower layers",
        ),
        (
            "error",
            "Budget: live_bytes",
            "m.tflite: block2.sum: live_bytes=247; allowed are 246; save 1 with fewer or narrower "
            "layers",
        ),
        (
            "error",
            "Budget: parameters",
            "net, deployed: parameters=1,027; allowed are 1,020; save 7 with fewer or narrower "
            "layers",
        ),
    ]


def test_none_broken_is_a_notice() -> None:
    verdicts = [judged(flatbuffer()), judged(network())]
    assert workflow_commands(verdicts) == "::notice title=Budget::2 within every limit\n"


def test_a_notice_of_any_text() -> None:
    assert read(notice("50 %, a:b")) == [("notice", "Budget", "50 %, a:b")]
    assert notice("50 %\n") == "::notice title=Budget::50 %25%0A\n"


def test_what_a_command_is_made_of_is_escaped() -> None:
    names = "100 %::error title=x::y, z", "a%0Ab"
    verdict = Verdict(flatbuffer(), (Violation(names[0], "a:b,c%", 2, 1, layer=names[1]),))
    text = workflow_commands([verdict])
    assert text.startswith(
        "::error title=Budget%3A a%3Ab%2Cc%25::100 %25::error title=x::y, z: a%250Ab"
    )
    ((command, title, message),) = read(text)
    assert (command, title) == ("error", "Budget: a:b,c%")
    assert message.startswith(f"{names[0]}: {names[1]}: a:b,c%=2;")


def test_hostile_names_are_one_line_each() -> None:
    verdict = judged(hostile(), Limits({"parameters": 1}))
    assert [title for _, title, _ in read(workflow_commands([verdict]))] == [
        "Budget: parameters",
        "Budget: int8",
        "Budget: operators",
    ]


@pytest.mark.parametrize(
    "name", ["::error::x", "  ::add-mask::x", "a##[error]x", "\\##[stop-commands]x", "\n::debug::x"]
)
@pytest.mark.parametrize("form", FORMATS)
def test_a_name_in_a_report_is_no_command(form: str, name: str) -> None:
    """As the runner looks for commands in all that a step prints (ActionCommand.cs)."""
    count = flatbuffer(
        name=name,
        layers=(dataclasses.replace(STEM, name=name, op=name),),
        peak_layer=name,
        not_costed=(name,),
        not_planned=(name,),
        not_int8=(name,),
        not_counted=(name,),
        arena=None,
    )
    limits = Limits({"parameters": 1}, (LayerLimit("*", {"live_bytes": 1}),))
    verdict = judged(count, limits, changes=(Change(name, name, 1, 2), Change("", name, 1, 2)))
    text = render(form, [verdict], limits, 100.0)
    for line in text.splitlines():
        assert not line.lstrip().startswith("::") and "##[" not in line
    if form == "json":
        (subject,) = json.loads(text)["subjects"]
        assert subject["name"] == subject["layers"][0]["name"] == name


def test_the_summary_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.md"
    monkeypatch.setenv(SUMMARY_VARIABLE, str(path))
    append_summary("one\n")
    append_summary("two\n")
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"


@pytest.mark.parametrize("value", [None, ""])
def test_no_summary_outside_of_actions(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(SUMMARY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(SUMMARY_VARIABLE, value)
    with pytest.raises(InputError, match=r"GITHUB_STEP_SUMMARY is not set; .* leave --github out"):
        append_summary("text")


def test_a_summary_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUMMARY_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"--github: .* cannot be written: Is a directory"):
        append_summary("text")
