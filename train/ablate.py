"""What each technique is worth: runs with all of them and without each, of one seed or several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from firmware_ref.errors import InputError, write_whole
from train.config import Config
from train.config_file import RANGES
from train.data import Source
from train.dataset import Dataset
from train.evaluate import CONFIDENCE_PERCENT, paired_interval
from train.report import WARNING, Report, printable
from train.run import RUN_FILE, Console, check_free, run
from train.tables import ABSENT, Table, table_markdown, table_text

JSON_FILE, MARKDOWN_FILE = "ablation.json", "ablation.md"
# The folder of the runs without which nothing is compared.
ALL = "all-techniques"
MOST_SEEDS = 1000
# How each technique is switched off.
Without = Callable[[Config], Config]


def _augment(**off: Any) -> Without:
    return lambda config: replace(config, augment=replace(config.augment, **off))


TECHNIQUES: Mapping[str, Without] = {
    "mix-up": _augment(mixup_alpha=0.0),
    "frequency mask": _augment(frequency_mask_bands=0),
    "time mask": _augment(time_mask_frames=0),
    "time warp": _augment(time_warp_frames=0),
    "silence": _augment(silence_probability=0.0),
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
    "sub-spectral norm": lambda config: replace(
        config, network=replace(config.network, ssn_bands=1)
    ),
    # What is left is calibration: ranges measured on training windows, weights as they are.
    "QAT": lambda config: replace(
        config,
        qat_stage=replace(
            config.qat_stage, optimizer=replace(config.qat_stage.optimizer, epochs=0)
        ),
    ),
}


@dataclass(frozen=True)
class Figures:
    """INT8 figures of one run: accuracies in [0, 1], log-loss in nats.

    Seen and unseen are the means over the devices heard in training or not, None where there are
    none. The interval is that of clip accuracy, lowest and highest (`train.evaluate.Intervals`).
    ``by_source`` are clips and right ones (`train.evaluate.Metrics`).
    """

    seed: int
    clip_accuracy: float
    clip_log_loss: float
    window_accuracy: float
    seen_accuracy: float | None
    unseen_accuracy: float | None
    clip_accuracy_interval: tuple[float, float]
    by_source: tuple[tuple[int, int], ...]


AVERAGED = (
    "clip_accuracy",
    "clip_log_loss",
    "window_accuracy",
    "seen_accuracy",
    "unseen_accuracy",
)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and sample standard deviation; None where there is nothing to take it of."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of one value a seed; the deviation of a single one is None."""
        found = [value for value in values if value is not None]
        return cls(fmean(found) if found else None, stdev(found) if len(found) > 1 else None)


@dataclass(frozen=True)
class Variant:
    """The runs of all seeds without one technique, or, where ``without`` is None, with all."""

    without: str | None
    runs: tuple[Figures, ...]

    def spread(self, name: str) -> Spread:
        """Of a figure by its name in `Figures`."""
        return Spread.of([getattr(run, name) for run in self.runs])

    def change(self, whole: Variant) -> Spread:
        """What clip accuracy gains over ``whole``: of the differences, seed by seed."""
        pairs = zip(self.runs, whole.runs, strict=True)
        return Spread.of([own.clip_accuracy - other.clip_accuracy for own, other in pairs])

    def change_interval(self, whole: Variant) -> tuple[float, float]:
        """95 % interval of that change over the choice of recordings, of all seeds together."""
        own, other = (np.sum([run.by_source for run in v.runs], axis=0) for v in (self, whole))
        return paired_interval(own, other)


@dataclass(frozen=True)
class Ablation:
    """All runs; the first variant has every technique, and each has a run for every seed."""

    config: str
    dataset: str
    fold: int
    seeds: tuple[int, ...]
    selected_on_reported_split: bool
    variants: tuple[Variant, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "warning": WARNING if self.selected_on_reported_split else None,
            "config": self.config,
            "dataset": self.dataset,
            "fold": self.fold,
            "seeds": list(self.seeds),
            "selected_on_reported_split": self.selected_on_reported_split,
            "model": "int8",
            "variants": [self._values(variant) for variant in self.variants],
        }

    def _values(self, variant: Variant) -> dict[str, Any]:
        spreads = {name: variant.spread(name) for name in AVERAGED}
        whole = self.variants[0]
        return {
            "without": variant.without,
            "runs": [{k: v for k, v in vars(r).items() if k != "by_source"} for r in variant.runs],
            "mean": {name: spread.mean for name, spread in spreads.items()},
            "std": {name: spread.std for name, spread in spreads.items()},
            "clip_accuracy_change": None
            if variant is whole
            else {**vars(variant.change(whole)), "interval": variant.change_interval(whole)},
        }


def variants(config: Config, only: Sequence[str] = ()) -> dict[str | None, Config]:
    """The configuration, and by technique the one without it; of ``only`` these, else of all on.

    Raises `InputError` for a name that is none of `TECHNIQUES`, or a technique that is off anyway.
    """
    if unknown := [name for name in only if name not in TECHNIQUES]:
        raise InputError(f"--only {unknown[0]!r} is unknown; allowed: {', '.join(TECHNIQUES)}")
    changed = {name: without(config) for name, without in TECHNIQUES.items()}
    on = {name: other for name, other in changed.items() if other != config}
    if off := [name for name in only if name not in on]:
        raise InputError(
            f"--only {off[0]!r} is off in config {config.name!r} already; allowed with it: "
            f"{', '.join(on) or 'none'}"
        )
    return {None: config} | {name: on[name] for name in on if name in only or not only}


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """``count`` seeds in a row; refuses what no configuration takes."""
    if not 1 <= count <= MOST_SEEDS:
        raise InputError(f"--seeds {count}; allowed: from 1 to {MOST_SEEDS:,}")
    highest = int(RANGES["seed"][1])
    if first + count - 1 > highest:
        raise InputError(f"--seeds {count} from seed={first} on; seeds end at {highest}")
    return tuple(range(first, first + count))


