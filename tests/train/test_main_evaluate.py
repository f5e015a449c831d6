"""``python -m train evaluate``: the figures of a run again, and its refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.flatbuffer import write
from firmware_ref.errors import BAD_INPUT, HOLDS
from firmware_ref.graph import METADATA_NAME
from firmware_ref.quantize import quantize_graph
from tests.train.runs import contents, one_line
from train import checkpoint, qat_checkpoint
from train.__main__ import main

MakeEsc10 = Callable[..., Path]


@pytest.mark.parametrize("stage", ["float", "qat"])
def test_evaluation_repeats_the_figures_of_the_run(
    finished: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    model = finished / f"{stage}.safetensors"
    command = ["evaluate", "--model", str(model), "--data", str(tiny_esc10)]
    assert main([*command, "--json", "--out", str(tmp_path)]) == HOLDS
    found = json.loads(capsys.readouterr().out)
    written = json.loads((finished / "metrics.json").read_text())
    assert found["metrics"] == {stage: written["metrics"][stage]}
    for key in ("dataset", "split", "selected_on_reported_split", "warning"):
        assert found[key] == written[key]
    assert found["provenance"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    files = {"metrics.json", "report.md", "report.html", f"confusion-{stage}.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert {"ok": True, **json.loads((tmp_path / "metrics.json").read_text())} == found


FORMATS = {
    "text": "float.safetensors\n",
    "markdown": "# float",
    "html": "<!DOCTYPE html>",
    "json": "{",
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_the_same(
    finished: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    command = ["evaluate", "--model", str(finished / "float.safetensors"), "--quiet"]
    command += ["--data", str(tiny_esc10), "--format", form, "--out", str(tmp_path)]
    assert main(command) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith(FORMATS[form])
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["float"]
    for name in ("clip_log_loss", "window_log_loss"):
        shown = metrics[name] if form == "json" else f"{metrics[name]:.3f}"
        assert str(shown) in captured.out
    file = {"markdown": "report.md", "html": "report.html"}.get(form)
    if file:
        assert captured.out.rstrip() == (tmp_path / file).read_text(encoding="utf-8").rstrip()


def test_evaluation_of_integers_repeats_the_figures_of_the_run(
    finished: Path, tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, device = qat_checkpoint.load(finished / "qat.safetensors")
    metadata = {METADATA_NAME: json.dumps(dict(saved.manifest)).encode()}
    constants = device.float_constants()
    graph = quantize_graph(device.graph, constants, device.quantization, metadata)
    model = tmp_path / "model.tflite"
    model.write_bytes(write(graph))
    command = ["evaluate", "--model", str(model), "--data", str(tiny_esc10), "--json"]
    assert main([*command, "--out", str(tmp_path / "report")]) == HOLDS
    files = {"metrics.json", "report.md", "report.html", "confusion-int8.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == files
    found = json.loads(capsys.readouterr().out)["metrics"]["int8"]
    assert found == json.loads((finished / "metrics.json").read_text())["metrics"]["int8"]
    assert main([*command, "--fold", "2"]) == BAD_INPUT
    assert "kept fold 1 apart in training, not fold 2" in one_line(capsys)


def test_a_fold_that_was_trained_on_is_refused(
    finished: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("float", "qat"):
        model = str(finished / f"{name}.safetensors")
        command = ["evaluate", "--model", model, "--data", str(tiny_esc10)]
        assert main([*command, "--fold", "2"]) == BAD_INPUT
        assert "kept fold 1 apart in training, not fold 2" in one_line(capsys)


def test_a_report_that_cannot_be_written_is_refused_first(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the recordings are looked for."""
    (tmp_path / "file").write_bytes(b"")
    command = ["evaluate", "--model", str(finished / "float.safetensors"), "--data", "absent"]
    assert main([*command, "--out", str(tmp_path / "file" / "report")]) == BAD_INPUT
    assert "report' cannot be written in: " in one_line(capsys)


def test_models_for_other_labels_or_of_no_kind_are_refused(
    finished: Path, make_esc10: MakeEsc10, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_esc10(classes=2, folds=2, clips=1, seconds=(0.5,))
    model = finished / "float.safetensors"
    assert main(["evaluate", "--model", str(model), "--data", str(data)]) == BAD_INPUT
    assert "are not those of ESC-10" in one_line(capsys)
    for name in ("a.safetensors", "a.tflite", "a.txt"):
        path = tmp_path / name
        assert main(["evaluate", "--model", str(path), "--data", str(data)]) == BAD_INPUT
        assert "cannot be read" in one_line(capsys)
        path.write_bytes(b"\x20\0\0\0TFL3" + bytes(50))
        assert main(["evaluate", "--model", str(path), "--data", str(data)]) == BAD_INPUT
        assert name in one_line(capsys)
    assert main(["evaluate", "--data", str(data)]) == BAD_INPUT
    assert "--model" in one_line(capsys)


@pytest.mark.parametrize("key", ["labels", "features", "input_normalization", "dataset"])
def test_a_checkpoint_without_part_of_its_manifest_is_one_line(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    for name in ("float", "qat"):
        path = copied / f"{name}.safetensors"
        saved = checkpoint.load(path)
        manifest = {k: v for k, v in saved.manifest.items() if k != key}
        checkpoint.save(path, saved.tensors, manifest)
        command = ["evaluate", "--model", str(path), "--data", str(tiny_esc10)]
        assert main(command) == BAD_INPUT
        one_line(capsys)


@pytest.mark.parametrize("command", ["evaluate", "spectrum-correction", "summarize"])
def test_the_folder_of_a_run_takes_no_other_result(
    copied: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Before anything is read; all of these would replace files of its own."""
    before = contents(copied)
    own = {
        "evaluate": ["--model", str(copied / "float.safetensors"), "--data", "absent"],
        "spectrum-correction": ["--data", "absent"],
        "summarize": ["absent"],
    }
    assert main([command, *own[command], "--out", str(copied)]) == BAD_INPUT
    wanted = f"--out '{copied}' holds a run, whose files it would replace; name another"
    assert one_line(capsys) == f"error: {wanted}"
    assert contents(copied) == before
