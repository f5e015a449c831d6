"""``python -m train`` on a few short recordings: its arguments and its one line of error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

SETTINGS = (
    "model.stem_channels=8",
    "model.widths=[8,8]",
    "model.blocks=[1,1]",
    "model.pool_after=[1,2]",
    "model.head_channels=8",
    "model.classes=3",
    "data.windows_per_clip=2",
    # Two clips a class are too few to hold any out.
    "data.validation_fraction=0",
    "float.epochs=2",
    "float.restart_epochs=[1]",
    "float.batch_size=4",
    "qat.epochs=1",
    "qat.batch_size=4",
    "qat.calibration_batches=2",
)
FILES = {"epochs.jsonl", "float.safetensors", "metrics.json", "qat.safetensors"}


def arguments(data: Path, out: Path, *more: str, settings: Sequence[str] = SETTINGS) -> list[str]:
    changes = [part for setting in settings for part in ("--set", setting)]
    return ["--data", str(data), "--out", str(out), *changes, *more]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr; nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line
