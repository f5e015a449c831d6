"""What an evaluation report says: one structure, from which every rendering is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmware_ref.errors import InputError
from train.evaluate import CONFIDENCE_PERCENT, Metrics

if TYPE_CHECKING:
    from train.device import Fidelity

WARNING = (
    "WARNING: selected on the reported split. The checkpoint was chosen by its figures on the very "
    "recordings reported here: they flatter it, and say less about new recordings."
)
# Stands at the name of a model in every table where that is so.
MARK = "*"
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, eq=False)
class Report:
    """Models measured on one split of one dataset.

    ``metrics`` is by model (``float``, ``qat``, ``int8``), each measured on the same clips;
    ``labels`` and ``devices`` name their classes and devices. ``selection`` says in words what
    chose the checkpoint, ``selected_on_reported_split`` whether that was this split, as in the
    DCASE 2022 report. ``provenance`` is what repeats the figures: seed, versions, sizes; plain
    values, one mapping deep.
    """

    title: str
    dataset: str
    split: str
    labels: tuple[str, ...]
    devices: tuple[str, ...]
    metrics: Mapping[str, Metrics]
    selection: str
    selected_on_reported_split: bool
    provenance: Mapping[str, Any]
    fidelity: Fidelity | None = None

    def __post_init__(self) -> None:
        for model, metrics in self.metrics.items():
            if not MODEL_NAME.fullmatch(model):
                raise InputError(f"model={model!r}; allowed: lower-case letters, digits, _ and -")
            assert len(metrics.classes) == len(self.labels), "a label for every class"
            assert len(metrics.devices) == len(self.devices), "a name for every device"

    @property
    def warning(self) -> str | None:
        """What must be seen first, or None."""
        return WARNING if self.selected_on_reported_split else None

    def model_name(self, model: str) -> str:
        """The model as tables and figures name it, marked where its figures flatter it."""
        return f"{model}{MARK}" if self.selected_on_reported_split else model

    def figure_title(self, model: str) -> str:
        """What a figure that travels alone must say."""
        mark = ", selected on the reported split" if self.selected_on_reported_split else ""
        return f"{self.model_name(model)}{mark}\n{self.dataset}, {self.split}"

    def facts(self) -> list[tuple[str, str]]:
        """Name and value, for people: what was measured, what chose it, how it is repeated."""
        found: list[tuple[str, Any]] = [
            ("dataset", self.dataset),
            ("split", self.split),
            ("selection", self.selection),
            *self.provenance.items(),
        ]
        return [(name, _plain(value)) for name, value in found]

    def notes(self) -> list[str]:
        """Lines for people on how to read the figures."""
        lines = []
        sure = next((m.intervals for m in self.metrics.values() if m.intervals), None)
        if sure is not None:
            lines.append(
                f"{CONFIDENCE_PERCENT} % intervals: percentile bootstrap, {sure.resamples:,} "
                f"resamples of {sure.sources:,} sources (original recordings or places), seed "
                f"{sure.seed}; they cover the choice of recordings, not the chance in training"
            )
        if self.fidelity is not None:
            lines += self.fidelity.lines()
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        devices = self.devices if len(self.devices) > 1 else ()
        values: dict[str, Any] = {
            "warning": self.warning,
            "title": self.title,
            "dataset": self.dataset,
            "split": self.split,
            "selection": self.selection,
            "selected_on_reported_split": self.selected_on_reported_split,
            "provenance": dict(self.provenance),
            "metrics": {
                model: metrics.to_dict(self.labels, devices)
                for model, metrics in self.metrics.items()
            },
        }
        if self.fidelity is not None:
            values["fidelity"] = self.fidelity.to_dict()
        return values


def confusion_file(model: str) -> str:
    """Name of the figure of a model's confusion matrix."""
    return f"confusion-{model}.png"


def printable(text: str) -> str:
    """``text`` with what moves a cursor or hides escaped: safe in a terminal and on a page."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return f"{value:,}" if type(value) is int else str(value)
