from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from budgets.__main__ import EXAMPLE, main
from firmware_ref.arch import PRESETS, layers, preset
from firmware_ref.manifest import CHECKPOINT_FORMAT, CHECKPOINT_VERSION

ROOT = Path(__file__).parents[2]


def write_checkpoint(path: Path, network: object) -> Path:
    manifest = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, "network": network}
    manifest |= {"stage": "float", "labels": []}
    # The header of a report-125k checkpoint, as `train` names its tensors.
    names = {"sub_spectral_norm": ".norm.weight"}
    tensors = {
        layer.name + names.get(layer.kind, ".weight"): {"shape": [layer.weights]}
        for layer in layers(preset("report-125k"))
        if layer.weights
    }
    entries = {"__metadata__": {"manifest": json.dumps(manifest)}, **tensors}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


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


def test_one_parameter_too_many_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = tmp_path / "limits.toml"
    for allowed, code in ((125_330, 0), (125_329, 1)):
        text = f"[model]\nparameters = {allowed}\nmultiply_accumulates = 30_000_000\n"
        limits.write_text(text, encoding="utf-8")
        assert main(["report-125k", "--limits", str(limits), "--quiet"]) == code
    assert "parameters=125,330; allowed are 125,329" in capsys.readouterr().err


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
    for word in (*PRESETS, "torchinfo", "nessi_tflite", "exit code"):
        assert word in text


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"]])
def test_json(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main(["qti-c40", *flags]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert (subject["name"], subject["kind"]) == ("qti-c40", "preset")


@pytest.mark.parametrize(
    ("form", "start"), [("markdown", b"### "), ("html", b"<!DOCTYPE html>"), ("table", b"qti-c40")]
)
def test_out_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, start: bytes
) -> None:
    path = tmp_path / "new" / "report"
    assert main(["qti-c40", "--format", form, "--out", str(path)]) == 0
    assert path.read_bytes().startswith(start)
    assert capsys.readouterr().out == f"wrote {str(path)!r}\n"
    assert main(["qti-c40", "--format", form, "--out", str(path), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "c.safetensors", preset("report-125k").to_dict())
    assert main([str(path), "--json"]) == 0
    (subject,) = json.loads(capsys.readouterr().out)["subjects"]
    assert (subject["name"], subject["kind"]) == (str(path), "checkpoint")
    assert (subject["parameters"], subject["macs"]) == (125_330, 8_637_000)


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
    assert subject["parameters"] == weights + biases
    assert subject["macs"] == 8 * 6 * 8 * 75 + 8 * 6 * 8 * 3 + 8 * 10
    size = path.stat().st_size
    assert subject["bytes"] == {"weights": weights, "biases": 4 * biases, "file": size}
    # Max-pool 4 x 3 x 8 x 4, MEAN 4 x 3 x 8 inputs; two axes of four bytes.
    nessi = subject["conventions"]["nessi_tflite"]
    assert nessi["macs"] == subject["macs"] + 4 * 3 * 8 * 4 + 4 * 3 * 8
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


@pytest.mark.parametrize("suffix", [".tflite", ".safetensors"])
def test_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng, suffix: str
) -> None:
    for number in range(20):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(rng.bytes(int(rng.integers(0, 400))))
        fails_with_one_line(capsys, [str(path)])
    (tmp_path / f"folder{suffix}").mkdir()
    fails_with_one_line(capsys, [str(tmp_path / f"folder{suffix}")])


@pytest.mark.parametrize("length", [0, 3, 8, 100, 1_000, 3_000])
def test_truncated_flatbuffer(
    tmp_path: Path,
    convert_small_model: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    length: int,
) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(convert_small_model("int8").read_bytes()[:length])
    fails_with_one_line(capsys, [str(path)])


@pytest.mark.parametrize(
    "change", [{"widths": "wide"}, {"surprise": 1}, {"stem_channels": 10**300}, {"name": None}]
)
def test_checkpoint_of_an_impossible_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object]
) -> None:
    network = preset("report-125k").to_dict() | change
    fails_with_one_line(capsys, [str(write_checkpoint(tmp_path / "c.safetensors", network))])


# Names of the distributions a firmware team's CI has, and what they import.
_ALLOWED = {"numpy", "flatbuffers"}
_PROBE = """
import sys
sys.path.insert(0, {root!r})
before = set(sys.modules)  # the environment's own start-up files may import things
from budgets.__main__ import main
codes = [main(["report-125k", "--out", {out!r}, "--format", form, "--quiet"])
         for form in ("table", "markdown", "json", "html")]
codes.append(main([{checkpoint!r}, "--quiet"]))
outside = {{name.partition(".")[0] for name, module in sys.modules.items()
           if name not in before and "site-packages" in (getattr(module, "__file__", None) or "")}}
print(codes, sorted(outside))
"""


def test_runs_without_torch_or_tensorflow(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", preset("report-125k").to_dict())
    probe = _PROBE.format(root=str(ROOT), out=str(tmp_path / "report"), checkpoint=str(checkpoint))
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    codes, outside = done.stdout.strip().split("] ")
    assert codes == "[0, 0, 0, 0, 0"
    assert set(json.loads(outside.replace("'", '"'))) <= _ALLOWED


def test_starts_and_reports_in_under_a_second() -> None:
    command = [sys.executable, "-m", "budgets", "report-125k"]
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(seconds) < 1.0


def test_exit_codes_reach_the_shell() -> None:
    for subject, code in (("report-125k", 0), ("qti-c80", 1), ("nope", 2)):
        command = [sys.executable, "-m", "budgets", subject, "--quiet"]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == code
