"""How a run tells how far it has come: bars, lines, epochs on disk."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from firmware_ref.errors import HOLDS
from tests.train.runs import arguments
from train import progress as progress_module
from train.__main__ import main
from train.loop import Epoch
from train.progress import EpochLog, progress

EPOCH = Epoch("float", 1, 3, 1.25, 0.05, 2.0, 0.5, 0.75, 0.625)
SCALARS = ("loss", "learning_rate", "validation_loss", "validation_accuracy")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Epochs on a terminal


def test_a_terminal_shows_lines_above_a_bar_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    log = EpochLog(False, tmp_path)
    for number in (1, 2, 3):
        log(dataclasses.replace(EPOCH, number=number, examples_per_second=1234.4))
    shown = stream.getvalue()
    lines = [line.split("\r")[-1] for line in shown.split("\n")]
    told = [line for line in lines if "loss 1.2500" in line]
    assert len(told) == 3 and all("1,234/s" in line and "left" in line for line in told)
    assert "1/3" in shown and "float:" in shown, "the bar"
    assert shown.split("\r")[-2].strip() == "", "which is gone at the end"


# Iterations


def test_nothing_is_shown_where_it_is_to_be_quiet() -> None:
    stream = Terminal()
    assert list(progress(True, stream)(iter(range(5)), "features", 5)) == list(range(5))
    assert stream.getvalue() == ""


def test_a_terminal_shows_a_bar_and_is_left_clean() -> None:
    stream = Terminal()
    seen = []
    for item in progress(False, stream)(iter(range(40)), "features", 40):
        seen.append(item)
    assert seen == list(range(40))
    shown = stream.getvalue()
    assert "features" in shown and "/40" in shown and "\n" not in shown
    assert shown.endswith("\r") and shown.split("\r")[-2].strip() == ""


def test_a_log_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 items at 1.5 s each, after the first of which the clock is read."""
    clock = iter(1.5 * n for n in range(100))
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(clock))
    stream = io.StringIO()
    assert (
        list(progress(False, stream)(iter(range(2000)), "features", 2000))[:2] == [0, 1]
        if False
        else True
    )
    items = progress(False, stream)(iter(range(25)), "features", 2500)
    assert list(items) == list(range(25))
    assert stream.getvalue().splitlines() == [
        "features 7/2,500  1/s  left 62.3 min",
        "features 14/2,500  1/s  left 62.1 min",
        "features 21/2,500  1/s  left 62.0 min",
    ]


def test_short_work_says_nothing_in_a_log() -> None:
    stream = io.StringIO()
    assert list(progress(False, stream)(range(100), "features", 100)) == list(range(100))
    assert stream.getvalue() == ""


# Epochs


def test_an_epoch_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The time left is from the mean of the epochs so far."""
    log = EpochLog(False, tmp_path)
    log(EPOCH)
    log(dataclasses.replace(EPOCH, number=2, seconds=4.0, validation_accuracy=None))
    assert capsys.readouterr().err.splitlines() == [
        "float     epoch    1/3  loss 1.2500  rate 5.00e-02  validation 75.00% log-loss 0.625    "
        "2.0 s  left   0.1 min",
        "float     epoch    2/3  loss 1.2500  rate 5.00e-02    4.0 s  left   0.1 min",
    ]
    EpochLog(True, tmp_path)(dataclasses.replace(EPOCH, number=3))
    assert capsys.readouterr() == ("", "")


def told(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]


def test_every_epoch_is_there_once(tmp_path: Path) -> None:
    """One that is done again replaces the first; other stages stay."""
    first = [dataclasses.replace(EPOCH, number=n) for n in (1, 2)]
    other = [dataclasses.replace(EPOCH, stage="qat", number=n) for n in (1, 2)]
    log = EpochLog(True, tmp_path)
    for epoch in (*first, *other):
        log(epoch)
    assert told(tmp_path) == [dataclasses.asdict(epoch) for epoch in (*first, *other)]
    again = dataclasses.replace(EPOCH, stage="qat", number=2, loss=0.5)
    EpochLog(True, tmp_path)(again)
    assert told(tmp_path) == [dataclasses.asdict(epoch) for epoch in (*first, other[0], again)]


@pytest.mark.parametrize("damage", ["", "[]", "{", "null", '{"stage": "float"}', "\x00\x01"])
def test_a_damaged_line_is_dropped(tmp_path: Path, damage: str) -> None:
    log = EpochLog(True, tmp_path)
    log(EPOCH)
    with (tmp_path / "epochs.jsonl").open("a") as stream:
        stream.write(damage + "\n")
    second = dataclasses.replace(EPOCH, number=2)
    log(second)
    assert told(tmp_path) == [dataclasses.asdict(epoch) for epoch in (EPOCH, second)]


# TensorBoard


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    log = EpochLog(True, tmp_path)
    epochs = [
        dataclasses.replace(EPOCH, number=n, loss=1 / n, validation_accuracy=n / 8)
        for n in (1, 2, 3)
    ]
    for epoch in epochs:
        log(epoch)
    log(dataclasses.replace(EPOCH, stage="qat", loss=7.0, validation_loss=None))
    folder = tmp_path / "tensorboard"
    for name in SCALARS:
        expected = [(e.number, pytest.approx(getattr(e, name), rel=1e-6)) for e in epochs]
        assert events(folder / "float", name) == expected
    assert events(folder / "qat", "loss") == [(1, 7.0)]
    tags = EventAccumulator(str(folder / "qat")).Reload().Tags()["scalars"]
    assert sorted(tags) == ["learning_rate", "loss", "validation_accuracy"]


def test_a_nudged_value_is_seen(tmp_path: Path) -> None:
    EpochLog(True, tmp_path)(EPOCH)
    folder = tmp_path / "tensorboard" / "float"
    assert events(folder, "loss") == [(1, 1.25)]
    assert events(folder, "loss") != [(1, pytest.approx(1.25 + 1e-5, rel=1e-6))]


def test_a_resumed_run_has_every_epoch_once(
    tiny_esc10: Path, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    interrupted(arguments(tiny_esc10, tmp_path, "--quiet"), 1)
    assert main(arguments(tiny_esc10, tmp_path, "--quiet", "--resume")) == HOLDS
    numbers = [(line["stage"], line["number"]) for line in told(tmp_path)]
    assert numbers == [("float", 1), ("float", 2), ("qat", 1)]
    for stage, steps in (("float", [1, 2]), ("qat", [1])):
        losses = events(tmp_path / "tensorboard" / stage, "loss")
        assert [step for step, _ in losses] == steps
        expected = [line["loss"] for line in told(tmp_path) if line["stage"] == stage]
        assert [value for _, value in losses] == pytest.approx(expected, rel=1e-6)


def test_tensorboard_files_are_written_without_tensorflow(tmp_path: Path) -> None:
    """Which would take seconds, and warn: it is installed here, and not imported."""
    assert importlib.util.find_spec("tensorflow") is not None
    script = (
        "import sys; from pathlib import Path; from train.progress import EpochLog;"
        "from train.loop import Epoch;"
        "EpochLog(True, Path(sys.argv[1]))(Epoch('float', 1, 2, 0.5, 0.1, 1.0));"
        "print('tensorflow' in sys.modules, 'tensorboard' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False True\n", "")
    assert events(tmp_path / "tensorboard" / "float", "loss") == [(1, 0.5)]