def ablate(
    configs: Mapping[str | None, Config],
    seeds: Sequence[int],
    dataset: Dataset,
    test_fold: int,
    out: Path,
    resume: bool,
    source: Source,
    console: Callable[[Path], Console],
) -> Ablation:
    """Train and measure each of `variants` with each seed; the table and its values into ``out``.

    Each run has a folder ``<without>/seed-<n>`` there; with ``resume``, those that are done are
    only measured, and what is new is added. Without, an ``out`` that holds runs is refused.
    """
    if not resume:
        for folder in out.glob("*/seed-*"):
            check_free(folder)
    runs: dict[str | None, list[Figures]] = {without: [] for without in configs}
    for seed in seeds:
        for without, config in configs.items():
            folder = out / (without or ALL).replace(" ", "-") / f"seed-{seed}"
            first = not any(runs.values())
            begun = resume and (first or (folder / RUN_FILE).exists())
            seeded = replace(config, seed=seed)
            report = run(seeded, dataset, test_fold, folder, begun, source, console(folder))
            runs[without].append(_figures(seed, report))
    ablation = Ablation(
        configs[None].name,
        dataset.name,
        test_fold,
        tuple(seeds),
        report.selected_on_reported_split,
        tuple(Variant(without, tuple(found)) for without, found in runs.items()),
    )
    values = json.dumps(ablation.to_dict(), indent=2, allow_nan=False)
    write_whole(out / JSON_FILE, f"{values}\n".encode())
    write_whole(out / MARKDOWN_FILE, as_markdown(ablation).encode())
    return ablation


def _figures(seed: int, report: Report) -> Figures:
    found = report.metrics["int8"]
    assert found.intervals is not None
    return Figures(
        seed,
        found.clip_accuracy,
        found.clip_log_loss,
        found.window_accuracy,
        found.seen_devices.accuracy,
        found.unseen_devices.accuracy,
        found.intervals.clip_accuracy,
        found.by_source,
    )


def as_text(ablation: Ablation) -> str:
    """The table for a terminal, under what it is of."""
    facts = ", ".join(f"{name} {printable(value)}" for name, value in _facts(ablation))
    warning = [WARNING, ""] if ablation.selected_on_reported_split else []
    return "\n".join([*warning, facts, "", table_text(_table(ablation)), "", _note(ablation)])


def as_markdown(ablation: Ablation) -> str:
    """The same as a page."""
    first, *others = _facts(ablation)
    facts = table_markdown(Table("", first, tuple(others), left=2))
    warning = [f"> **{WARNING}**", ""] if ablation.selected_on_reported_split else []
    lines = ["# Ablation", "", *warning, facts, "", table_markdown(_table(ablation))]
    return "\n".join([*lines, "", _note(ablation), ""])


def _facts(ablation: Ablation) -> tuple[tuple[str, str], ...]:
    return (
        ("config", ablation.config),
        ("dataset", ablation.dataset),
        ("fold", str(ablation.fold)),
        ("seeds", " ".join(map(str, ablation.seeds))),
    )


def _note(ablation: Ablation) -> str:
    """How to read the figures."""
    if len(ablation.seeds) > 1:
        return (
            "INT8 accuracy in %: mean (sample standard deviation) over the seeds; change: of the "
            "differences of the two runs of each seed."
        )
    return (
        f"INT8 accuracy in %; {CONFIDENCE_PERCENT} % intervals: percentile bootstrap over original "
        "recordings, the same ones drawn for both networks of a change. They cover the choice of "
        "recordings, not the chance in training: for that, several seeds."
    )


def _table(ablation: Ablation) -> Table:
    """A row for each variant; change is what clip accuracy gains by leaving the technique out."""
    whole, alone = ablation.variants[0], len(ablation.seeds) == 1
    rows = []
    for variant in ablation.variants:
        same = variant is whole
        sure = _interval(variant.runs[0].clip_accuracy_interval)
        change = "" if same else _percent(variant.change(whole), "+")
        paired = "" if same else _interval(variant.change_interval(whole), "+")
        rows.append(
            (
                variant.without or "",
                _percent(variant.spread("clip_accuracy")),
                *([sure, change, paired] if alone else [change]),
                _cell(variant.spread("clip_log_loss"), ".3f"),
                _percent(variant.spread("window_accuracy")),
                _percent(variant.spread("seen_accuracy")),
                _percent(variant.spread("unseen_accuracy")),
            )
        )
    interval = f"{CONFIDENCE_PERCENT} % interval"
    accuracy = ("clips", interval, "change", interval) if alone else ("clips", "change")
    head = ("without", *accuracy, "log-loss", "windows", "seen", "unseen")
    return Table("", head, tuple(rows))


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    low, high = (format(100 * end, f"{sign}.1f") for end in ends)
    return f"{low} to {high}" if sign else f"{low} - {high}"


def _percent(spread: Spread, sign: str = "") -> str:
    return _cell(spread, f"{sign}.1f", 100)


def _cell(spread: Spread, form: str, scale: int = 1) -> str:
    """The mean, with the deviation behind it where there is one."""
    if spread.mean is None:
        return ABSENT
    mean = format(scale * spread.mean, form)
    deviation = form.removeprefix("+")
    return mean if spread.std is None else f"{mean} ({scale * spread.std:{deviation}})"
