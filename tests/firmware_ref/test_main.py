"""The command line: exit codes, JSON, one line for every bad file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from firmware_ref import __main__ as command
from firmware_ref.graph import Graph, parse
from firmware_ref.oracle import ORACLES
from tests.firmware_ref.build import Model


def run(arguments: Sequence[object]) -> int:
    return command.main([str(argument) for argument in arguments])


@pytest.fixture
def model(model_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(model_bytes)
    return path


@pytest.fixture
def sound(tmp_path: Path, rng: np.random.Generator) -> Path:
    """2.6 s of noise: three windows."""
    path = tmp_path / "noise.wav"
    soundfile.write(path, rng.normal(0, 0.1, 114_660), 44_100)
    return path


def test_verify_holds(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", model, "--random", "3"]) == 0
    printed = capsys.readouterr()
    header, *rows = printed.out.splitlines()
    assert header.split() == [
        "oracle",
        "version",
        "kernels",
        "inputs",
        "tensors",
        "values",
        "mismatches",
    ]
    assert [row.split()[:2] for row in rows] == [[o.name, o.version] for o in ORACLES.values()]
    assert all(row.split()[-1] == "0" for row in rows)
    assert "3/3 inputs" in printed.err


def test_verify_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "in.npz", inputs=np.zeros((2, 128, 44, 3), np.int8))
    arguments = ["verify", model, "--oracle", "tflite-micro", "--inputs", tmp_path / "in.npz"]
    assert run([*arguments, "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    report = json.loads(printed.out)
    assert (report["ok"], report["inputs"]) == (True, 2)
    (oracle,) = report["oracles"]
    assert set(oracle) == {"name", "version", "kernels", "tensors", "values", "mismatches"}
    assert (oracle["name"], oracle["mismatches"]) == ("tflite-micro", 0)


@pytest.fixture
def misread(monkeypatch: pytest.MonkeyPatch) -> None:
    """firmware_ref reads one bias wrong: the first of the stem."""

    def parse_wrong(data: bytes, name: str) -> Graph:
        graph = parse(data, name)
        tensors = []
        for tensor in graph.tensors:
            if tensor.name == "stem.conv/bias" and tensor.data is not None:
                changed = tensor.data.copy()
                changed[0] += 300
                tensor = replace(tensor, data=changed)
            tensors.append(tensor)
        return replace(graph, tensors=tuple(tensors))

    monkeypatch.setattr("firmware_ref.graph.parse", parse_wrong)


@pytest.mark.usefixtures("misread")
def test_verify_fails_and_says_where(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", model, "--random", "1", "--quiet"]) == 1
    *_, first, second = capsys.readouterr().out.splitlines()
    for line, name in ((first, "tflite-runtime"), (second, "tflite-micro")):
        assert line.startswith(f"MISMATCH with {name}: layer 'stem.conv' (CONV_2D) at index [0, ")
        assert "expected" in line and "actual" in line and "(firmware_ref)" in line
        assert "values of this layer differ, by at most" in line


@pytest.mark.usefixtures("misread")
def test_verify_json_fails_and_says_where(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", model, "--random", "1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    first = report["oracles"][0]["first_mismatch"]
    assert (first["layer"], first["op"], first["index"][-1]) == ("stem.conv", "CONV_2D", 0)
    assert first["expected"] != first["actual"] and first["count"] > 0


def test_run_json(model: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", model, sound, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    probabilities = result["probabilities"]
    assert list(probabilities) == ["dog", "rain", "rooster"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert result["label"] == max(probabilities, key=probabilities.__getitem__)
    assert [window["start_seconds"] for window in result["windows"]] == [0.0, 1.0, 2.0]
    assert {window["label"] for window in result["windows"]} <= set(probabilities)


def test_run_text(model: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", model, sound, "--quiet"]) == 0
    printed = capsys.readouterr()
    title, *bars = printed.out.splitlines()
    assert title.endswith("(3 windows of 1 s)")
    assert len(bars) == 3 and all("%" in bar for bar in bars)
    assert bars[0].split()[0] == title.split()[0]
    assert printed.err == ""


def test_one_of_a_thing_is_said_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "short.wav"
    soundfile.write(sound, np.zeros(30_000), 44_100)
    assert run(["run", model, sound]) == 0
    printed = capsys.readouterr()
    assert "(1 window of 1 s)" in printed.out and "1/1 input\n" in printed.err
    assert run(["inputs", model, sound, "--out", tmp_path / "in.npz"]) == 0
    assert capsys.readouterr().out.startswith("1 window of 1 sound: ")
    assert run(["inputs", model, sound, sound, "--out", tmp_path / "in.npz"]) == 0
    assert capsys.readouterr().out.startswith("2 windows of 2 sounds: ")


def test_run_on_a_recording(
    model: Path, audio_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next((audio_data / "esc10").rglob("*.ogg"))
    assert run(["run", model, clip, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["windows"]) >= 3


def test_run_without_metadata(model: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_bytes(model.read_bytes().replace(b"tinyscene", b"otherwise"))
    assert run(["run", model, sound]) == 2
    assert "no metadata 'tinyscene'" in capsys.readouterr().err


def damaged(data: bytes) -> list[bytes]:
    """Empty, random, cut short, and with bytes turned over."""
    rng = np.random.default_rng(2)
    cases = [b"", rng.bytes(1000), data[:4] + b"TFL3" + rng.bytes(5000)]
    cases += [data[: len(data) * part // 10] for part in range(1, 10)]
    for _ in range(10):
        changed = bytearray(data)
        for position in rng.integers(0, len(data) // 8, 40):
            changed[position] ^= int(rng.integers(1, 256))
        cases.append(bytes(changed))
    return cases


def test_a_damaged_model_is_one_line_and_exit_2(
    model: Path, sound: Path, model_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in damaged(model_bytes):
        model.write_bytes(data)
        for arguments in (["verify", model, "--random", "1"], ["run", model, sound]):
            assert run(arguments) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "absent.tflite"],
        ["verify", "."],
        ["verify", "MODEL", "--inputs", "absent.npz"],
        ["verify", "MODEL", "--seed", "-1"],
        ["run", "MODEL", "absent.wav"],
        ["run", "MODEL", "MODEL"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    model: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([model if argument == "MODEL" else argument for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["verify"],
        ["verify", "m", "--random", "0"],
        ["verify", "m", "--random", "-1"],
        ["verify", "m", "--random", "1e9"],
        ["verify", "m", "--random", "1", "--inputs", "x"],
        ["verify", "m", "--oracle", "onnxruntime"],
        ["run", "m"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_a_mistyped_command_is_told_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verfy", "model.tflite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in ("'verfy'", "'verify'", "'run'", "'inputs'", "'signals'", "'bench'", "--help"):
        assert word in line


@pytest.mark.parametrize("kind", ["TANH", "CUSTOM:Mystery", "STABLEHLO_CASE"])
def test_an_unknown_operator_is_named_before_anything_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something ran")

    for name in ("verify.session", "run.Interpreter.run", "run.Interpreter.run_all"):
        monkeypatch.setattr(f"firmware_ref.{name}", never)
    model = Model()
    x, y, z = (model.tensor(name, (1, 4), 0.5, 0) for name in ("x", "first", "layer"))
    model.add("QUANTIZE", [x], [y])
    model.add(kind, [y], [z])
    path = tmp_path / "model.tflite"
    path.write_bytes(model.pack([x], [z]))
    assert run(["verify", path]) == 2
    printed = capsys.readouterr()
    known = "BUILTIN_209" if kind == "STABLEHLO_CASE" else kind
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: operator {known} of 'layer' cannot be run; allowed: ADD")


def test_the_exit_code_leaves_the_process(tmp_path: Path) -> None:
    path = tmp_path / "empty.tflite"
    path.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "firmware_ref", "verify", str(path)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
