"""Windows of features as training and evaluation see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, stack_deltas
from firmware_ref.frontend import network_input
from train.dataset import Recording
from train.extract import (
    BadRecordingsError,
    Cut,
    Extracted,
    Progress,
    Variation,
    extract,
    no_progress,
)

# Windows whose features are held in memory at once.
CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Windows:
    """One-second windows: what each is, and where its log-mel lies.

    ``maps`` hold (rows, F, T) log-mels, one for each variation of the recordings; window n is row
    ``row[n]`` of map ``variation[n]``. ``labels``, ``devices`` and ``clips`` (N,) are class, index
    of the device and index of the recording. ``moments`` (N,) numbers what is heard, clip by clip:
    variations of one window share it.
    """

    maps: tuple[np.ndarray, ...]
    variation: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    devices: np.ndarray
    clips: np.ndarray
    moments: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def log_mels(self, index: np.ndarray) -> np.ndarray:
        """(B, F, T) log-mels of windows by number (B,), in the precision they are kept in."""
        variation, row = self.variation[index], self.row[index]
        if len(self.maps) == 1:
            return self.maps[0][row]
        found = np.empty((len(index), *self.maps[0].shape[1:]), self.maps[0].dtype)
        for number in np.unique(variation):
            chosen = variation == number
            found[chosen] = self.maps[number][row[chosen]]
        return found

    def chunks(self) -> Iterator[np.ndarray]:
        """All log-mels in order, float32, `CHUNK` windows at a time."""
        for start in range(0, len(self), CHUNK):
            chosen = np.arange(start, min(start + CHUNK, len(self)))
            yield self.log_mels(chosen).astype(np.float32)


@dataclass(frozen=True)
class InputNormalization:
    """Per-channel mean and standard deviation of the training features; travels with a model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measure(cls, windows: Windows, channels: int) -> InputNormalization:
        """Of the first ``channels`` features of all windows, in float64."""
        total, square = np.zeros(channels), np.zeros(channels)
        for log_mels in windows.chunks():
            features = np.moveaxis(stack_deltas(log_mels), -1, 0)[:channels]
            for channel, values in enumerate(features):
                total[channel] += values.sum(dtype=np.float64)
                square[channel] += np.square(values, dtype=np.float64).sum()
        count = len(windows) * math.prod(windows.maps[0].shape[1:])
        mean = total / count
        std = np.sqrt(np.maximum(square / count - np.square(mean), 0))
        as_float32 = np.array([mean, std], np.float32)
        if not (as_float32[1] > 0).all():
            raise InputError("a feature never changes: the training recordings are all silent")
        return cls(*(tuple(float(v) for v in row) for row in as_float32))

    def inputs(self, windows: Windows) -> Iterator[np.ndarray]:
        """Network input of all windows in order, (n, F, T, C) float32, `CHUNK` at a time."""
        for log_mels in windows.chunks():
            yield network_input(stack_deltas(log_mels), self.mean, self.std)


def over_windows(
    windows: Windows,
    normalization: InputNormalization,
    compute: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """What ``compute`` makes of the network input of every window, one after another."""
    return np.concatenate([compute(inputs) for inputs in normalization.inputs(windows)])


def over_log_mels(windows: Windows, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What ``compute`` makes of the log-mels (n, F, T) of every window, one after another."""
    return np.concatenate([compute(log_mels) for log_mels in windows.chunks()])


def gather(
    recordings: Sequence[Recording],
    devices: Sequence[str],
    extracted: Sequence[Extracted],
    active_only: bool,
) -> Windows:
    """Windows of recordings, clip by clip, from one or more variations of the same recordings.

    Each variation of a moment is the window that holds its sound, or most of it: in a recording
    played faster it comes earlier; one played slower lacks the end, and there the first variation
    stands for it. With ``active_only``, windows that are padding (below -60 dBFS) in the first
    variation are left out of all, unless a recording has nothing else.
    """
    plain = extracted[0].entries
    count = np.array([entry.count for entry in plain])
    clips = np.repeat(np.arange(len(plain)), count)
    place = np.arange(len(clips)) - np.repeat(np.cumsum(count) - count, count)
    if active_only:
        active = np.concatenate([entry.active for entry in plain])
        silent = np.bincount(clips, active) == 0
        keep = active | silent[clips]
        clips, place = clips[keep], place[keep]
    places = np.array([np.rint(place / heard.speed).astype(int) for heard in extracted])
    firsts = np.array([[e.first for e in heard.entries] for heard in extracted])[:, clips]
    there = places < count[clips]
    # (moments, variations)
    rows = np.where(there, firsts + places, firsts[0] + place).T
    variation = np.where(there.T, np.arange(len(extracted)), 0).reshape(-1)
    labels = np.array([r.label for r in recordings])
    numbers = np.array([devices.index(r.device) for r in recordings])
    moments = np.repeat(np.arange(len(rows)), len(extracted))
    clips = clips[moments]
    return Windows(
        tuple(heard.log_mels for heard in extracted),
        variation,
        rows.reshape(-1),
        labels[clips],
        numbers[clips],
        clips,
        moments,
    )


@dataclass(frozen=True)
class Source:
    """Where features come from: the definition, the cache, and what to do with bad recordings."""

    definition: FeatureDefinition
    cache: Path
    skip_bad: bool = False
    progress: Progress = no_progress

    def usable(
        self, recordings: Sequence[Recording], cut: Cut, warn: Callable[[str], None]
    ) -> list[Recording]:
        """Recordings that can be read; others raise `BadRecordingsError`, or are skipped."""
        kept = list(recordings)
        try:
            self.extract(kept, cut)
        except BadRecordingsError as error:
            if not self.skip_bad:
                raise
            kept = [r for i, r in enumerate(recordings) if i not in error.reasons]
            for reason in error.reasons.values():
                warn(f"left out: {reason}")
            warn(f"left out {len(error.reasons):,} of {len(recordings):,} recordings")
        if not kept:
            raise InputError("no recording can be used; mend the data folder")
        return kept

    def extract(
        self, recordings: Sequence[Recording], cut: Cut, variation: Variation | None = None
    ) -> Extracted:
        """Windows of recordings through the cache: `train.extract.extract`."""
        return extract(
            recordings,
            self.definition,
            cut,
            variation or Variation(),
            self.cache,
            self.progress,
        )


class EpochSampler:
    """Draws the windows of an epoch: a fixed number from each clip, in random order.

    Windows are in the order of `gather`, all variations of a moment together. ``shares`` are the
    probabilities of each variation of a window; they sum to 1.
    """

    def __init__(self, windows: Windows, windows_per_clip: int, shares: Sequence[float]) -> None:
        # What is left of 1 after others were taken from it may be a rounding below 0.
        self._shares = np.maximum(shares, 0) / np.maximum(shares, 0).sum()
        self._numbers = np.arange(len(windows)).reshape(-1, len(shares))  # (moments, variations)
        self._clips = windows.clips[self._numbers[:, 0]]
        _, first, count = np.unique(self._clips, return_index=True, return_counts=True)
        self._places = first[:, None] + np.arange(windows_per_clip) % count[:, None]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of one epoch's windows; no moment twice where a clip has enough."""
        shuffled = np.lexsort((rng.random(len(self._clips)), self._clips))
        moments = shuffled[self._places]  # (clips, windows_per_clip)
        variation = rng.choice(len(self._shares), moments.shape, p=self._shares)
        return rng.permutation(self._numbers[moments, variation].reshape(-1))
