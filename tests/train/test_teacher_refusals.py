"""Teachers that are refused: those that heard the test, and those that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS, InputError
from tests.train.runs import EVERYTHING, arguments, named, one_line, with_teacher
from tests.train.stages import bench
from train import checkpoint
from train.__main__ import main
from train.config_file import load_config


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        (
            ("--fold", "2", "--set", "data.validation_fraction=0"),
            "dataset",
            "'test_fold': 2",
        ),
        (("--set", "data.selection=test"), "dataset", "'selected_on_test': True"),
        (("--set", "data.validation_fraction=0.1"), "validation_fraction", "0.1; needed is 0.25"),
        (("--set", "data.dataset=esc10", "cross_gradient.epsilon=0"), "dataset", "'ESC-10'"),
    ],
)
def test_a_checkpoint_that_heard_what_is_tested_is_refused(
    tiny_devices: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    key: str,
    said: str,
) -> None:
    off = ("augment.spectrum_correction_probability=0", "qat.epochs=0", "float.epochs=1")
    teacher = tmp_path / "teacher"
    command = arguments(tiny_devices, teacher, "--quiet", *more, settings=(*EVERYTHING, *off))
    assert main(command) == HOLDS
    capsys.readouterr()
    settings = with_teacher(named("checkpoint", teacher / "float.safetensors"))
    out = tmp_path / "out"
    assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == BAD_INPUT
    line = one_line(capsys)
    assert f"was trained with another {key}" in line and said in line
    assert "so that it has heard no recording to test or validate on" in line
    assert not (out / "epochs.jsonl").exists()


def test_a_quantised_checkpoint_is_no_teacher(
    tiny_devices: Path, tmp_path: Path, finished: Path
) -> None:
    file = finished / "qat.safetensors"
    with pytest.raises(InputError, match="is of stage 'qat'; needed is 'float'"):
        bench(tiny_devices, tmp_path, with_teacher(named("checkpoint", file))).teachers()


def test_a_checkpoint_larger_than_its_file_is_refused_before_it_is_built(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = bench(tiny_devices, tmp_path, EVERYTHING)
    trained.float()
    saved, path = checkpoint.load(tmp_path / "float.safetensors"), tmp_path / "large.safetensors"
    network = {**saved.manifest["network"], "widths": [1000, 1000]}
    checkpoint.save(path, saved.tensors, {**saved.manifest, "network": network})
    student = bench(tiny_devices, tmp_path / "out", with_teacher(named("checkpoint", path)))
    monkeypatch.setattr("train.teacher_stage.build_model", None)
    said = rf"'{path}' claims [\d,]+ parameters and holds [\d,]+ numbers; restore the file"
    with pytest.raises(InputError, match=said):
        student.teachers()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (named("network", "nonet"), "unknown preset 'nonet'; known: report-125k"),
        (named("table", "absent.npz"), "table source='absent.npz' is not a file; give the path"),
        (named("checkpoint", "absent"), "checkpoint source='absent' is not a file"),
        (named("onnx", "/"), "onnx source='/' is not a file"),
        (named("module", "no.such:build"), "teacher 'no.such:build' failed: ModuleNotFoundError"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_before_features(
    tiny_devices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: str,
    message: str,
) -> None:
    monkeypatch.setattr("train.data.extract", None)
    command = arguments(tiny_devices, tmp_path / "out", "--quiet", settings=with_teacher(table))
    assert main(command) == BAD_INPUT
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_only_a_module_takes_weights() -> None:
    table = named("checkpoint", "a.safetensors", "b")
    with pytest.raises(InputError, match="weights='b' of a checkpoint; only a module takes"):
        load_config("esc10-devices", with_teacher(table))


def test_what_is_read_is_refused_before_a_teacher_is_trained(
    tiny_devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.npz"
    np.savez(file, filenames=np.array(["a"]), logits=np.zeros((1, 3), np.float32))
    settings = with_teacher(named("network", "qti-c40"), named("table", file))
    assert (
        main(arguments(tiny_devices, tmp_path / "out", "--quiet", settings=settings)) == BAD_INPUT
    )
    assert "lacks 6 of 6 recordings" in one_line(capsys)
    assert not list((tmp_path / "out").glob("teacher-*"))


def test_a_table_of_other_recordings_is_refused(
    tiny_devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.npz"
    np.savez(file, filenames=np.array(["a"]), logits=np.zeros((1, 3), np.float32))
    settings = with_teacher(named("table", file))
    assert (
        main(arguments(tiny_devices, tmp_path / "out", "--quiet", settings=settings)) == BAD_INPUT
    )
    assert "lacks 6 of 6 recordings" in one_line(capsys)
