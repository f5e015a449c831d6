"""The comparison of speed: the least of interleaved times, and a warning on a busy machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from firmware_ref import __main__ as command
from firmware_ref import bench
from firmware_ref.bench import BATCH, MOST_LOAD, MOST_SPREAD, Speed, measure_speed
from firmware_ref.graph import parse

# Seconds of the reference, of one input and of a batch, an input each; least 8, 2 and 1.
QUIET = np.array([[8.0, 2.0, 1.0], [8.2, 2.1, 1.1], [8.4, 2.2, 1.0]])


def test_the_least_of_each_is_compared() -> None:
    speed = bench._speed(QUIET, 0.1)
    assert (speed.reference_ms, speed.one_ms, speed.batched_ms) == (8000, 2000, 1000)
    assert (speed.one_ratio, speed.batched_ratio) == (4, 8)
    assert speed.spread == pytest.approx(2.1 / 2.0)


def test_one_slow_round_changes_nothing() -> None:
    slow = np.concatenate([QUIET, QUIET, [[80.0, 40.0, 30.0]]])
    quiet, found = bench._speed(QUIET, 0), bench._speed(slow, 0)
    assert (found.one_ratio, found.batched_ratio) == (quiet.one_ratio, quiet.batched_ratio)
    assert found.warning is None


def speed(spread: float, load: float) -> Speed:
    return Speed(8, 2, 1, 4, 8, spread, load)


def test_a_busy_machine_is_warned_of() -> None:
    assert speed(MOST_SPREAD, MOST_LOAD).warning is None
    for busy in (speed(MOST_SPREAD + 0.01, 0), speed(1, MOST_LOAD + 0.01)):
        assert busy.warning is not None and "run again when it is idle" in busy.warning
        assert f"{busy.load:.2f}" in busy.warning and f"{busy.spread:.2f}" in busy.warning


def test_all_three_are_timed_in_turn(model_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def seconds(work: object) -> float:
        timed.append(getattr(work, "__name__", ""))
        return {"run_reference": 6.0, "run_one": 3.0, "run_batch": 1.0 * BATCH}[timed[-1]]

    monkeypatch.setattr(bench, "_seconds", seconds)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = measure_speed(parse(model_bytes), model_bytes, rounds=4)
    assert timed == ["run_reference", "run_one", "run_batch"] * 4
    assert found == Speed(6000, 3000, 1000, 2, 6, 1, 0.75)


@pytest.mark.parametrize("busy", [False, True])
def test_the_command_warns_on_stderr_alone(
    busy: bool,
    model_bytes: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = speed(2.0 if busy else 1.0, 0)
    monkeypatch.setattr(command, "measure_speed", lambda *_: measured)
    (tmp_path / "model.tflite").write_bytes(model_bytes)
    arguments = ["bench", str(tmp_path / "model.tflite")]
    assert command.main(arguments) == 0
    text = capsys.readouterr()
    assert "4.00" in text.out and "8.00" in text.out
    assert command.main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == measured.to_dict()
    for captured in (text, printed):
        assert captured.err.startswith("warning: the machine is busy") == busy
        assert captured.err.count("\n") == busy
