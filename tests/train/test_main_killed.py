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
# Dies when it has the features of one recording.
IN_FEATURES = """
import os, signal, sys
from train.__main__ import main
from train.cache import Store

add = Store.add

def killed(*arguments):
    add(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

Store.add = killed
sys.exit(main(sys.argv[1:]))
"""


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
    command: Sequence[str], program: Sequence[str] = ("-m", "train")
) -> Iterator[subprocess.Popen[str]]:
    """``python -m train``, or a program that calls it, in a process of its own.

    It hears Ctrl-C even where these tests do not, as in a background job of a script.
    """
    with subprocess.Popen(
        [sys.executable, *program, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as found:
        yield found


def die(command: Sequence[str], *program: str) -> None:
    """Run it until it is killed."""
    with process(command, program) as found:
        assert found.wait() == -signal.SIGKILL, found.communicate()


def die_writing(command: Sequence[str], number: int) -> None:
    """Run it until it is killed in the middle of that file."""
    die(command, "tests/train/killed.py", str(number))


def left_over(out: Path) -> list[str]:
    """The temporary files of a run, without what makes each name unique."""
    return sorted(path.name.rpartition(".")[0] for path in out.glob(".*"))


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
    """Twice: in the state of a teacher's first epoch, and, resumed, of the first float epoch.

    What each left half-written is gone when the next one has begun.
    """
    out = tmp_path / "parts"
    command = arguments(tiny_devices, out, "--quiet", settings=settings)
    die_writing(command, 6)
    assert left_over(out) == [".teacher-1-state.safetensors"]
    die_writing([*command, "--resume"], 10)
    assert left_over(out) == [".float-state.safetensors"]
    assert main([*command, "--resume"]) == HOLDS
    assert lasting(out) == whole and not left_over(out)


@pytest.mark.parametrize("resume", [True, False])
def test_a_process_that_is_killed_in_its_features_goes_on_with_and_without_resume(
    finished: Path, tiny_esc10: Path, tmp_path: Path, resume: bool
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    command = arguments(tiny_esc10, out, "--quiet", "--cache", str(cache))
    die(command, "-c", IN_FEATURES)
    assert [path.name for path in out.iterdir()] == ["run.json"]
    (index,) = cache.glob("*/index.jsonl")
    assert len(index.read_text().splitlines()) == 1
    assert main([*command, "--resume"] if resume else command) == HOLDS
    assert lasting(out) == lasting(finished)


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
    die_writing(command, killed_in)
    assert len(left_over(out)) == 1
    resume = ["--resume"] if killed_in > 1 else []
    assert main([*command, *resume]) == HOLDS
    assert lasting(out) == whole and not left_over(out)


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
