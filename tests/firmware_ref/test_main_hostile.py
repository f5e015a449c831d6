"""The command line on models made to do harm: one line each, and no word of theirs obeyed."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from firmware_ref import __main__ as command
from firmware_ref import verify as verification
from firmware_ref.errors import InputError
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import Graph, parse
from firmware_ref.oracle import ORACLES, Session
from tests.firmware_ref.build import Model
from tests.firmware_ref.conftest import METADATA

INJECTED = ["::error::a", "##[error]b", "rooster"]


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def mean_model(dtype: str = "int8", labels: Sequence[str] = ("dog", "rain", "rooster")) -> bytes:
    """A mean over the map of each channel, with metadata: three classes."""
    scale = 0.05 if dtype == "int8" else None
    model = Model()
    x = model.tensor("x", (1, 128, 44, 3), scale, dtype=dtype)
    y = model.tensor(INJECTED[1], (1, 3), scale, dtype=dtype)
    model.add("MEAN", [x, model.integers("axes", [1, 2])], [y], keepDims=False)
    model.attach("tinyscene", json.dumps({**METADATA, "labels": list(labels)}).encode())
    return model.pack([x], [y])


@pytest.fixture
def sound(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "noise.wav"
    soundfile.write(path, rng.normal(0, 0.1, 44_100), 44_100)
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command on a model and returns its one line of refusal."""

    def check(data: bytes, name: str, *arguments: object) -> str:
        path = tmp_path / "model.tflite"
        path.write_bytes(data)
        assert run(name, path, *arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return check


def test_a_float_model_with_metadata_is_refused(refused: Callable[..., str], sound: Path) -> None:
    data = mean_model("float32")
    assert "dtype=float32; only full INT8" in refused(data, "run", sound)
    assert "dtype=float32; only full INT8" in refused(data, "verify")
    with pytest.raises(InputError, match="dtype=float32 and is not quantised"):
        FixedFrontend.of_graph(parse(data))


def no_bias() -> bytes:
    """A convolution that runs here and in TFLM, and that tflite-runtime refuses."""
    model = Model()
    x = model.tensor("x", (1, 4, 4, 1), 0.5, 0)
    w = model.tensor("w", (1, 1, 1, 1), 0.5, 0, np.ones((1, 1, 1, 1)))
    y = model.tensor("y", (1, 4, 4, 1), 0.5, 0)
    model.add("CONV_2D", [x, w], [y], strideH=1, strideW=1)
    return model.pack([x], [y])


@pytest.mark.parametrize("name", ["bench", "verify"])
def test_a_model_that_the_runtime_refuses_is_one_line(
    refused: Callable[..., str], name: str
) -> None:
    assert "oracle tflite-runtime 2.14.0 refuses this" in refused(no_bias(), name)


def test_bench_takes_the_pinned_version_only(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(ORACLES["tflite-runtime"], version="2.13.0")
    monkeypatch.setitem(ORACLES, "tflite-runtime", other)
    assert "bit-exactness is defined by 2.13.0" in refused(mean_model(), "bench")


def test_a_model_without_operators_is_refused(refused: Callable[..., str]) -> None:
    model = Model()
    x = model.tensor("x", (1, 4), 0.5, 0)
    assert "graph has no operators" in refused(model.pack([x], [x]), "verify")


def test_the_model_is_checked_before_inputs_are_made(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    x, y = (model.tensor(name, (1, 2**28), 0.5, 0) for name in "xy")
    model.add("QUANTIZE", [x], [y])
    monkeypatch.setattr(np.random, "default_rng", None)
    said = refused(model.pack([x], [y]), "verify", "--random", "100000")
    assert "read and write 536,870,912 elements" in said


def test_the_bytes_of_random_inputs_are_bounded() -> None:
    graph = parse(mean_model())
    most = verification.MAX_RANDOM_BYTES // (128 * 44 * 3)
    with pytest.raises(InputError, match=f"{most + 1:,} random inputs .* ask for fewer"):
        verification.random_inputs(graph, most + 1, 0)


def test_labels_are_no_commands_to_a_runner(
    tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GitHub Actions obeys ``::`` at the start of a line and ``##[`` anywhere."""
    path = tmp_path / "model.tflite"
    path.write_bytes(mean_model(labels=INJECTED))
    assert run("run", path, sound, "--quiet") == 0
    text = capsys.readouterr().out
    assert run("run", path, sound, "--quiet", "--json") == 0
    printed = capsys.readouterr().out
    for out in (text, printed):
        assert "##[" not in out
        assert not any(line.lstrip().startswith("::") for line in out.splitlines())
        assert "rooster" in out and "error]b" in out
    assert list(json.loads(printed)["probabilities"]) == INJECTED


def test_a_layer_is_no_command_to_a_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parse_wrong(data: bytes, name: str) -> Graph:
        graph = parse(data, name)
        x, *others = graph.tensors
        assert x.quantization
        return replace(
            graph,
            tensors=(replace(x, quantization=replace(x.quantization, zero_point=(9,))), *others),
        )

    path = tmp_path / "model.tflite"
    path.write_bytes(mean_model())
    monkeypatch.setattr("firmware_ref.graph.parse", parse_wrong)
    assert run("verify", path, "--random", "1", "--quiet") == 1
    assert "layer '\\x23#[error]b' (MEAN)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tflite-runtime", "tflite-micro"])
@pytest.mark.parametrize("when", ["opening", "running"])
def test_an_oracle_that_dies_is_one_line(
    name: str, when: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in a process of its own, as C++ does: by a signal, with words on stderr."""

    def die(*_: object) -> Session:
        os.write(2, b"Check failed: 1 == 2\nand more\n")
        os.abort()

    def opened(*_: object) -> Session:
        return die

    doomed = replace(ORACLES[name], open=die if when == "opening" else opened)
    monkeypatch.setitem(ORACLES, name, doomed)
    said = refused(mean_model(), "verify", "--random", "1", "--quiet")
    assert f"oracle {name} {doomed.version} died on this model (exit code -6)" in said


def test_an_oracle_that_refuses_in_its_process_is_said(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Session:
        raise RuntimeError("Node 3 failed\nto run")

    for opened in (fail, lambda *_: fail):
        monkeypatch.setitem(ORACLES, "tflite-micro", replace(ORACLES["tflite-micro"], open=opened))
        said = refused(mean_model(), "verify", "--random", "1", "--quiet")
        assert "oracle tflite-micro" in said and "refuses this: Node 3 failed to run" in said


def test_the_processes_of_the_oracles_end(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(mean_model())
    assert run("verify", tmp_path / "model.tflite", "--random", "1", "--quiet") == 0
    gc.collect()
    for child in multiprocessing.active_children():
        child.join(10)
        assert child.exitcode == 0


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(command, "Classifier", never)
    monkeypatch.setattr(command, "signal_clips", never)
    (tmp_path / "model.tflite").write_bytes(mean_model())
    (tmp_path / "file").write_bytes(b"")
    for arguments in (
        ("inputs", tmp_path / "model.tflite", sound, "--out", tmp_path / "file" / "in.npz"),
        ("signals", "--out", tmp_path / "file"),
        ("signals", "--out", ""),
    ):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --out ")
