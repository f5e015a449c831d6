"""Training curves of one or more runs, as a picture: losses by epoch, a panel for each stage."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from firmware_ref.errors import InputError, read_bytes
from train.report import printable

EPOCHS_FILE = "epochs.jsonl"
LARGEST_BYTES = 2**26
MOST_EPOCHS = 100_000
MOST_STAGES = 64
# Of float32: no loss is larger, and no picture could show it.
LARGEST_LOSS = 3.5e38
COLUMN_INCHES, ROW_INCHES, DOTS_PER_INCH = 4.2, 3.4, 110
# What is drawn: its key in the log, its name, its colour.
DRAWN = (
    ("loss", "training loss", "tab:blue"),
    ("validation_log_loss", "log-loss held out", "tab:orange"),
)

# By stage, by key of `DRAWN`: (epochs,) float64, NaN where an epoch has no figure.
Curves = Mapping[str, Mapping[str, np.ndarray]]


def read_curves(path: Path) -> Curves:
    """The epochs of a run from its log, as `train.progress` writes it; of one seen twice the last.

    Raises `InputError` for a file that is no such log.
    """
    text = read_bytes(path, LARGEST_BYTES, "log")
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    try:
        for line in text.decode("utf-8").splitlines():
            values = json.loads(line)
            number = values["number"]
            if type(number) is not int or not 1 <= number <= MOST_EPOCHS:
                raise ValueError("number")
            row = tuple(_number(values.get(key)) for key, _, _ in DRAWN)
            found.setdefault(printable(str(values["stage"])), {})[number] = row
        if not 1 <= len(found) <= MOST_STAGES:
            raise ValueError("stages")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"log {str(path)!r} has no epochs; give the one of a run") from None
    return {stage: _series(rows) for stage, rows in found.items()}


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("figure")
    if not abs(value) <= LARGEST_LOSS:  # NaN neither
        raise ValueError("figure")
    return float(value)


def _series(rows: Mapping[int, tuple[float, ...]]) -> dict[str, np.ndarray]:
    values = np.full((max(rows), len(DRAWN)), math.nan)
    for number, row in rows.items():
        values[number - 1] = row
    return {key: values[:, column] for column, (key, _, _) in enumerate(DRAWN)}


def curves_png(runs: Sequence[Curves]) -> bytes:
    """A PNG: each run a thin line, their mean a thick one. The same input gives the same bytes."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run))
    size = (COLUMN_INCHES * len(stages), ROW_INCHES)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        for key, name, colour in DRAWN:
            lines = [run[stage][key] for run in runs if stage in run]
            _draw(axes, lines, name, colour)
        axes.set_title(stage, parse_math=False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(StrMethodFormatter("{x:g}"))
        axes.grid(alpha=0.3)
    panels[0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white", metadata={"Software": None})
    return picture.getvalue()


def _draw(axes: Axes, lines: Sequence[np.ndarray], name: str, colour: str) -> None:
    longest = max(map(len, lines))
    table = np.full((len(lines), longest), math.nan)
    for row, line in zip(table, lines, strict=True):
        row[: len(line)] = line
    epochs = np.arange(1, longest + 1)
    for row in table:
        axes.plot(epochs, row, color=colour, alpha=0.3, linewidth=0.7)
    known = ~np.isnan(table).all(axis=0)
    if known.any():
        mean = np.nanmean(table[:, known], axis=0)
        axes.plot(epochs[known], mean, color=colour, linewidth=1.6, label=name)
