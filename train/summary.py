"""Runs of several folds and seeds as one result: means, and spread over each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from firmware_ref.errors import InputError, read_bytes, write_whole
from train.curves import EPOCHS_FILE, Curves, curves_png, read_curves
from train.figures import confusion_png
from train.report import WARNING, printable
from train.tables import ABSENT, Table, table_markdown, table_text

METRICS_FILE = "metrics.json"
LARGEST_BYTES = 2**24
JSON_FILE, MARKDOWN_FILE = "summary.json", "summary.md"
CONFUSION_FILE, CURVES_FILE = "confusion-int8.png", "curves.png"
# Names in `train.evaluate.Metrics`; those of devices only where there are several.
FIGURES = ("clip_accuracy", "clip_log_loss", "window_accuracy", "window_log_loss")
DEVICE_FIGURES = ("seen_accuracy", "unseen_accuracy", "seen_log_loss", "unseen_log_loss")
DEPLOYED = "int8"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one run scored: figures by model and name, confusion[true, predicted] of INT8."""

    seed: int
    split: str
    figures: Mapping[str, Mapping[str, float]]
    confusion: np.ndarray
    warned: bool
    curves: Curves


@dataclass(frozen=True)
class Spread:
    """Mean over seeds of the means over splits; sample deviations of either, None of a single."""

    mean: float
    over_splits: float | None
    over_seeds: float | None


