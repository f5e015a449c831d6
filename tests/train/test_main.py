"""``python -m train``: a whole small run, its files, its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import BAD_INPUT, CHECK_FAILED, HOLDS
from tests.train.runs import FILES, MODELS, SETTINGS, arguments, lasting, one_line
from train import checkpoint, qat_checkpoint
from train.__main__ import COMMANDS, main, train_parser

MakeEsc10 = Callable[..., Path]


# A run


def test_a_run_leaves_its_files_and_no_others(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES


def test_the_checkpoints_say_what_they_are(finished: Path) -> None:
    for name, stage in (("float", "float"), ("qat", "qat")):
        manifest = checkpoint.load(finished / f"{name}.safetensors", stage).manifest
        assert manifest["labels"] == ["Dog bark", "Rain", "Sea waves"]
        folds = manifest["dataset"].pop("folds")
        assert len(folds) == 16 and int(folds, 16)
        dataset = {"name": "ESC-10", "test_fold": 1, "selected_on_test": False}
        assert manifest["dataset"] == dataset
        assert manifest["network"]["widths"] == [8, 8]
        assert manifest["config"]["float_stage"]["epochs"] == 2
        assert manifest["features"]["mel_bands"] == 128
        assert len(manifest["input_normalization"]["mean"]) == 3
    assert qat_checkpoint.load(finished / "qat.safetensors")[1].quantization


def test_metrics_are_of_the_test_fold(finished: Path) -> None:
    values = json.loads((finished / "metrics.json").read_text())
    assert (values["dataset"], values["split"]) == ("ESC-10", "fold 1")
    assert values["provenance"]["seed"] == 0
    assert values["selection"] == "none: the last epoch"
    assert values["selected_on_reported_split"] is False and values["warning"] is None
    assert set(values["metrics"]) == set(MODELS)
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
    assert lasting(tmp_path / "again") == lasting(finished)
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    written = json.loads((finished / "metrics.json").read_text())
    assert values == {"ok": True, **written}
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
    assert "out' cannot be written in: " in one_line(capsys)


def test_divergence_is_one_line(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, "float.learning_rate=10", "float.weight_decay=1", "float.epochs=40"]
    out = tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == BAD_INPUT
    assert "lower float.learning_rate=10" in one_line(capsys)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_an_example_that_parses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = COMMANDS[command][0]() if command else train_parser()
    assert parser.epilog is not None
    words = parser.epilog.removeprefix("example: ").partition(";")[0].split()
    assert words[:3] == ["python", "-m", "train"]
    first = [command] if command else []
    assert words[3 : 3 + len(first)] == first
    given = vars(parser.parse_args(words[3 + len(first) :]))
    assert given.get("data", "recordings") == "recordings"
    with pytest.raises(SystemExit) as caught:
        main([*first, "--help"])
    assert caught.value.code == 0 and "--json" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute", "--model", "x"]) == BAD_INPUT
    assert one_line(capsys).startswith(
        "error: unknown command 'evalute'; allowed: evaluate, spectrum-correction, ablate"
    )
