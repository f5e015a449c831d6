"""How good a model is: by window, clip, class and device, and how sure that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.errors import InputError
from firmware_ref.frontend import softmax
from train.loop import network_input

# A wrong, certain prediction costs log(1e-15), not infinity.
SMALLEST_PROBABILITY = 1e-15
CONFIDENCE_PERCENT = 95


@dataclass(frozen=True)
class Group:
    """Clips of one class or device: accuracy in [0, 1], log-loss in nats; None without clips."""

    clips: int
    accuracy: float | None
    log_loss: float | None


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals, lowest and highest, from ``resamples`` draws of ``sources``.

    Accuracies in [0, 1], log-losses in nats; the names are those of `Metrics`.
    """

    clip_accuracy: tuple[float, float]
    clip_log_loss: tuple[float, float]
    macro_accuracy: tuple[float, float]
    macro_log_loss: tuple[float, float]
    window_accuracy: tuple[float, float]
    window_log_loss: tuple[float, float]
    _: KW_ONLY
    sources: int
    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Metrics:
    """Accuracies in [0, 1], log-losses in nats, confusion[true, predicted] in clips.

    ``classes`` and ``devices`` are in the order of their numbers; ``seen`` says which devices were
    heard in training. ``by_source`` has how many clips each source has, and how many are right.
    """

    windows: int
    clips: int
    window_accuracy: float
    window_log_loss: float
    clip_accuracy: float
    clip_log_loss: float
    confusion: np.ndarray
    classes: tuple[Group, ...]
    devices: tuple[Group, ...]
    seen: tuple[bool, ...]
    intervals: Intervals | None = None
    by_source: tuple[tuple[int, int], ...] = ()

    @property
    def macro(self) -> Group:
        """The mean over classes: the ``average`` of the report's Table 1."""
        return average(self.classes)

    @property
    def seen_devices(self) -> Group:
        """The mean over the devices heard in training."""
        return average(d for d, seen in zip(self.devices, self.seen, strict=True) if seen)

    @property
    def unseen_devices(self) -> Group:
        """The mean over the devices never heard in training."""
        return average(d for d, seen in zip(self.devices, self.seen, strict=True) if not seen)

    def to_dict(self, labels: Sequence[str], devices: Sequence[str] = ()) -> dict[str, Any]:
        """Plain values for JSON: class-wise by label, device-wise where ``devices`` are named."""
        values = {
            "windows": self.windows,
            "clips": self.clips,
            "window_accuracy": self.window_accuracy,
            "window_log_loss": self.window_log_loss,
            "clip_accuracy": self.clip_accuracy,
            "clip_log_loss": self.clip_log_loss,
            "macro_accuracy": self.macro.accuracy,
            "macro_log_loss": self.macro.log_loss,
            **_by_name("class", labels, self.classes),
            "confusion": self.confusion.tolist(),
        }
        if devices:
            values |= _by_name("device", devices, self.devices)
            named = zip(devices, self.seen, strict=True)
            values["seen_devices"] = [name for name, seen in named if seen]
            for name, group in (("seen", self.seen_devices), ("unseen", self.unseen_devices)):
                values |= {f"{name}_accuracy": group.accuracy, f"{name}_log_loss": group.log_loss}
        if self.intervals is not None:
            values["intervals"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(self.intervals).items()
            }
        return values


def _by_name(kind: str, names: Sequence[str], groups: Sequence[Group]) -> dict[str, Any]:
    pairs = list(zip(names, groups, strict=True))
    return {
        f"{kind}_clips": {name: group.clips for name, group in pairs},
        f"{kind}_accuracy": {name: group.accuracy for name, group in pairs},
        f"{kind}_log_loss": {name: group.log_loss for name, group in pairs},
    }


def average(groups: Iterable[Group]) -> Group:
    """Mean figures, each group weighing the same; those without clips are left out."""
    found = [(g.clips, g.accuracy, g.log_loss) for g in groups if g.clips]
    if not found:
        return Group(0, None, None)
    clips, accuracy, log_loss = np.array(found, np.float64).T
    return Group(int(clips.sum()), float(accuracy.mean()), float(log_loss.mean()))


def measure(
    probabilities: np.ndarray,
    labels: np.ndarray,
    clips: np.ndarray,
    devices: np.ndarray | None = None,
    seen: Sequence[bool] = (True,),
) -> Metrics:
    """Metrics from (N, classes) window probabilities; a clip is the mean of its windows.

    ``labels``, ``clips`` and ``devices`` are (N,) integers: class, clip and recording device of
    each window. The same clip through another device is another clip. ``seen`` has an entry for
    every device: whether it was heard in training. Raises `InputError` where a probability is not
    a number.
    """
    if bad := int((~np.isfinite(probabilities)).any(axis=1).sum()):
        raise InputError(
            f"the model gives no probabilities on {bad} of {len(probabilities)} windows: not a "
            "number; train it again, with a lower learning rate"
        )
    by_clip, first = _clip_means(probabilities, clips, devices)
    truth = labels[first]
    clip_devices = np.zeros(len(first), np.int64) if devices is None else devices[first]
    window_scores, scores = _scores(probabilities, labels), _scores(by_clip, truth)
    classes = probabilities.shape[1]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth, by_clip.argmax(axis=1)), 1)
    return Metrics(
        windows=len(probabilities),
        clips=len(by_clip),
        window_accuracy=float(window_scores[:, 1].mean()),
        window_log_loss=float(window_scores[:, 2].mean()),
        clip_accuracy=float(scores[:, 1].mean()),
        clip_log_loss=float(scores[:, 2].mean()),
        confusion=confusion,
        classes=_groups(scores, truth, classes),
        devices=_groups(scores, clip_devices, len(seen)),
        seen=tuple(seen),
    )