@dataclass(frozen=True, eq=False)
class Summary:
    """All runs of one dataset, every seed of the same splits."""

    dataset: str
    labels: tuple[str, ...]
    runs: tuple[Measured, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def splits(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted({run.split for run in self.runs}))

    @property
    def models(self) -> tuple[str, ...]:
        """Those that every run has measured."""
        return tuple(m for m in self.runs[0].figures if all(m in run.figures for run in self.runs))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the figures that all runs have."""
        every = [run.figures[model] for run in self.runs for model in self.models]
        return tuple(n for n in FIGURES + DEVICE_FIGURES if all(n in values for values in every))

    def value(self, model: str, name: str, seed: int, split: str) -> float:
        """One figure of one run."""
        (run,) = (run for run in self.runs if (run.seed, run.split) == (seed, split))
        return run.figures[model][name]

    def spread(self, model: str, name: str) -> Spread:
        """Of one figure over all runs."""
        grid = [[self.value(model, name, s, p) for p in self.splits] for s in self.seeds]
        by_seed = [fmean(row) for row in grid]
        by_split = [fmean(column) for column in zip(*grid, strict=True)]
        return Spread(fmean(by_seed), _deviation(by_split), _deviation(by_seed))

    @property
    def confusion(self) -> np.ndarray:
        """Of INT8, in clips of all runs."""
        return np.sum([run.confusion for run in self.runs], axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "dataset": self.dataset,
            "seeds": list(self.seeds),
            "splits": list(self.splits),
            "selected_on_reported_split": any(run.warned for run in self.runs),
            "models": {
                model: {name: vars(self.spread(model, name)) for name in self.names}
                for model in self.models
            },
            "runs": [
                {"seed": run.seed, "split": run.split, "models": run.figures} for run in self.runs
            ],
            "confusion": self.confusion.tolist(),
            "labels": list(self.labels),
        }


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def summarize(folders: Iterable[str | Path]) -> Summary:
    """Read the runs in these folders, each as `python -m train` leaves it.

    Raises `InputError` for a folder without a finished run, for runs of different datasets,
    labels or recipes, and where a seed lacks a split that another has or has one twice.
    """
    found: dict[tuple[int, str], Measured] = {}
    about: set[tuple[str, tuple[str, ...]]] = set()
    recipes: set[str] = set()
    for folder in folders:
        path = Path(folder) / METRICS_FILE
        dataset, labels, recipe, run = _read(path)
        recipes.add(recipe)
        if len(recipes) > 1:
            raise InputError(f"{str(path)!r} has another recipe than others; give runs of one")
        about.add((dataset, labels))
        if len(about) > 1:
            raise InputError(f"{str(path)!r} is of {dataset!r}, others are not; give runs of one")
        if (run.seed, run.split) in found:
            raise InputError(f"{str(path)!r}: seed {run.seed} has {run.split} twice; give it once")
        found[run.seed, run.split] = run
    if not found:
        raise InputError("no run is named; give the folders of finished runs")
    ((dataset, labels),) = about
    summary = Summary(dataset, labels, tuple(found.values()))
    for seed in summary.seeds:
        for split in summary.splits:
            if (seed, split) not in found:
                raise InputError(f"seed {seed} lacks {split}, which another seed has; add its run")
    return summary


def _read(path: Path) -> tuple[str, tuple[str, ...], str, Measured]:
    """Dataset, labels, recipe and figures of a run, every field that is used checked."""
    what = f"run {str(path)!r}"
    data = read_bytes(path, LARGEST_BYTES, "run")
    try:
        values = json.loads(data)
        metrics = values["metrics"]
        labels = tuple(map(str, metrics[DEPLOYED]["class_clips"]))
        figures = {str(model): _figures(found) for model, found in metrics.items()}
        confusion = np.array(metrics[DEPLOYED]["confusion"], np.int64)
        if confusion.shape != (len(labels), len(labels)) or confusion.min() < 0:
            raise ValueError("confusion")
        seed, warned = values["provenance"]["seed"], values["selected_on_reported_split"]
        if type(seed) is not int or type(warned) is not bool:
            raise ValueError("seed")
        dataset, split = str(values["dataset"]), str(values["split"])
        recipe = str(values["provenance"].get("recipe", values.get("title")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            f"{what} is no {METRICS_FILE} with INT8 figures; give the folder of a finished run"
        ) from None
    curves = read_curves(path.with_name(EPOCHS_FILE))
    return dataset, labels, recipe, Measured(seed, split, figures, confusion, warned, curves)


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    found = {name: values[name] for name in FIGURES}
    found |= {name: values[name] for name in DEVICE_FIGURES if values.get(name) is not None}
    if not all(type(v) in (int, float) and math.isfinite(v) for v in found.values()):
        raise ValueError("figures")
    return found


def write_summary(summary: Summary, folder: Path) -> None:
    """JSON, Markdown, the INT8 confusion matrix over all runs and their curves into a folder."""
    title = f"{summary.dataset}, INT8, {_counts(summary)}"
    files = {
        JSON_FILE: (json.dumps(summary.to_dict(), indent=2) + "\n").encode(),
        MARKDOWN_FILE: as_markdown(summary).encode(),
        CONFUSION_FILE: confusion_png(summary.confusion, summary.labels, title),
        CURVES_FILE: curves_png([run.curves for run in summary.runs]),
    }
    for name, data in files.items():
        write_whole(folder / name, data)


def as_text(summary: Summary) -> str:
    """The tables for a terminal."""
    lines = [*_warning(summary), f"{printable(summary.dataset)}: {_counts(summary)}", ""]
    lines += [table_text(_overall(summary)), "", table_text(_by_split(summary)), "", NOTE]
    return "\n".join(lines)


def as_markdown(summary: Summary) -> str:
    """The same as a page."""
    lines = [f"# {printable(summary.dataset)}: {_counts(summary)}", "", *_warning(summary)]
    lines += [table_markdown(_overall(summary)), "", table_markdown(_by_split(summary)), "", NOTE]
    lines += ["", f"![INT8 confusion, clips]({CONFUSION_FILE})", ""]
    return "\n".join([*lines, f"![training curves]({CURVES_FILE})", ""])


NOTE = (
    "Accuracy in %, log-loss in nats: the mean over seeds of the mean over splits; in brackets the "
    "sample standard deviation over splits, then over seeds."
)


def _warning(summary: Summary) -> list[str]:
    return [WARNING, ""] if any(run.warned for run in summary.runs) else []


def _counts(summary: Summary) -> str:
    splits, seeds = len(summary.splits), len(summary.seeds)
    return f"{splits} split{'s'[: splits - 1]}, {seeds} seed{'s'[: seeds - 1]}"


def _overall(summary: Summary) -> Table:
    head = ("model", *(name.replace("_", " ") for name in summary.names))
    rows = tuple(
        (model, *(_cell(summary.spread(model, name), name) for name in summary.names))
        for model in summary.models
    )
    return Table("", head, rows)


def _by_split(summary: Summary) -> Table:
    """INT8 accuracy of clips, a line for each seed."""
    name = FIGURES[0]
    rows = tuple(
        (
            f"seed {seed}",
            *(f"{100 * summary.value(DEPLOYED, name, seed, s):.2f}" for s in summary.splits),
        )
        for seed in summary.seeds
    )
    return Table("", ("INT8 clips", *summary.splits), rows)


def _cell(spread: Spread, name: str) -> str:
    scale, form = (100, ".2f") if name.endswith("accuracy") else (1, ".3f")
    deviations = [
        ABSENT if value is None else format(scale * value, form)
        for value in (spread.over_splits, spread.over_seeds)
    ]
    return f"{scale * spread.mean:{form}} ({', '.join(deviations)})"
