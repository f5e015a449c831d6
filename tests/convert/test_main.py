"""``python -m convert``: exit codes, one line for what is wrong, and nothing half written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import __main__ as command
from convert.__main__ import SHIPPED_CHECKPOINT, main, parser
from firmware_ref.arch import PRESETS, Network
from firmware_ref.graph import Quantization
from tests.convert.members import SMALL, Converted, device_network, identity
from train import checkpoint, qat_checkpoint
from train.ranges import under_rules

OVER_LIMIT = PRESETS["qti-c80"]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run the command on a checkpoint that it must refuse; returns the line on stderr."""

    def run(path: Path, *more: str, code: int = 2) -> str:
        out = tmp_path / "out"
        arguments = ["--target", "tflite-micro", "--checkpoint", str(path), "--out", str(out)]
        assert main([*arguments, "--quiet", *more]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ") and "Traceback" not in line
        assert not out.exists()
        return line

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that would be converted, to be damaged."""
    path = tmp_path_factory.mktemp("good") / "qat.safetensors"
    save(SMALL, path)
    qat_checkpoint.load(path)
    return path


def save(network: Network, path: Path) -> None:
    """A QAT checkpoint with a made-up grid for all activations."""
    device = device_network(network)
    grids = dict.fromkeys(device.activations, Quantization((0.125,), (-3,)))
    device.set_quantization(under_rules(device.graph, grids))
    qat_checkpoint.save(path, device, identity(network))


def test_a_conversion_prints_its_manifest_as_json(converted: Converted) -> None:
    assert converted.code == 0
    printed = json.loads(converted.stdout)
    assert printed.pop("ok") is True
    assert printed == json.loads((converted.folder / "manifest.json").read_text())


def test_a_conversion_says_each_stage(converted: Converted) -> None:
    lines = converted.stderr.splitlines()
    assert all(line.startswith("[") and " s] " in line for line in lines)
    stages = [line.partition("] ")[2] for line in lines]
    assert (stages[0], stages[-1], len(stages)) == ("PyTorch to ONNX", "done", 7)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, small: Converted) -> None:
    """Let onnx2tf be a copy of what it wrote before."""
    from convert.flatbuffer import write

    def convert_float(_: Path, folder: Path) -> Path:
        (folder / "float.tflite").write_bytes(write(small.exported))
        return folder / "float.tflite"

    monkeypatch.setattr("convert.pipeline.convert_float", convert_float)


@pytest.mark.usefixtures("instant")
def test_quiet_prints_the_bundle_alone(
    small: Converted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["--target=tflite-micro", f"--checkpoint={small.checkpoint}", f"--out={out}"]
    assert main([*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].split() == [f"{len(small.model):,}", "bytes", str(out / "model.tflite")]
    assert (out / "model.tflite").read_bytes() == small.model


@pytest.mark.usefixtures("instant")
def test_the_shipped_checkpoint_is_the_default(
    small: Converted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parser().parse_args(["--target", "x"]).checkpoint == str(SHIPPED_CHECKPOINT)
    assert SHIPPED_CHECKPOINT.is_file()
    monkeypatch.setattr(command, "SHIPPED_CHECKPOINT", small.checkpoint)
    assert main(["--target", "tflite-micro", "--quiet", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "model.tflite").read_bytes() == small.model
    assert "manifest.json" in capsys.readouterr().out


def test_an_unknown_target_names_the_known(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(good), "--out", str(tmp_path / "out")]
    assert main(["--target", "esp32", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --target 'esp32' is unknown; known: c99, tflite-micro\n"
    assert captured.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--target"),
        (["--target"], "expected one argument"),
        (["--target", "tflite-micro", "--calibrate"], "--calibrate"),
        (["--target", "tflite-micro", "more"], "more"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line and "--help" in line


def test_the_example_in_the_help_is_parsed() -> None:
    epilog = parser().epilog
    assert epilog is not None
    words = epilog.removeprefix("example: python -m convert ").split()
    assert parser().parse_args(words).target == "c99"


def test_the_exit_code_leaves_the_process(tmp_path: Path) -> None:
    arguments = ["--target", "tflite-micro", "--checkpoint", str(tmp_path / "none.safetensors")]
    done = subprocess.run(
        [sys.executable, "-m", "convert", *arguments, "--quiet", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "none.safetensors" in line and "check the path" in line


def test_a_missing_checkpoint_and_a_folder(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none.safetensors")
    assert "is not a file" in refusal(tmp_path)


def test_an_empty_checkpoint(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    line = refusal(tmp_path / "empty.safetensors")
    assert "is not a tinyscene checkpoint" in line and "python -m train" in line


@pytest.mark.parametrize("kept", [1, 8, 100, 0.3, 0.5, 0.99, -1])
def test_a_truncated_checkpoint(
    refusal: Callable[..., str], good: Path, tmp_path: Path, kept: float
) -> None:
    """Within the length of the header, within the header, and within the tensors."""
    data = good.read_bytes()
    size = int(kept * len(data)) if 0 < kept < 1 else int(kept)
    (tmp_path / "cut.safetensors").write_bytes(data[:size])
    assert "cut.safetensors" in refusal(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("size", [7, 64, 100_000])
def test_random_bytes(
    refusal: Callable[..., str], tmp_path: Path, rng: np.random.Generator, size: int
) -> None:
    (tmp_path / "noise").write_bytes(rng.bytes(size))
    assert "is not a tinyscene checkpoint" in refusal(tmp_path / "noise")


def test_damaged_headers(
    good: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One byte of the header at a time: refused in one line, or read, but never a traceback."""

    class ReadError(Exception):
        pass

    def stop(*_: object) -> None:
        raise ReadError

    monkeypatch.setattr("convert.pipeline.export_onnx", stop)
    data, path = good.read_bytes(), tmp_path / "damaged.safetensors"
    end = 8 + int.from_bytes(data[:8], "little")
    arguments = ["--target", "tflite-micro", "--checkpoint", str(path), "--quiet"]
    refused = 0
    for place in rng.integers(0, end, 150):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        except ReadError:
            continue
        assert len(capsys.readouterr().err.splitlines()) == 1
        refused += 1
    assert refused > 50 and not (tmp_path / "out").exists()


def test_a_float_checkpoint_is_refused(
    refusal: Callable[..., str], good: Path, tmp_path: Path
) -> None:
    path = tmp_path / "float.safetensors"
    _, device = qat_checkpoint.load(good)
    checkpoint.save(path, device.float_constants(), {**identity(SMALL), "stage": "float"})
    line = refusal(path)
    assert "stage 'float'" in line and "'qat'" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["one"]}, "labels="),
        ({"features": {"mel_bands": 40}}, "feature definition"),
        ({"input_normalization": {"mean": [0.0]}}, "malformed"),
        ({"input_normalization": {"mean": [0.0] * 3, "std": [1.0, 1.0, 0.0]}}, "std="),
    ],
)
def test_a_checkpoint_that_says_too_little(
    refusal: Callable[..., str], good: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    _, device = qat_checkpoint.load(good)
    qat_checkpoint.save(tmp_path / "qat.safetensors", device, {**identity(SMALL), **changes})
    assert words in refusal(tmp_path / "qat.safetensors")


def test_a_folder_that_cannot_be_written_is_refused_first(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    """Before a stage is said to begin; root may write to /proc, but make nothing there."""
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file" / "bundle", Path("/proc/bundle")):
        assert main(["--target", "tflite-micro", "--checkpoint", str(good), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --out '{out}' cannot be written in: ")


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"stage2.res_norm": 2.0**20, "classifier": 2.0**-30}, "CONV_2D 'classifier': scales give"),
        ({"stage1.block2.mean": 2.0**-39}, "SUB 'stage1.block2.mean': scales give a"),
    ],
)
def test_scales_that_no_kernel_can_run_are_refused_before_anything_is_written(
    refusal: Callable[..., str],
    small: Converted,
    tmp_path: Path,
    scales: dict[str, float],
    words: str,
) -> None:
    """The checkpoint can be read, and its network exported: the multipliers are out of reach."""
    _, device = qat_checkpoint.load(small.checkpoint)
    absurd = {name: Quantization((scale,), (0,)) for name, scale in scales.items()}
    grids = {**device.quantization, **absurd}
    device.set_quantization(under_rules(device.graph, grids))
    qat_checkpoint.save(tmp_path / "absurd.safetensors", device, identity(SMALL))
    assert words in refusal(tmp_path / "absurd.safetensors")


def test_a_network_over_the_limits_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    """Before any time is spent on converting it."""
    save(OVER_LIMIT, tmp_path / "large.safetensors")
    line = refusal(tmp_path / "large.safetensors", code=1)
    assert "parameters=314,650; allowed are 128,000" in line
    assert "multiply_accumulates" in line


def test_limits_of_ones_own(refusal: Callable[..., str], good: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[model]\nparameters = 100\nmultiply_accumulates = 30_000_000\n")
    assert "allowed are 100; save" in refusal(good, "--limits", str(limits), code=1)
    limits.write_text("[model]\nparameter = 100\n")
    assert "parameter" in refusal(good, "--limits", str(limits))
    limits.write_text("[model]\n")
    assert "nothing is limited" in refusal(good, "--limits", str(limits))
