"""``python -m budgets`` end to end: what it prints, writes and ends with."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from budgets.__main__ import EXAMPLE, FORMATS, main
from firmware_ref.arch import PRESETS, preset
from tests.budgets.commands import ROOT, write_checkpoint, write_relu

SHIPPED = ROOT / "convert" / "checkpoints" / "esc10-report-125k.safetensors"
LIMITS = "[model]\nparameters = {}\nmultiply_accumulates = 30_000_000\n"


def fails_with_one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_within_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report-125k"]) == 0
    captured = capsys.readouterr()
    assert "125,330 of 128,000 parameters, 97.9 %" in captured.out
    assert captured.err == ""
    assert "\x1b" not in captured.out


def test_over_a_limit_exits_1_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report-125k", "qti-c80", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("over limit: qti-c80: parameters=314,650; allowed are 128,000;")
    assert "multiply_accumulates=33,926,360; allowed are 30,000,000;" in second


def test_one_parameter_too_many_fails(
    limits: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    for allowed, code in ((125_330, 0), (125_329, 1)):
        path = limits(LIMITS.format(allowed))
        assert main(["report-125k", "--limits", path, "--quiet"]) == code
    assert "parameters=125,330; allowed are 125,329" in capsys.readouterr().err


def test_limits_of_layers_are_a_line_each(
    limits: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The stem writes 64 x 22 x 40 bytes; no other layer matches, or as much."""
    table = "[[layers]]\npattern = 'stem.*'\nactivation_bytes = {}\n"
    path = limits(LIMITS.format(128_000) + table.format(56_320))
    assert main(["report-125k", "--limits", path, "--quiet"]) == 0
    path = limits(LIMITS.format(128_000) + table.format(56_319))
    assert main(["report-125k", "--limits", path, "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "over limit: report-125k, deployed: stem.conv: activation_bytes=56,320; allowed are 56,319"
    )
    path = limits(LIMITS.format(128_000) + table.replace("stem", "Stem").format(1))
    line = fails_with_one_line(capsys, ["report-125k", "--limits", path])
    assert "'Stem.*' matches no layer" in line


def test_the_example_is_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert shlex.split(EXAMPLE)[:3] == ["python", "-m", "budgets"]
    assert main(shlex.split(EXAMPLE)[3:]) == 0
    capsys.readouterr()
    assert EXAMPLE in fails_with_one_line(capsys, [])


def test_help_names_presets_and_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (*PRESETS, "torchinfo", "nessi_tflite", "exit code", *FORMATS):
        assert word in text


@pytest.mark.parametrize(
    "flags",
    [["--json"], ["--format", "json"], ["--json", "--quiet"], ["--format", "json", "--quiet"]],
)
def test_json(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main(["qti-c40", *flags]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert (subject["name"], subject["kind"]) == ("qti-c40", "preset")


STARTS = {
    "table": "qti-c40 (preset)\n",
    "markdown": "### Budgets\n",
    "json": '{\n  "ok": true,\n',
    "html": "<!DOCTYPE html>\n",
}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert main(["qti-c40", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(STARTS[form]) and "qti-c40" in printed
    path = tmp_path / "new" / "report"
    assert main(["qti-c40", "--format", form, "--out", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == f"wrote {str(path)!r}\n"
    assert main(["qti-c40", "--format", form, "--out", str(path), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("r.html", "html"), ("r.md", "markdown"), ("r.json", "json"), ("R.HTML", "html")),
        *(("r.txt", "table"), ("html", "table"), ("r.html.txt", "table")),
    ],
)
def test_the_name_of_the_file_says_in_which_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    path = tmp_path / name
    assert main(["qti-c40", "--out", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith(STARTS[form])
    assert capsys.readouterr().out == f"wrote {str(path)!r}\n"
    # What is asked for goes first.
    assert main(["qti-c40", "--out", str(path), "--format", "table"]) == 0
    assert path.read_text(encoding="utf-8").startswith(STARTS["table"])
    assert main(["qti-c40", "--out", str(path), "--json"]) == 0
    assert path.read_text(encoding="utf-8").startswith(STARTS["json"])


@pytest.mark.parametrize("name", ["m.tflite", "M.TFLITE", "m.TfLite"])
def test_a_file_and_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """As `sha256sum` would have it; an upper-case name is of the same kind."""
    path = write_relu(tmp_path / name, 4)
    assert main([str(path), "--json"]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert subject["kind"] == "tflite"
    assert subject["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    checkpoint = write_checkpoint(tmp_path / "C.SAFETENSORS", preset("report-125k").to_dict())
    assert main([str(checkpoint), "--json"]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert subject["kind"] == "checkpoint" and subject["sha256"] is None


def test_the_clock_sets_milliseconds_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """At half the clock twice the time."""
    reports = []
    for clock in ("100", "50"):
        assert main(["report-125k", "--clock-mhz", clock]) == 0
        reports.append(capsys.readouterr().out.splitlines())
    different = [(a, b) for a, b in zip(*reports, strict=True) if a != b]
    assert different[0][0].endswith("time at 100 MHz:") and len(different) == 5
    for a, b in different[1:]:
        times = [int(line.split("about ")[1].split(" ms")[0].replace(",", "")) for line in (a, b)]
        assert times[1] == pytest.approx(2 * times[0], abs=2)


@pytest.mark.parametrize("clock", ["0", "-1", "0.99", "10001", "nan", "inf", "-inf", "1e400"])
def test_a_clock_out_of_range(capsys: pytest.CaptureFixture[str], clock: str) -> None:
    line = fails_with_one_line(capsys, ["report-125k", f"--clock-mhz={clock}"])
    assert "--clock-mhz=" in line and "a number from 1 to 10,000" in line


@pytest.mark.parametrize("clock", ["fast", "", "1_0 0", "0x10"])
def test_a_clock_that_is_no_number(capsys: pytest.CaptureFixture[str], clock: str) -> None:
    assert "--clock-mhz" in fails_with_one_line(capsys, ["report-125k", f"--clock-mhz={clock}"])


@pytest.mark.parametrize("clock", ["1", "10000"])
def test_a_clock_at_its_ends(clock: str) -> None:
    assert main(["report-125k", "--clock-mhz", clock, "--quiet"]) == 0


def test_github(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, out = tmp_path / "summary.md", tmp_path / "report.json"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main(["qti-c40", "--github"]) == 0
    assert capsys.readouterr().out == "::notice title=Budget::1 within every limit\n"
    assert main(["qti-c80", "--github", "--json", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    first, second, wrote = captured.out.splitlines()
    assert first.startswith("::error title=Budget%3A parameters::qti-c80: parameters=314,650; ")
    assert second.startswith("::error title=Budget%3A multiply_accumulates::qti-c80: ")
    assert wrote == f"wrote {str(out)!r}" and captured.err.count("\n") == 2
    assert json.loads(out.read_text())["ok"] is False
    text = summary.read_text()
    assert text.count("### Budgets") == 2 and "`qti-c40`" in text and "**over**" in text


def test_github_outside_of_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    out = tmp_path / "report.json"
    line = fails_with_one_line(capsys, ["qti-c40", "--github", "--out", str(out)])
    assert "GITHUB_STEP_SUMMARY is not set" in line and not out.exists()


def test_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "c.safetensors", preset("report-125k").to_dict())
    assert main([str(path), "--json"]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert (subject["name"], subject["kind"]) == (str(path), "checkpoint")
    plain = subject["conventions"]["plain"]
    assert (plain["parameters"], plain["macs"]) == (125_330, 8_637_000)


def test_the_shipped_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHIPPED)]) == 0
    assert "125,330 of 128,000 parameters" in capsys.readouterr().out


def test_checkpoint_that_claims_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "c.safetensors", preset("qti-c40").to_dict())
    line = fails_with_one_line(capsys, [str(path), "--json"])
    assert "sub_spectral_norm.norm.weight' has 40 elements, the network it claims 160" in line


def test_int8_flatbuffer_of_the_real_converter(
    convert_small_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = convert_small_model("int8")
    assert main([str(path), "--json"]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    weights, biases = 8 * 5 * 5 * 3 + 8 * 3 + 8 * 10, 8 + 8 + 10
    figures = subject["figures"]
    assert figures["parameters"] == weights + biases
    assert figures["multiply_accumulates"] == 8 * 6 * 8 * 75 + 8 * 6 * 8 * 3 + 8 * 10
    assert figures["flatbuffer_bytes"] == path.stat().st_size
    # Two axes of the mean, of four bytes.
    sizes = {"weights": weights, "biases": 4 * biases, "other": 8, "file": path.stat().st_size}
    assert subject["bytes"] == sizes
    # Max-pool 4 x 3 x 8 x 4, MEAN 4 x 3 x 8 inputs.
    nessi = subject["conventions"]["nessi_tflite"]
    assert nessi["macs"] == figures["multiply_accumulates"] + 4 * 3 * 8 * 4 + 4 * 3 * 8
    assert nessi["parameters"] == weights + 4 * biases + 8


def test_float_flatbuffer_breaks_the_int8_rule(
    convert_small_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(convert_small_model("float32")), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "int8=" in line and ": float32" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope"], ["'nope'", *PRESETS]),
        (["cuont", "report-125k"], ["'cuont'", *PRESETS, ".tflite"]),
        ([""], ["unknown subject ''"]),
        (["missing.tflite"], ["missing.tflite"]),
        (["missing.safetensors"], ["missing.safetensors"]),
        (["report-125k", "--limits", "missing.toml"], ["missing.toml"]),
        (["report-125k", "--baseline", "missing.json"], ["baseline 'missing.json'"]),
        (["report-125k", "--format", "pdf"], ["'pdf'", "markdown"]),
        (["report-125k", "--json", "--format", "html"], ["not allowed"]),
        (["report-125k", "--verbose"], ["--verbose"]),
        (["report-125k", "--out", "/dev/null/report"], ["/dev/null/report"]),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    line = fails_with_one_line(capsys, argv)
    for word in words:
        assert word in line


def test_exit_codes_reach_the_shell() -> None:
    for subject, code in (("report-125k", 0), ("qti-c80", 1), ("nope", 2)):
        command = [sys.executable, "-m", "budgets", subject, "--quiet"]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == code
