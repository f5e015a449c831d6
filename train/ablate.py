"""What each technique is worth: a run with all of them, and one without each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.config import Config
from train.data import Source
from train.dataset import Dataset
from train.report import WARNING
from train.run import RUN_FILE, Console, run
from train.tables import Table, table_text

ALL = "all techniques"
# How each technique is switched off.
Without = Callable[[Config], Config]


def _augment(**off: Any) -> Without:
    return lambda config: replace(config, augment=replace(config.augment, **off))


TECHNIQUES: Mapping[str, Without] = {
    "mix-up": _augment(mixup_alpha=0.0),
    "frequency mask": _augment(frequency_mask_bands=0),
    "time mask": _augment(time_mask_frames=0),
    "time warp": _augment(time_warp_frames=0),
    "pitch shift": _augment(pitch_shift_probability=0.0),
    "spectrum correction": _augment(spectrum_correction_probability=0.0),
    "cross-gradient training": lambda config: replace(
        config, cross_gradient=replace(config.cross_gradient, epsilon=0.0)
    ),
    "distillation": lambda config: replace(
        config, distillation=replace(config.distillation, teachers=())
    ),
    "restarts": lambda config: replace(
        config, float_stage=replace(config.float_stage, restart_epochs=())
    ),
    "ResNorm": lambda config: replace(config, network=replace(config.network, res_norm=False)),
}


@dataclass(frozen=True)
class Row:
    """INT8 figures of one run: clips over all devices, and over seen and unseen ones apart."""

    without: str
    clip_accuracy: float
    clip_log_loss: float
    window_accuracy: float
    seen_accuracy: float | None
    unseen_accuracy: float | None
    selected_on_reported_split: bool


def ablate(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    out: Path,
    resume: bool,
    source: Source,
    console: Callable[[Path], Console],
) -> list[Row]:
    """Train and measure with every technique the configuration has on, then without each.

    Each run has a folder under ``out``; with ``resume``, those that are done are only measured.
    """
    variants = {ALL: config}
    for name, without in TECHNIQUES.items():
        changed = without(config)
        if changed != config:
            variants[name] = changed
    rows = []
    for name, variant in variants.items():
        folder = out / name.replace(" ", "-")
        begun = resume and (name == ALL or (folder / RUN_FILE).exists())
        report = run(variant, dataset, test_fold, folder, begun, source, console(folder))
        found = report.metrics["int8"]
        rows.append(
            Row(
                name,
                found.clip_accuracy,
                found.clip_log_loss,
                found.window_accuracy,
                found.seen_devices.accuracy,
                found.unseen_devices.accuracy,
                report.selected_on_reported_split,
            )
        )
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """A table of all runs, with what clip accuracy loses without each technique."""
    whole = rows[0]
    head = ("without", "clips", "change", "log-loss", "windows", "seen", "unseen")
    cells = tuple(
        (
            "" if row is whole else row.without,
            _percent(row.clip_accuracy),
            "" if row is whole else f"{100 * (row.clip_accuracy - whole.clip_accuracy):+.1f}",
            f"{row.clip_log_loss:.3f}",
            _percent(row.window_accuracy),
            _percent(row.seen_accuracy),
            _percent(row.unseen_accuracy),
        )
        for row in rows
    )
    text = table_text(Table("INT8 accuracy in %, one seed", head, cells))
    return f"{WARNING}\n\n{text}" if whole.selected_on_reported_split else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
