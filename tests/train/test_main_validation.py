"""A run that holds clips out, chooses its QAT epoch by them, and says how true it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS
from firmware_ref.features import FeatureDefinition
from firmware_ref.frontend import softmax
from tests.train.runs import SETTINGS, arguments, lasting, one_line
from train import checkpoint, qat_checkpoint
from train.__main__ import main
from train.config_file import load_config
from train.data import (
    InputNormalization,
    Source,
    Windows,
    gather,
    over_log_mels,
    over_windows,
)
from train.dataset import hold_out
from train.datasets import load_dataset
from train.device import DeviceListener
from train.evaluate import measure, module_probabilities
from train.extract import Cut
from train.model import build_model
from train.run import Console, run
from train.state import load_module

HELD_OUT = (*SETTINGS, "data.validation_fraction=0.25", "qat.epochs=3", "qat.learning_rate=1e-2")


@pytest.fixture(scope="module")
def recordings(make_esc10: Callable[..., Path]) -> Path:
    """Three classes, two folds, six clips a class and fold."""
    return make_esc10(clips=6)


@pytest.fixture(scope="module")
def validated(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a quarter held out; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "validated"
    assert main(arguments(recordings, out, "--quiet", settings=HELD_OUT)) == HOLDS
    return out


def epochs(folder: Path, stage: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def held_out(recordings: Path, cache: Path) -> Windows:
    """Every window of the deployed cut of the clips held out."""
    dataset = load_dataset("esc10", recordings)
    learn, held = hold_out(dataset.split(1)[0], 0.25)
    assert (len(learn), len(held)) == (12, 6)
    extracted = Source(FeatureDefinition(), cache).extract(held, Cut())
    return gather(held, dataset.devices, [extracted], active_only=False)


# The epoch


def test_epochs_are_logged_with_what_was_held_out(validated: Path, finished: Path) -> None:
    for stage, count in (("float", 2), ("qat", 3)):
        lines = epochs(validated, stage)
        assert len(lines) == count
        for line in lines:
            assert 0 <= line["validation_accuracy"] <= 1 and line["validation_log_loss"] > 0
        for line in epochs(finished, stage):
            assert line["validation_accuracy"] is None and line["validation_log_loss"] is None
            assert line["validation_loss"] is None


def test_the_checkpoint_is_the_best_epoch_on_the_clips_held_out(
    validated: Path, recordings: Path, tmp_path: Path
) -> None:
    """Measured again from the file, in device arithmetic, on every window of those clips."""
    saved, device = qat_checkpoint.load(validated / "qat.safetensors")
    data = held_out(recordings, tmp_path)
    normalization = InputNormalization(saved.metadata.mean, saved.metadata.std)
    logits = over_log_mels(data, DeviceListener(device, normalization).logits)
    found = measure(softmax(logits), data.labels, data.clips)
    lines = epochs(validated, "qat")
    assert len({line["validation_loss"] for line in lines}) > 1, "the epochs can be told apart"
    best = min(lines, key=lambda line: line["validation_loss"])
    reported = best["validation_accuracy"], best["validation_log_loss"]
    assert (found.window_accuracy, found.window_log_loss) == reported


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_float_epoch_is_the_one_that_is_asked_for(
    recordings: Path, tmp_path: Path, keep: str
) -> None:
    """Measured again from the file; the best is not the last here, which shows them apart."""
    out = tmp_path / "out"
    changes = ("float.epochs=6", "float.learning_rate=0.5", f"float.keep={keep}", "qat.epochs=0")
    settings = (*HELD_OUT, *changes, "augment.silence_probability=0")
    assert main(arguments(recordings, out, "--quiet", settings=settings)) == HOLDS
    saved = checkpoint.load(out / "float.safetensors")
    model = build_model(saved.network)
    load_module(model, saved.tensors, "this")
    data = held_out(recordings, tmp_path / "cache")
    normalization = InputNormalization(saved.metadata.mean, saved.metadata.std)
    probabilities = over_windows(data, normalization, lambda x: module_probabilities(model, x))
    found = measure(probabilities, data.labels, data.clips)
    lines = epochs(out, "float")
    chosen = lines[-1] if keep == "last" else min(lines, key=lambda e: e["validation_loss"])
    assert (chosen is lines[-1]) == (keep == "last")
    assert found.window_accuracy == chosen["validation_accuracy"]
    # In float32, which rounds by the layout of weights in memory.
    near = [
        line for line in lines if abs(line["validation_log_loss"] - found.window_log_loss) < 1e-6
    ]
    assert near == [chosen], "and no other epoch"


def test_an_interrupted_run_chooses_alike(
    validated: Path,
    recordings: Path,
    tmp_path: Path,
    interrupted: Callable[..., None],
) -> None:
    for after in (3, 4, 5):  # two float epochs, then those of QAT
        out = tmp_path / str(after)
        interrupted(arguments(recordings, out, "--quiet", settings=HELD_OUT), after)
        assert (out / "qat-state.safetensors").exists()
        command = arguments(recordings, out, "--quiet", "--resume", settings=HELD_OUT)
        assert main(command) == HOLDS
        assert lasting(out) == lasting(validated)


def test_too_few_clips_are_one_line_before_features(
    make_esc10: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("train.data.extract", None)
    data = make_esc10(classes=3, folds=2, clips=1, seconds=(0.5,))
    out = tmp_path / "out"
    assert main(arguments(data, out, "--quiet", settings=HELD_OUT)) == BAD_INPUT
    assert "data.validation_fraction=0.25 leaves class 0 nothing" in one_line(capsys)
    assert not out.exists()


def test_the_float_network_teaches_by_its_weight(
    finished: Path, tiny_esc10: Path, tmp_path: Path
) -> None:
    """The same float network; other QAT weights than with the shipped weight of 1."""
    for weight in ("0", "0.5"):
        out = tmp_path / weight
        settings = (*SETTINGS, f"qat.float_teacher_weight={weight}")
        assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == HOLDS
    found = [
        [checkpoint.load(folder / f"{name}.safetensors").tensors for name in ("float", "qat")]
        for folder in (finished, tmp_path / "0", tmp_path / "0.5")
    ]
    names = [{t.tobytes() for t in tensors.values()} for tensors, _ in found]
    assert names[0] == names[1] == names[2]
    weights = [tensors["classifier/weight"].tobytes() for _, tensors in found]
    assert len(set(weights)) == 3


def test_ranges_learn_at_the_rate_of_the_configuration(
    finished: Path, tiny_esc10: Path, tmp_path: Path
) -> None:
    """At a rate of 0 they stay as calibrated, which a run without QAT epochs shows."""
    for name, setting in (("fixed", "qat.range_learning_rate=0"), ("first", "qat.epochs=0")):
        settings = (*SETTINGS, setting)
        command = arguments(tiny_esc10, tmp_path / name, "--quiet", settings=settings)
        assert main(command) == HOLDS
    learned, fixed, first = (
        qat_checkpoint.load(folder / "qat.safetensors")[1].quantization
        for folder in (finished, tmp_path / "fixed", tmp_path / "first")
    )
    assert fixed == first != learned
    assert [q.zero_point for q in learned.values()] == [q.zero_point for q in first.values()]


# What is reported


def test_a_run_returns_what_it_writes(validated: Path, recordings: Path, tmp_path: Path) -> None:
    dataset = load_dataset("esc10", recordings)
    config, source = load_config("esc10", HELD_OUT), Source(FeatureDefinition(), tmp_path)
    console = Console(lambda epoch: None, lambda line: None)
    report = run(config, dataset, 1, validated, True, source, console)
    assert list(report.metrics) == ["float", "qat", "int8"]
    values = json.loads((validated / "metrics.json").read_text())
    assert values["selection"] == (
        # Of six clips a class a quarter is one and a half: two are held out.
        "the qat epoch of least loss in device arithmetic on 6 of 18 training clips"
    )
    assert values == json.loads(json.dumps(report.to_dict()))
    assert values["fidelity"]["windows"] == 18


def test_people_read_the_accuracy_held_out_and_the_fidelity(
    validated: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(recordings, tmp_path, settings=HELD_OUT)) == HOLDS
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split()[0] for line in lines] == ["float"] * 2 + ["qat"] * 3
    told = [*epochs(validated, "float"), *epochs(validated, "qat")]
    for line, epoch in zip(lines, told, strict=True):
        accuracy, log_loss = epoch["validation_accuracy"], epoch["validation_log_loss"]
        assert f"validation {accuracy:.2%} log-loss {log_loss:.3f}" in line
    values = json.loads((validated / "metrics.json").read_text())
    fidelity, losses = values["fidelity"], [m["clip_log_loss"] for m in values["metrics"].values()]
    rows = captured.out.splitlines()
    overall = [row.split() for row in rows if row.startswith("clips")]
    assert [row[1] for row in overall] == ["float", "qat", "int8"]
    assert all(f"{loss:.3f}" in row for loss, row in zip(losses, overall, strict=True))
    assert (
        "the device shares its top class with the simulation on "
        f"{fidelity['as_simulated']:.2%} of 18 windows, with the float network on "
        f"{fidelity['as_float']:.2%}"
    ) in rows
    assert rows[-2:] == [
        f"report: {tmp_path / 'report.html'}",
        "next: python -m convert --target tflite-micro --checkpoint "
        f"{tmp_path / 'qat.safetensors'} --out {tmp_path / 'bundle'}",
    ]
    furthest = [row for row in rows if row.startswith("layer furthest from its simulation")]
    assert len(furthest) == min(len(fidelity["layers"]), 1)
