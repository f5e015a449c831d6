"""Runs with every technique that die, and end in the same bytes when they are resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from firmware_ref.errors import HOLDS, INTERRUPTED
from tests.train.runs import arguments, lasting, with_teachers
from train.__main__ import main

ROOT = Path(__file__).parents[2]
# Long enough to be met in the middle.
LONGER = ("float.epochs=20", "float.keep=best")
# run.json, two files of corrections, nine of two epochs' logs and states for each of three stages,
# two teachers, two checkpoints, six of the report.
WRITES = 26


@pytest.fixture(scope="module")
def settings(tiny_devices: Path) -> tuple[str, ...]:
    return with_teachers(tiny_devices)


@pytest.fixture(scope="module")
def whole(
    tiny_devices: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == HOLDS
    found = lasting(out)
    assert {"float.safetensors", "qat.safetensors", "teacher-1.npz", "teacher-2.npz"} <= set(found)
    return found


@contextmanager
def process(
    command: Sequence[str], killed_in: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """``python -m train`` in a process of its own."""
    program = ["-m", "train"] if killed_in is None else ["tests/train/killed.py", str(killed_in)]
    with subprocess.Popen(
        [sys.executable, *program, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as found:
        yield found


def die(command: Sequence[str], killed_in: int) -> None:
    """Run it until it is killed in the middle of that file."""
    with process(command, killed_in) as found:
        assert found.wait() == -signal.SIGKILL


def wait_for(stage: str, number: int, out: Path, process: subprocess.Popen[str]) -> None:
    """Until an epoch is told of."""
    log = out / "epochs.jsonl"
    while process.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        if any((e["stage"], e["number"]) == (stage, number) for e in map(json.loads, lines)):
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate())


# In this process


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    tiny_devices: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    whole: dict[str, bytes],
    interrupted: Callable[..., None],
    after: int,
) -> None:
    """Of two epochs each of the teacher, the float and the QAT stage."""
    out = tmp_path / "parts"
    interrupted(arguments(tiny_devices, out, "--quiet", settings=settings), after)
    (state,) = out.glob("*-state.safetensors")
    assert state.name.startswith({1: "teacher-1", 2: "teacher-1", 3: "float", 5: "qat"}[after])
    command = arguments(tiny_devices, out, "--quiet", "--resume", settings=settings)
    assert main(command) == HOLDS
    assert lasting(out) == whole


def test_the_comparison_sees_one_changed_byte(finished: Path, copied: Path) -> None:
    for name, content in lasting(finished).items():
        assert lasting(copied)[name] == content
        path = copied / name
        kept = path.read_bytes()
        path.write_bytes(kept.replace(b"1", b"2", 1))
        assert lasting(copied) != lasting(finished), name
        path.write_bytes(kept)
    assert lasting(copied) == lasting(finished)


# In a process of its own


def test_a_process_that_is_killed_while_it_writes_resumes_to_the_same_bytes(
    tiny_devices: Path, tmp_path: Path, settings: tuple[str, ...], whole: dict[str, bytes]
) -> None:
    """Twice: in the state of a teacher's first epoch, and, resumed, of the first float epoch."""
    out = tmp_path / "parts"
    command = arguments(tiny_devices, out, "--quiet", settings=settings)
    die(command, 5)
    die([*command, "--resume"], 11)
    left = sorted(path.name.rpartition(".")[0] for path in out.glob(".*"))
    assert left == [".float-state.safetensors", ".teacher-1-state.safetensors"]
    assert main([*command, "--resume"]) == HOLDS
    assert lasting(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", range(1, WRITES + 1))
def test_whatever_file_it_is_killed_in(
    tiny_devices: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    whole: dict[str, bytes],
    killed_in: int,
) -> None:
    """Killed in the first one, the run has not begun, and begins anew."""
    out = tmp_path / "parts"
    command = arguments(tiny_devices, out, "--quiet", settings=settings)
    die(command, killed_in)
    resume = ["--resume"] if killed_in > 1 else []
    assert main([*command, *resume]) == HOLDS
    assert lasting(out) == whole


@pytest.fixture(scope="module")
def longer(
    tiny_devices: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("runs") / "longer"
    command = arguments(tiny_devices, out, "--quiet", settings=(*settings, *LONGER))
    assert main(command) == HOLDS
    return lasting(out)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
def test_a_process_that_is_stopped_in_an_epoch_resumes_to_the_same_bytes(
    tiny_devices: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    longer: dict[str, bytes],
    sent: signal.Signals,
) -> None:
    """At whatever moment it happens to be in; Ctrl-C says how to go on."""
    out = tmp_path / "parts"
    command = arguments(tiny_devices, out, "--quiet", settings=(*settings, *LONGER))
    with process(command) as found:
        wait_for("float", 3, out, found)
        found.send_signal(sent)
        said = found.communicate()
    if sent == signal.SIGINT:
        assert found.returncode == INTERRUPTED
        assert said == ("", "interrupted; the same command with --resume goes on\n")
        assert not list(out.glob(".*"))
    else:
        assert found.returncode == -signal.SIGKILL
    assert (out / "float-state.safetensors").exists()
    assert main([*command, "--resume"]) == HOLDS
    assert lasting(out) == longer
