"""Two processes learn what one does: steps in float64 to rounding, whole runs by their figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from firmware_ref.errors import InputError
from tests.train import parallel_steps
from tests.train.runs import arguments
from train import distributed
from train.distributed import processes

ROOT = Path(__file__).parents[2]


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in two processes on this machine, at a port of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}],
)
def test_half_an_environment_of_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="as torchrun sets them"), processes():
        pass


def test_two_processes_take_the_steps_of_one() -> None:
    """Losses, every gradient and every batch norm statistic, with cross-gradient training."""
    alone = parallel_steps.steps()
    done = torchrun("tests/train/parallel_steps.py")
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads(done.stdout)
    assert close(together, alone), np.abs(np.array(together) - alone).max()
    together[1][3] *= 1 + 1e-4
    assert not close(together, alone), "one nudged value is seen"


def close(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> bool:
    """To the rounding of a loss, which is float32 whatever the network is."""
    return bool(np.allclose(a, b, rtol=1e-6, atol=2e-7))


def test_a_run_of_two_processes_gives_the_figures_of_one(tiny_esc10: Path, tmp_path: Path) -> None:
    """The command line: one log, one set of files, figures equal but for float32 rounding."""
    # Without dropout, whose masks are each process's own.
    more = ["--set", "model.dropout=0.0", "float.batch_size=6"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = [sys.executable, "-m", "train", *arguments(tiny_esc10, alone, *more)]
    subprocess.run(one, cwd=ROOT, check=True, capture_output=True, timeout=300)
    done = torchrun("-m", "train", *arguments(tiny_esc10, together, *more))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Table 1") == 1
    assert files(together) == files(alone)
    lines, expected = epochs(together), epochs(alone)
    assert [e["number"] for e in lines] == [e["number"] for e in expected]
    for found, wanted in zip(lines, expected, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3, abs=1e-4)
    found, wanted = (json.loads((out / "metrics.json").read_text()) for out in (together, alone))
    for model in ("float", "qat", "int8"):
        figures = found["metrics"][model]
        assert figures["windows"] == wanted["metrics"][model]["windows"]
        loss = wanted["metrics"][model]["window_log_loss"]
        assert figures["window_log_loss"] == pytest.approx(loss, abs=0.05)


def files(out: Path) -> set[str]:
    return {str(p.relative_to(out)) for p in out.rglob("*") if "tensorboard" not in p.parts}


def epochs(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_equal_parts_cover_a_batch_once(
    monkeypatch: pytest.MonkeyPatch, size: int, processes: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    index = distributed.divisible(np.arange(size))
    assert size - processes < len(index) <= size and len(index) % processes == 0
    parts = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        parts.append(index[distributed.share(len(index))])
    assert len({len(part) for part in parts}) == 1
    assert np.array_equal(np.concatenate(parts), index)


def test_half_precision_input_is_normalised_in_single_precision() -> None:
    norm = distributed.SyncBatchNormOnCpu(3).train()
    x = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.BatchNorm2d(3).train()(x.bfloat16().float())
    torch.testing.assert_close(norm(x.bfloat16()), expected, rtol=1e-5, atol=1e-5)
    assert norm.running_var is not None and norm.running_var.dtype == torch.float32
