"""How good a model is: windows, clips, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.frontend import softmax
from train.loop import network_input

# A wrong, certain prediction costs log(1e-15) rather than infinity, as in scikit-learn.
SMALLEST_PROBABILITY = 1e-15


@dataclass(frozen=True, eq=False)
class Metrics:
    """Accuracies in [0, 1], log-losses in nats, confusion[true, predicted] in clips."""

    windows: int
    clips: int
    window_accuracy: float
    window_log_loss: float
    clip_accuracy: float
    clip_log_loss: float
    confusion: np.ndarray

    def to_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """Plain values for JSON, class-wise accuracy by label among them."""
        totals = self.confusion.sum(axis=1)
        return {
            "windows": self.windows,
            "clips": self.clips,
            "window_accuracy": self.window_accuracy,
            "window_log_loss": self.window_log_loss,
            "clip_accuracy": self.clip_accuracy,
            "clip_log_loss": self.clip_log_loss,
            "class_accuracy": {
                label: (float(self.confusion[i, i] / totals[i]) if totals[i] else None)
                for i, label in enumerate(labels)
            },
            "confusion": self.confusion.tolist(),
        }


def measure(probabilities: np.ndarray, labels: np.ndarray, clips: np.ndarray) -> Metrics:
    """Metrics from (N, classes) window probabilities; a clip is the mean of its windows.

    ``labels`` and ``clips`` are (N,): class and clip of each window.
    """
    numbers, first = np.unique(clips, return_index=True)
    by_clip = np.stack([probabilities[clips == n].mean(axis=0) for n in numbers])
    clip_labels = labels[first]
    classes = probabilities.shape[1]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (clip_labels, by_clip.argmax(axis=1)), 1)
    return Metrics(
        windows=len(probabilities),
        clips=len(by_clip),
        window_accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
        window_log_loss=_log_loss(probabilities, labels),
        clip_accuracy=float((by_clip.argmax(axis=1) == clip_labels).mean()),
        clip_log_loss=_log_loss(by_clip, clip_labels),
        confusion=confusion,
    )


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, SMALLEST_PROBABILITY)).mean())


def module_logits(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """Logits, (N, classes) float32, of a torch module on (N, F, T, C) network input."""
    module.eval()
    outputs: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(inputs), batch):
            outputs.append(module(network_input(inputs[start : start + batch])))
    return torch.cat(outputs).numpy()


def module_probabilities(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """Class probabilities, (N, classes) float64, of a torch module on (N, F, T, C) input."""
    return softmax(module_logits(module, inputs, batch))


def as_table(rows: Mapping[str, Metrics]) -> str:
    """One aligned line a model."""
    head = f"{'model':<8}{'clips':>8}{'clip acc.':>12}{'log-loss':>10}{'windows':>9}" + (
        f"{'win. acc.':>12}{'log-loss':>10}"
    )
    lines = [
        f"{name:<8}{m.clips:>8}{m.clip_accuracy:>12.2%}{m.clip_log_loss:>10.3f}{m.windows:>9}"
        f"{m.window_accuracy:>12.2%}{m.window_log_loss:>10.3f}"
        for name, m in rows.items()
    ]
    return "\n".join([head, *lines])
