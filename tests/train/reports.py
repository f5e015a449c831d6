"""A small evaluation report that the tests of its renderings share."""

from __future__ import annotations

from typing import Any

import numpy as np

from train.evaluate import Metrics, evaluate
from train.report import Report

LABELS = ("airport", "metro_station", "tram")
DEVICES = ("A", "S1", "S4")
# One clip a window: class, device, and the probability given to each class.
CLIPS = (
    (0, 0, (0.7, 0.2, 0.1)),
    (0, 2, (0.5, 0.25, 0.25)),
    (1, 0, (0.5, 0.2, 0.3)),
    (1, 2, (0.1, 0.8, 0.1)),
    (0, 0, (0.9, 0.05, 0.05)),
    (1, 0, (0.2, 0.5, 0.3)),
)


def metrics(devices: int = 3, nudge: float = 0.0) -> Metrics:
    """Of `CLIPS`: no clip of the class tram, none through the device S1."""
    probabilities = np.array([row for _, _, row in CLIPS])
    probabilities[0] += (-nudge, nudge, 0)
    labels, numbers = (np.array([clip[i] for clip in CLIPS]) for i in (0, 1))
    if devices == 1:
        return evaluate(probabilities, labels, np.arange(6))
    return evaluate(probabilities, labels, np.arange(6), numbers, (True, True, False))


def report(**changes: Any) -> Report:
    """The models float and int8, measured alike, but for ``changes``."""
    values: dict[str, Any] = {
        "title": "Evaluation of report-125k",
        "dataset": "ESC-10-Devices",
        "split": "fold 1",
        "labels": LABELS,
        "devices": DEVICES,
        "metrics": {"float": metrics(), "int8": metrics(nudge=0.1)},
        "selection": "the last epoch; the test split selected nothing",
        "selected_on_reported_split": False,
        "provenance": {"seed": 3, "versions": {"torch": "2.13.0"}, "parameters": 125_330},
    }
    return Report(**values | changes)
