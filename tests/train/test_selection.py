"""What chooses the epochs: never the test split, or marked wherever the figures go."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from convert.__main__ import main as convert
from firmware_ref import graph
from firmware_ref.errors import HOLDS
from firmware_ref.manifest import model_metadata
from tests.train.runs import EVERYTHING, MODELS, arguments, named, with_teachers
from train import checkpoint
from train.__main__ import main
from train.config_file import load_config
from train.report import MARK, WARNING
from train.run import _selection

# What is decided by training alone.
LEARNED = (
    *("float.safetensors", "qat.safetensors", "teacher-1.npz", "teacher-2.npz"),
    "spectrum-correction.npz",
)
CHOOSING = ("float.keep=best", "qat.epochs=12", "qat.float_teacher_weight=0")


@pytest.fixture
def poison(tiny_devices: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A copy of the recordings in which all of a fold have other labels and other sounds."""

    def make(fold: int) -> Path:
        root = Path(shutil.copytree(tiny_devices, tmp_path / f"poisoned{fold}"))
        index = root / "esc10" / "meta.csv"
        with index.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        names = {int(row["label_id"]): row["label"] for row in rows}
        rng = np.random.default_rng(5)
        for row in rows:
            if int(row["fold"]) == fold:
                number = (int(row["label_id"]) + 1) % len(names)
                row.update(label=names[number], label_id=str(number))
                path = root / "esc10" / row["filename"]
                noise = rng.uniform(-0.3, 0.3, soundfile.info(path).frames)
                soundfile.write(path, noise, 44_100, subtype="PCM_16")
        with index.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return root

    return make


def learned(data: Path, out: Path, settings: tuple[str, ...]) -> dict[str, bytes]:
    assert main(arguments(data, out, "--quiet", settings=settings)) == HOLDS
    return {name: (out / name).read_bytes() for name in LEARNED}


def test_validation_never_touches_the_test_split(
    tiny_devices: Path, tmp_path: Path, poison: Callable[[int], Path]
) -> None:
    """Neither its labels nor its sounds change a byte of what is learned; those of training do."""
    settings = (*with_teachers(tiny_devices), *CHOOSING)
    clean = learned(tiny_devices, tmp_path / "clean", settings)
    assert learned(poison(1), tmp_path / "test", settings) == clean
    figures = [(tmp_path / name / "metrics.json").read_bytes() for name in ("clean", "test")]
    assert figures[0] != figures[1]
    other = learned(poison(2), tmp_path / "train", settings)
    assert [name for name in LEARNED if other[name] == clean[name]] == ["teacher-2.npz"]


def test_selection_on_the_test_split_does_touch_it(
    tiny_devices: Path, tmp_path: Path, poison: Callable[[int], Path]
) -> None:
    settings, found = (*EVERYTHING, *CHOOSING, "data.selection=test"), []
    for data in (tiny_devices, poison(1)):
        out = tmp_path / str(len(found))
        assert main(arguments(data, out, "--quiet", settings=settings)) == HOLDS
        found.append((out / "qat.safetensors").read_bytes())
    assert found[0] != found[1]


@pytest.fixture(scope="module")
def on_test(tiny_devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run selected on the split that it reports; its bundle beside it."""
    out = tmp_path_factory.mktemp("runs") / "on-test"
    settings = (*EVERYTHING, "data.selection=test", "model.name=custom")
    assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == HOLDS
    return out


def test_what_was_selected_on_the_test_split_is_marked_everywhere(
    tiny_devices: Path, on_test: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((on_test / "metrics.json").read_text())
    assert values["selected_on_reported_split"] is True and values["warning"] == WARNING
    assert values["selection"] == "the best epoch on the reported split itself (qat)"
    page = re.sub(r"\s+", " ", (on_test / "report.html").read_text())
    markdown = (on_test / "report.md").read_text().replace("\\", "")
    assert WARNING in page and WARNING in markdown
    for name in ("float", "qat"):
        saved = checkpoint.load(on_test / f"{name}.safetensors")
        assert saved.manifest["dataset"]["selected_on_test"] is True
        assert saved.metadata.selected_on_test
    settings = (*EVERYTHING, "data.selection=test", "model.name=custom")
    command = arguments(tiny_devices, on_test, "--resume", settings=settings)
    assert main(command) == HOLDS
    printed = capsys.readouterr().out
    assert f"{MARK} {WARNING}" in printed
    assert all(f"{model}{MARK}" in printed for model in MODELS)


def test_the_mark_travels_into_the_device_model(
    tiny_devices: Path, on_test: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(on_test / "qat.safetensors")
    command = ["--target", "tflite-micro", "--checkpoint", file, "--out", str(tmp_path), "--quiet"]
    assert convert(command) == HOLDS
    model = tmp_path / "model.tflite"
    assert model_metadata(graph.read(model)).selected_on_test
    capsys.readouterr()
    for path in (model, on_test / "qat.safetensors", on_test / "float.safetensors"):
        evaluate = ["evaluate", "--model", str(path), "--data", str(tiny_devices)]
        evaluate += ["--dataset", "esc10-devices"]
        assert main(evaluate) == HOLDS
        printed = capsys.readouterr().out
        assert f"{MARK} {WARNING}" in printed and "selection: the reported split itself" in printed
        assert main([*evaluate, "--json"]) == HOLDS
        values = json.loads(capsys.readouterr().out)
        assert values["selected_on_reported_split"] is True and values["warning"] == WARNING


def test_nothing_is_marked_without_reason(finished: Path) -> None:
    for name in ("metrics.json", "report.md", "report.html"):
        assert "WARNING" not in (finished / name).read_text()
    assert not checkpoint.load(finished / "qat.safetensors").metadata.selected_on_test


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((), "the qat epoch of least loss in device arithmetic on 1,200 of 4,000 training clips"),
        (("qat.keep=last",), "none: the last epoch"),
        (("qat.epochs=0",), "none: the last epoch"),
        (
            ("float.keep=best",),
            "the float epoch of highest accuracy and the qat epoch of least loss in device "
            "arithmetic on 1,200 of 4,000 training clips",
        ),
        (("data.selection=test",), "the best epoch on the reported split itself (qat)"),
        (
            ("data.selection=test", "float.keep=best"),
            "the best epoch on the reported split itself (float, qat)",
        ),
        (
            (f"distillation.teachers=[{named('network', 'qti-c40')}]", "qat.keep=last"),
            "the teacher epoch of highest accuracy on 1,200 of 4,000 training clips",
        ),
    ],
)
def test_what_chose_the_epochs_is_said(changes: tuple[str, ...], words: str) -> None:
    assert _selection(load_config("esc10", (*EVERYTHING, *changes)), 2800, 1200) == words


def test_nothing_held_out_chose_nothing() -> None:
    config = load_config("esc10", EVERYTHING)
    assert _selection(config, 4000, 0) == "none: the last epoch"
