"""``python -m train``: a whole small run, its files, its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import BAD_INPUT, CHECK_FAILED, HOLDS
from tests.train.runs import FILES, SETTINGS, arguments, one_line
from train import checkpoint, qat_checkpoint
from train.__main__ import main

MakeEsc10 = Callable[..., Path]


# A run


def test_a_run_leaves_its_files_and_no_others(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES


def test_the_checkpoints_say_what_they_are(finished: Path) -> None:
    for name, stage in (("float", "float"), ("qat", "qat")):
        manifest = checkpoint.load(finished / f"{name}.safetensors", stage).manifest
        assert manifest["labels"] == ["Dog bark", "Rain", "Sea waves"]
        assert manifest["dataset"] == {"name": "ESC-10", "test_fold": 1}
        assert manifest["network"]["widths"] == [8, 8]
        assert manifest["config"]["float_stage"]["epochs"] == 2
        assert manifest["features"]["mel_bands"] == 128
        assert len(manifest["input_normalization"]["mean"]) == 3
    assert qat_checkpoint.load(finished / "qat.safetensors")[1].quantization


def test_metrics_are_of_the_test_fold(finished: Path) -> None:
    values = json.loads((finished / "metrics.json").read_text())
    assert values["dataset"] == {"name": "ESC-10", "test_fold": 1}
    assert values["seed"] == 0 and values["selection"] == "none: the last epoch"
    assert set(values["metrics"]) == {"float", "qat", "int8"}
    for metrics in values["metrics"].values():
        # Two clips a class in the fold; 1.3 s make one window each.
        assert (metrics["clips"], metrics["windows"]) == (6, 6)
        assert [sum(row) for row in metrics["confusion"]] == [2, 2, 2]


def test_epochs_are_logged_as_json_lines(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "epochs.jsonl").read_text().splitlines()]
    stages = [(line["stage"], line["number"], line["epochs"]) for line in lines]
    assert stages == [("float", 1, 2), ("float", 2, 2), ("qat", 1, 1)]
    assert all(line["loss"] > 0 for line in lines)


def test_a_run_repeats_to_the_byte_and_prints_json(
    finished: Path, tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny_esc10, tmp_path / "again", "--json")) == HOLDS
    for name in ("float.safetensors", "qat.safetensors", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert values["ok"] is True
    written = json.loads((finished / "metrics.json").read_text())
    assert (values["metrics"], values["fidelity"]) == (written["metrics"], written["fidelity"])
    assert [line.split()[:3] for line in captured.err.splitlines()] == [
        ["float", "epoch", "1/2"],
        ["float", "epoch", "2/2"],
        ["qat", "epoch", "1/1"],
    ]


def test_another_seed_gives_other_weights(finished: Path, tiny_esc10: Path, tmp_path: Path) -> None:
    out = tmp_path / "other"
    settings = (*SETTINGS, "seed=1")
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == HOLDS
    ours, theirs = (checkpoint.load(o / "float.safetensors").tensors for o in (finished, out))
    assert not np.array_equal(ours["stem.conv.weight"], theirs["stem.conv.weight"])


# Resuming


def test_a_second_run_into_the_same_folder_is_refused(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert main(arguments(tiny_esc10, copied, "--quiet")) == BAD_INPUT
    assert "already holds a run; add --resume or name another" in one_line(capsys)
    assert before == {path.name: path.read_bytes() for path in copied.iterdir()}


def test_resuming_a_finished_run_changes_nothing(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert main(arguments(tiny_esc10, copied, "--quiet", "--resume")) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == ""
    first = [line.split()[0] for line in captured.out.splitlines()]
    assert first[:5] == ["model", "float", "qat", "int8", "the"], "a table, then fidelity"
    assert before == {path.name: path.read_bytes() for path in copied.iterdir()}


Interrupted = Callable[..., None]


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    finished: Path, tiny_esc10: Path, tmp_path: Path, interrupted: Interrupted, after: int
) -> None:
    out = tmp_path / "parts"
    interrupted(arguments(tiny_esc10, out, "--quiet"), after)
    state = "float-state.safetensors" if after == 1 else "qat-state.safetensors"
    assert (out / state).exists() and not (out / "qat.safetensors").exists()
    assert main(arguments(tiny_esc10, out, "--quiet", "--resume")) == HOLDS
    for name in ("float.safetensors", "qat.safetensors", "metrics.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--fold", "2"), "input_normalization"),
        (("--set", "seed=5"), "config"),
        (("--set", "qat.epochs=2"), "config"),
        (("--set", "model.dropout=0.2"), "network"),
    ],
)
def test_resuming_as_another_run_is_refused(
    copied: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    key: str,
) -> None:
    """Or figures would be printed of a model that was trained on its own test fold."""
    assert main(arguments(tiny_esc10, copied, "--quiet", "--resume", *more)) == BAD_INPUT
    assert f"written by a run with another {key}" in one_line(capsys)
    parts = tmp_path / "parts"
    interrupted(arguments(tiny_esc10, parts, "--quiet"), 1)
    assert main(arguments(tiny_esc10, parts, "--quiet", "--resume", *more)) == BAD_INPUT
    assert f"written by a run with another {key}" in one_line(capsys)


@pytest.mark.parametrize("missing", ["float", "qat"])
def test_either_checkpoint_of_another_run_is_refused(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (copied / f"{missing}.safetensors").unlink()
    command = arguments(tiny_esc10, copied, "--quiet", "--resume", "--set", "seed=5")
    assert main(command) == BAD_INPUT
    assert "written by a run with another config" in one_line(capsys)


# Refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--fold", "7"), "fold=7 is not in ESC-10; allowed: [1, 2]"),
        (("--fold", "one"), "argument --fold: invalid int value"),
        (("--config", "nosuch"), "unknown config 'nosuch'; known: esc10"),
        (("--config", "nosuch.toml"), "cannot be read"),
        (("--set", "float.epochs=-1"), "float.epochs=-1 must be an integer"),
        (("--set", "model.classes=10"), "model.classes=10; allowed with ESC-10 is 3"),
        (("--set", "model.input_bands=64"), "model.input_bands=64; allowed with ESC-10 is 128"),
        (("--set", "model.input_frames=40"), "model.input_frames=40; allowed with ESC-10 is 44"),
        (("--set", "data.dataset=tau"), "data.dataset='tau' is unknown"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--set",), "expected at least one argument"),
    ],
)
def test_bad_usage_is_one_line(
    tiny_esc10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    settings = (*SETTINGS, "model.name=custom")
    out = tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", *more, settings=settings)) == BAD_INPUT
    assert message in one_line(capsys)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_network_over_a_limit_fails_the_check(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*SETTINGS, "model.name=custom", "model.widths=[400,400]")
    out = tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == CHECK_FAILED
    assert "custom: parameters=" in one_line(capsys)
    assert not out.exists()


def test_missing_data_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ASC_DATA", raising=False)
    assert main(["--out", str(tmp_path / "out")]) == BAD_INPUT
    assert "give --data DIR or set ASC_DATA=DIR" in one_line(capsys)
    assert main(["--data", str(tmp_path / "absent")]) == BAD_INPUT
    assert "does not exist" in one_line(capsys)
    assert main(["--data", str(tmp_path)]) == BAD_INPUT
    assert "meta.csv" in one_line(capsys)


def test_a_broken_recording_is_one_line(
    make_esc10: MakeEsc10, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_esc10(classes=3, folds=2, clips=1, seconds=(0.5,))
    broken = data / "esc10" / "Rain" / "2-1.wav"
    broken.write_bytes(b"no sound")
    assert main(arguments(data, tmp_path / "out", "--quiet")) == BAD_INPUT
    assert "2-1.wav' cannot be read as sound" in one_line(capsys)


def test_silent_recordings_are_one_line(
    make_esc10: MakeEsc10, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_esc10(classes=3, folds=2, clips=1, seconds=(0.5,))
    for path in data.rglob("*.wav"):
        content = path.read_bytes()
        path.write_bytes(content[:44] + bytes(len(content) - 44))
    assert main(arguments(data, tmp_path / "out", "--quiet")) == BAD_INPUT
    assert "the training recordings are all silent" in one_line(capsys)


def test_an_output_that_is_a_file_is_one_line(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_bytes(b"")
    assert main(arguments(tiny_esc10, tmp_path / "out", "--quiet")) == BAD_INPUT
    assert "cannot be made" in one_line(capsys)


def test_divergence_is_one_line(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, "float.learning_rate=10", "float.weight_decay=1", "float.epochs=40"]
    out = tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == BAD_INPUT
    assert "lower float.learning_rate=10" in one_line(capsys)


def test_a_damaged_state_is_one_line(
    tiny_esc10: Path,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    interrupted(arguments(tiny_esc10, out, "--quiet"), 1)
    state = out / "float-state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(arguments(tiny_esc10, out, "--quiet", "--resume")) == BAD_INPUT
    assert "float-state.safetensors' is damaged" in one_line(capsys)


def test_help_names_an_example_that_parses(capsys: pytest.CaptureFixture[str]) -> None:
    from train.__main__ import evaluate_parser, train_parser

    for parser, first in ((train_parser(), 3), (evaluate_parser(), 4)):
        assert parser.epilog is not None
        command = parser.epilog.removeprefix("example: ").partition(";")[0].split()
        assert command[:3] == ["python", "-m", "train"]
        assert parser.parse_args(command[first:]).fold == 1
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "--resume" in capsys.readouterr().out
