"""``python -m train`` on a few short recordings: its arguments and its one line of error."""

from __future__ import annotations

import json
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
    "qat.frozen_range_epochs=0",
    "compute.threads=1",
)
MODELS = ("float", "qat", "int8")
FILES = {
    *("run.json", "epochs.jsonl", "tensorboard"),
    *("float.safetensors", "qat.safetensors"),
    *("metrics.json", "report.md", "report.html"),
    *(f"confusion-{model}.png" for model in MODELS),
}


# Every technique, on the recordings of the fixture `tiny_devices`.
EVERYTHING = (
    *SETTINGS,
    "data.dataset=esc10-devices",
    "data.validation_fraction=0.25",
    "augment.time_warp_frames=4",
    "augment.silence_probability=0.25",
    "augment.pitch_shift_semitones=[2]",
    "augment.pitch_shift_probability=0.25",
    "augment.spectrum_correction_probability=0.25",
    "cross_gradient.epsilon=0.1",
    "teacher.epochs=2",
    "teacher.learning_rate=0.05",
    "teacher.batch_size=4",
    "qat.epochs=2",
    "qat.learning_rate=1e-2",
    "qat.float_teacher_weight=0.5",
)
TABLE = "teacher.npz"


def with_teachers(data: Path) -> tuple[str, ...]:
    """`EVERYTHING`, distilled from a network and from the table that lies by the recordings."""
    return with_teacher(named("network", "qti-c40"), named("table", data / TABLE))


def with_teacher(*tables: str) -> tuple[str, ...]:
    """`EVERYTHING`, distilled from teachers that are `named`."""
    return (*EVERYTHING, f"distillation.teachers=[{', '.join(tables)}]")


def named(kind: str, source: object, weights: str = "") -> str:
    """A teacher as TOML."""
    return f'{{kind = "{kind}", source = "{source}", weights = "{weights}"}}'


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lasting(folder: Path) -> dict[str, bytes]:
    """`contents` but for times: what must be the same in every run of one configuration.

    Epochs are in the order in which they were told.
    """
    found = contents(folder)
    lines = [json.loads(line) for line in found.pop("epochs.jsonl").splitlines()]
    timed = ("seconds", "examples_per_second")
    epochs = [{k: v for k, v in line.items() if k not in timed} for line in lines]
    found["epochs.jsonl"] = json.dumps(epochs).encode()
    # A kill in the middle of writing leaves a temporary file, whose name begins with a dot.
    return {
        name: data for name, data in found.items() if not name.startswith(("tensorboard/", "."))
    }


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