def intervals(
    probabilities: np.ndarray,
    labels: np.ndarray,
    clips: np.ndarray,
    devices: np.ndarray | None = None,
    sources: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Percentile bootstrap (Efron 1979) of the arguments of `measure`.

    ``sources``, (N,), is what each window was cut from. Sources are drawn, not windows or clips:
    what shares one, such as a clip through nine devices, is no independent observation. Without
    ``sources``, a clip number is one.
    """
    by_clip, first = _clip_means(probabilities, clips, devices)
    classes = probabilities.shape[1]
    names, source = np.unique(clips if sources is None else sources, return_inverse=True)
    # Sums over the clips of each class, and, last, over windows: how many, correct, loss.
    sums = np.zeros((len(names), classes + 1, 3))
    np.add.at(sums, (source[first], labels[first]), _scores(by_clip, labels[first]))
    np.add.at(sums, (source, classes), _scores(probabilities, labels))
    flat, rng = sums.reshape(len(names), -1), np.random.default_rng(seed)
    totals = np.empty((resamples, flat.shape[1]))
    for total in totals:
        drawn = rng.integers(len(names), size=len(names))
        total[:] = np.bincount(drawn, minlength=len(names)) @ flat
    ends = _ends(_figures(totals.reshape(resamples, classes + 1, 3)))
    pairs = ((float(low), float(high)) for low, high in ends.T)
    return Intervals(*pairs, sources=len(names), resamples=resamples, seed=seed)


def _figures(totals: np.ndarray) -> np.ndarray:
    """Figures (R, 6) in the order of `Intervals` from the sums of `intervals`, (R, classes + 1, 3).

    The mean over classes is that over the classes drawn, as in `average`.
    """
    by_class, by_window = totals[:, :-1], totals[:, -1]
    over_clips, present = by_class.sum(axis=1), by_class[:, :, 0] > 0
    class_means = by_class[:, :, 1:] / np.maximum(by_class[:, :, :1], 1)
    return np.concatenate(
        [
            over_clips[:, 1:] / over_clips[:, :1],
            class_means.sum(axis=1) / present.sum(axis=1, keepdims=True),
            by_window[:, 1:] / by_window[:, :1],
        ],
        axis=1,
    )


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    clips: np.ndarray,
    devices: np.ndarray | None = None,
    seen: Sequence[bool] = (True,),
    sources: np.ndarray | None = None,
) -> Metrics:
    """What is reported: `measure` with the confidence `intervals`, and clips `by_source`."""
    found = measure(probabilities, labels, clips, devices, seen)
    sure = intervals(probabilities, labels, clips, devices, sources)
    right = by_source(probabilities, labels, clips, devices, sources)
    return dataclasses.replace(found, intervals=sure, by_source=right)


def by_source(
    probabilities: np.ndarray,
    labels: np.ndarray,
    clips: np.ndarray,
    devices: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> tuple[tuple[int, int], ...]:
    """Clips and right ones of each source, in the order of the sources' names."""
    means, first = _clip_means(probabilities, clips, devices)
    names, source = np.unique(clips if sources is None else sources, return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, source[first], _scores(means, labels[first])[:, :2])
    return tuple((int(count), int(right)) for count, right in sums)


def paired_interval(
    own: np.ndarray, other: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the accuracy of ``own`` less that of ``other``, both `by_source`.

    (sources, 2) each, of the same clips. Every draw of sources is one for both (Efron 1979): what
    is hard for either does not count as a difference.
    """
    rng, count = np.random.default_rng(seed), len(own)
    drawn = rng.integers(count, size=(resamples, count))
    difference = (own[:, 1] - other[:, 1])[drawn].sum(axis=1) / own[:, 0][drawn].sum(axis=1)
    low, high = _ends(difference)
    return float(low), float(high)


def _ends(draws: np.ndarray) -> np.ndarray:
    """Where the middle `CONFIDENCE_PERCENT` of each column (R, ...) begin and end, (2, ...)."""
    tail = (100 - CONFIDENCE_PERCENT) / 2
    return np.percentile(draws, [tail, 100 - tail], axis=0)


def _clip_means(
    probabilities: np.ndarray, clips: np.ndarray, devices: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities of each clip on each device, (clips, classes), and its first window."""
    keys = clips[:, None] if devices is None else np.stack([clips, devices], axis=1)
    _, first, clip, count = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    total = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(total, clip, probabilities)
    return total / count[:, None], first


def _scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One (to count), correct and log-loss of each row, (N, 3) float64."""
    chosen = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(chosen, SMALLEST_PROBABILITY))
    correct = probabilities.argmax(axis=1) == labels
    return np.stack([np.ones(len(labels)), correct, loss], axis=1)


def _groups(scores: np.ndarray, numbers: np.ndarray, count: int) -> tuple[Group, ...]:
    """Figures of the clips of each of ``count`` classes or devices, numbered from 0."""
    parts = [scores[numbers == number] for number in range(count)]
    assert sum(map(len, parts)) == len(scores), "a class or device without a name"
    return tuple(
        Group(len(part), float(part[:, 1].mean()), float(part[:, 2].mean()))
        if len(part)
        else Group(0, None, None)
        for part in parts
    )


def module_logits(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """Logits, (N, classes) float32, of a torch module on (N, F, T, C) network input."""
    module.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    outputs: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(inputs), batch):
            outputs.append(module(network_input(inputs[start : start + batch]).to(device)).cpu())
    return torch.cat(outputs).numpy()


def module_probabilities(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """Class probabilities, (N, classes) float64, of a torch module on (N, F, T, C) input."""
    return softmax(module_logits(module, inputs, batch))
