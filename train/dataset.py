"""Labelled recordings, and the splits that keep a figure honest."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_ref.errors import InputError

# The device of data that names none.
ONE_DEVICE = "A"


@dataclass(frozen=True)
class Recording:
    """One clip: what it is, which device recorded it, and what it shares with others.

    ``name`` is the dataset's own, unique. ``source`` is the place or the original recording it was
    cut from: clips that share one never lie on both sides of a split. Clips of equal ``moment``
    are the same sound through several devices. ``response`` is an impulse response it is heard
    through.
    """

    name: str
    path: Path
    label: int
    fold: int
    source: str
    device: str = ONE_DEVICE
    moment: str = ""
    response: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Labelled recordings with folds; ``unseen_devices`` are kept out of all training.

    ``same_folds`` names datasets of the same clips in the same folds.
    """

    name: str
    labels: tuple[str, ...]
    recordings: tuple[Recording, ...]
    unseen_devices: frozenset[str] = frozenset()
    same_folds: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices in the order of their names, shorter names first: A, B, C, S1, S2, ..."""
        return tuple(sorted({r.device for r in self.recordings}, key=lambda d: (len(d), d)))

    @property
    def folds(self) -> str:
        """A hash of which sources lie in which fold: what makes figures of two models one test."""
        dealt = sorted({(r.source, r.fold) for r in self.recordings})
        return hashlib.sha256(json.dumps(dealt).encode()).hexdigest()[:16]

    def split(self, test_fold: int) -> tuple[list[Recording], list[Recording]]:
        """Training and test recordings by whole folds.

        Raises `InputError` for a fold that is not there, and for a source on both sides: a model
        would be tested in places it has heard.
        """
        folds = sorted({r.fold for r in self.recordings})
        if test_fold not in folds:
            raise InputError(f"fold={test_fold} is not in {self.name}; allowed: {folds}")
        if len(folds) < 2:
            raise InputError(f"{self.name} has only fold {test_fold}; two at least are needed")
        train = [
            r
            for r in self.recordings
            if r.fold != test_fold and r.device not in self.unseen_devices
        ]
        test = [r for r in self.recordings if r.fold == test_fold]
        if shared := sorted({r.source for r in train} & {r.source for r in test}):
            raise InputError(
                f"{self.name} fold={test_fold} leaks: {len(shared)} sources lie in training and "
                f"test, {shared[0]!r} among them; give each source one fold"
            )
        return train, test

    def absent(self, recordings: Sequence[Recording]) -> str:
        """The labels that none of these recordings has, to be read; empty where all are there."""
        there = {r.label for r in recordings}
        return ", ".join(repr(name) for n, name in enumerate(self.labels) if n not in there)


def hold_out(
    recordings: Sequence[Recording], fraction: float
) -> tuple[list[Recording], list[Recording]]:
    """Split training recordings into those to learn from and those to choose a checkpoint by.

    Whole sources go one way or the other: in the order of their names' SHA-256, which no seed
    moves, until ``fraction`` of the clips of a class is held out. Raises `InputError` where a
    class would have nothing left to learn from.
    """
    held: set[str] = set()
    for label in sorted({r.label for r in recordings}):
        clips = Counter(r.source for r in recordings if r.label == label)
        wanted = math.ceil(fraction * clips.total())
        apart = sum(count for source, count in clips.items() if source in held)
        for source in sorted(clips.keys() - held, key=_digest):
            if apart >= wanted:
                break
            held.add(source)
            apart += clips[source]
    learn = [r for r in recordings if r.source not in held]
    for label in sorted({r.label for r in recordings} - {r.label for r in learn}):
        count = sum(r.label == label for r in recordings)
        raise InputError(
            f"data.validation_fraction={fraction} leaves class {label} nothing to learn from: "
            f"its {count} clips share too few sources; lower it"
        )
    return learn, [r for r in recordings if r.source in held]


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()
