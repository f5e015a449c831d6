"""ESC-10: recordings with official folds, cut into windows of features."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_ref.audio import is_active, read_audio, windows
from firmware_ref.errors import InputError, read_bytes
from firmware_ref.features import FeatureDefinition, features

DATA_VARIABLE = "ASC_DATA"


@dataclass(frozen=True)
class Recording:
    """One clip: where it is, what it is, its official fold, and the recording it was cut from."""

    path: Path
    label: int
    fold: int
    source: str


@dataclass(frozen=True)
class Dataset:
    """Labelled recordings with cross-validation folds."""

    name: str
    labels: tuple[str, ...]
    recordings: tuple[Recording, ...]

    def split(self, test_fold: int) -> tuple[list[Recording], list[Recording]]:
        """Training and test recordings; whole folds, so that no source is in both."""
        folds = sorted({r.fold for r in self.recordings})
        if test_fold not in folds:
            raise InputError(f"fold={test_fold} is not in {self.name}; allowed: {folds}")
        if len(folds) < 2:
            raise InputError(f"{self.name} has only fold {test_fold}; two at least are needed")
        train = [r for r in self.recordings if r.fold != test_fold]
        return train, [r for r in self.recordings if r.fold == test_fold]


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
        clips = [r for r in recordings if r.label == label]
        wanted = math.ceil(fraction * len(clips))
        for source in sorted({r.source for r in clips}, key=_digest):
            if sum(r.source in held for r in clips) >= wanted:
                break
            held.add(source)
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


@dataclass(frozen=True, eq=False)
class Windows:
    """Features of one-second windows: (N, F, T, C) float32, with label and clip of each."""

    features: np.ndarray
    labels: np.ndarray
    clips: np.ndarray


def data_folder(argument: str | None) -> Path:
    """The folder of the recordings: ``--data``, or the environment variable ``ASC_DATA``."""
    folder = argument or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise InputError(f"no recordings named; give --data DIR or set {DATA_VARIABLE}=DIR")
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"data folder {folder!r} does not exist; mend --data or {DATA_VARIABLE}")
    return path


def load_dataset(name: str, folder: Path) -> Dataset:
    """Read the index of a dataset by name."""
    if name != "esc10":
        raise InputError(f"data.dataset={name!r} is unknown; allowed: esc10")
    return _esc10(folder / "esc10" if (folder / "esc10").is_dir() else folder)


def _esc10(folder: Path) -> Dataset:
    """ESC-10 by its ``meta.csv``: columns filename, label, label_id, fold, and source_id.

    Without a source_id every clip is a source of its own.
    """
    index = folder / "meta.csv"
    recordings: dict[Path, Recording] = {}
    labels: dict[int, str] = {}
    for line, row in enumerate(_rows(index), start=2):
        where = f"{str(index)!r} line {line}"
        try:
            name, label, number, fold = (row[k] for k in ("filename", "label", "label_id", "fold"))
            source = row.get("source_id") or name
            recording = Recording(folder / name, int(number), int(fold), source)
            file = recording.path.resolve()
            if not (name and label):
                raise ValueError("an empty cell")
        except (KeyError, ValueError):
            raise InputError(
                f"{where}: needs columns filename, label, label_id, fold, none empty, with whole "
                "numbers in the last two; restore the file"
            ) from None
        if not file.is_relative_to(folder.resolve()):
            raise InputError(f"{where}: {name!r} points outside the data folder")
        if file in recordings:
            raise InputError(f"{where}: {name!r} is there twice; restore the file")
        if labels.setdefault(recording.label, label) != label:
            raise InputError(f"{where}: label_id {number} has two names; restore the file")
        recordings[file] = recording
    if not recordings or sorted(labels) != list(range(len(labels))):
        raise InputError(f"{str(index)!r} must number its labels 0, 1, 2, ...; restore the file")
    names = tuple(labels[i] for i in range(len(labels)))
    if len(set(names)) < len(names):
        raise InputError(f"{str(index)!r} gives two labels one name: {names}; restore the file")
    return Dataset("ESC-10", names, tuple(recordings.values()))


def _rows(index: Path) -> list[dict[str, str]]:
    """Rows by column; a cell that is missing is empty."""
    text = read_bytes(index, 16 * 2**20, "ESC-10 index").decode("utf-8", errors="replace")
    try:
        return list(csv.DictReader(io.StringIO(text), restval=""))
    except csv.Error as error:
        raise InputError(f"{str(index)!r} is not CSV: {error}; restore the file") from None


Progress = Callable[[Iterable[Recording], str], Iterable[Recording]]


def extract(
    recordings: Sequence[Recording],
    definition: FeatureDefinition,
    hop_seconds: float | None = None,
    progress: Progress = lambda items, title: items,
) -> Windows:
    """Features of every recording's windows.

    Without ``hop_seconds``: the deployed cut, every window (evaluation). With it: windows that
    start so far apart, without those that are padding (below -60 dBFS) unless a recording has
    nothing else (training).
    """
    hop = None if hop_seconds is None else round(hop_seconds * definition.sample_rate_hz)
    parts, labels, clips = [], [], []
    for clip, recording in enumerate(progress(recordings, "features")):
        cut = windows(read_audio(recording.path, definition.sample_rate_hz), definition, hop)
        if hop is not None:
            active = is_active(cut)
            cut = cut[active] if active.any() else cut
        parts.append(features(cut, definition))
        labels += [recording.label] * len(cut)
        clips += [clip] * len(cut)
    return Windows(np.concatenate(parts), np.array(labels), np.array(clips))


@dataclass(frozen=True)
class InputNormalization:
    """Per-channel mean and standard deviation of the training features; travels with a model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measure(cls, data: np.ndarray) -> InputNormalization:
        """From (N, F, T, C) features, in float64."""
        mean = data.mean(axis=(0, 1, 2), dtype=np.float64)
        std = data.std(axis=(0, 1, 2), dtype=np.float64)
        as_float32 = np.array([mean, std], np.float32)
        if not (as_float32[1] > 0).all():
            raise InputError("a feature never changes: the training recordings are all silent")
        return cls(*(tuple(float(v) for v in row) for row in as_float32))


class EpochSampler:
    """Draws the windows of an epoch: a fixed number from each clip, in random order."""

    def __init__(self, clips: np.ndarray, windows_per_clip: int) -> None:
        _, first, count = np.unique(clips, return_index=True, return_counts=True)
        self._ranges = list(zip(first, count, strict=True))
        self._draws = windows_per_clip

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of one epoch's windows; without repetition where a clip has enough."""
        parts = [
            first + rng.choice(count, self._draws, replace=count < self._draws)
            for first, count in self._ranges
        ]
        return rng.permutation(np.concatenate(parts))
