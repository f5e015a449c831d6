"""A run that holds clips out, chooses its QAT epoch by them, and says how true it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import train.run
from firmware_ref.errors import BAD_INPUT, HOLDS
from firmware_ref.features import FeatureDefinition
from firmware_ref.frontend import network_input
from tests.train.runs import SETTINGS, arguments, one_line
from train import checkpoint, qat_checkpoint
from train.__main__ import main
from train.config import load_config
from train.data import Recording, extract, hold_out, load_dataset
from train.device import device_probabilities
from train.evaluate import measure

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


def qat_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "qat"]


# The epoch


def test_epochs_are_logged_with_what_was_held_out(validated: Path, finished: Path) -> None:
    lines = [json.loads(line) for line in (validated / "epochs.jsonl").read_text().splitlines()]
    for line in lines:
        found = line["validation_accuracy"], line["validation_log_loss"]
        if line["stage"] == "float":
            assert found == (None, None)
        else:
            assert 0 <= found[0] <= 1 and found[1] > 0
    assert len(qat_lines(validated)) == 3
    (line,) = qat_lines(finished)
    assert line["validation_accuracy"] is None and line["validation_log_loss"] is None


def test_the_checkpoint_is_the_best_epoch_on_the_clips_held_out(
    validated: Path, recordings: Path
) -> None:
    """Measured again from the file, in device arithmetic, on every window of those clips."""
    saved, device = qat_checkpoint.load(validated / "qat.safetensors")
    learn, held = hold_out(load_dataset("esc10", recordings).split(1)[0], 0.25)
    assert (len(learn), len(held)) == (12, 6)
    data = extract(held, FeatureDefinition())
    x = network_input(data.features, saved.metadata.mean, saved.metadata.std)
    found = measure(device_probabilities(device, x), data.labels, data.clips)
    lines = qat_lines(validated)
    assert len({line["validation_loss"] for line in lines}) > 1, "the epochs can be told apart"
    best = min(lines, key=lambda line: line["validation_loss"])
    reported = best["validation_accuracy"], best["validation_log_loss"]
    assert (found.window_accuracy, found.window_log_loss) == reported


def test_three_sets_of_clips_share_none(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows drawn for training; every window of what is held out, and of the test fold."""
    calls: list[tuple[set[Path], float | None]] = []

    def watched(clips: Sequence[Recording], *rest: Any, **options: Any) -> Any:
        calls.append(({clip.path for clip in clips}, rest[1] if len(rest) > 1 else None))
        return extract(clips, *rest, **options)

    monkeypatch.setattr(train.run, "extract", watched)
    settings = (*HELD_OUT, "float.epochs=0", "qat.epochs=0")
    assert main(arguments(recordings, tmp_path, "--quiet", settings=settings)) == HOLDS
    (learn, hop), (held, no_hop), (test, no_hop_either) = calls
    assert (hop, no_hop, no_hop_either) == (0.25, None, None)
    assert (len(learn), len(held), len(test)) == (12, 6, 18)
    assert len(learn | held | test) == 36


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
        for name in ("float.safetensors", "qat.safetensors", "metrics.json"):
            assert (out / name).read_bytes() == (validated / name).read_bytes(), name


def test_too_few_clips_are_one_line(
    make_esc10: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_esc10(classes=3, folds=2, clips=1, seconds=(0.5,))
    out = tmp_path / "out"
    assert main(arguments(data, out, "--quiet", settings=HELD_OUT)) == BAD_INPUT
    assert "data.validation_fraction=0.25 leaves class 0 nothing" in one_line(capsys)


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


def test_a_run_returns_what_it_writes(validated: Path, recordings: Path) -> None:
    dataset = load_dataset("esc10", recordings)
    config = load_config("esc10", HELD_OUT)
    outcome = train.run.run(
        config, dataset, 1, validated, True, lambda epoch: None, lambda items, title: items
    )
    assert list(outcome.metrics) == ["float", "qat", "int8"]
    values = json.loads((validated / "metrics.json").read_text())
    assert values["selection"] == (
        "the QAT epoch of least loss in device arithmetic on 25% of the training clips"
    )
    assert values["fidelity"] == json.loads(json.dumps(outcome.fidelity.to_dict()))
    assert values["fidelity"]["windows"] == 18
    labels = dataset.labels
    assert values["metrics"] == {n: m.to_dict(labels) for n, m in outcome.metrics.items()}


def test_people_read_the_accuracy_held_out_and_the_fidelity(
    validated: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(recordings, tmp_path, settings=HELD_OUT)) == HOLDS
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split()[0] for line in lines] == ["float"] * 2 + ["qat"] * 3
    assert not any("held out" in line for line in lines[:2])
    for line, epoch in zip(lines[2:], qat_lines(validated), strict=True):
        accuracy, log_loss = epoch["validation_accuracy"], epoch["validation_log_loss"]
        assert f"device, held out: {accuracy:.2%} log-loss {log_loss:.3f}" in line
    head, *rows = captured.out.splitlines()
    assert head.split()[0] == "model"
    assert [row.split()[0] for row in rows[:3]] == ["float", "qat", "int8"]
    fidelity = json.loads((validated / "metrics.json").read_text())["fidelity"]
    assert rows[3] == (
        "the device shares its top class with the simulation on "
        f"{fidelity['as_simulated']:.2%} of 18 windows, with the float network on "
        f"{fidelity['as_float']:.2%}"
    )
    assert rows[-1].startswith("next: python -m convert --target tflite-micro --checkpoint")
    furthest = [row for row in rows[4:-1] if row.startswith("layer furthest from its simulation")]
    assert len(furthest) == len(rows[4:-1]) == min(len(fidelity["layers"]), 1)
