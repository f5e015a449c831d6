"""From recordings to windows of log-mel features: in parallel, once, through the cache."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import joblib
import numpy as np
import scipy.fft
from joblib.externals.loky.process_executor import TerminatedWorkerError

from firmware_ref import fixed_frontend
from firmware_ref.audio import is_active, read_audio, windows
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, log_mel
from train.cache import Contents, Entry, store
from train.dataset import Recording
from train.impulse_response import heard_through, read_response
from train.pitch_shift import pitch_shift, speed

# What a worker takes at once; fewer recordings than two such lots are not worth starting workers.
LOT = 16
# Overlapping windows of a long recording would take many times its memory.
WINDOWS_AT_ONCE = 256
# What is kept in it is computed in single precision: its steps are a thousand times as large.
HALF = "float16"

Item = TypeVar("Item")
Result = TypeVar("Result")
# Shows how far an iteration has come: items, what they are, how many.
Progress = Callable[[Iterable[Item], str, int], Iterable[Item]]


def no_progress(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Shows nothing."""
    return items


@dataclass(frozen=True)
class Cut:
    """How a recording becomes windows, and how exactly they are kept.

    Without ``hop_samples``: the deployed cut, every window. Training windows may be kept in half
    precision, and are then computed in single; figures come from the device's own integers, which
    single precision holds (`firmware_ref.fixed_frontend`).
    """

    hop_samples: int | None = None
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Variation:
    """One way in which every recording is heard: as it is, shifted in pitch, or corrected.

    ``gains`` multiply the spectrum of each device, (window_samples / 2 + 1,).
    """

    semitones: float = 0.0
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)

    def digest(self, device: str) -> str:
        """What this variation adds to the identity of a recording of ``device``."""
        gain = self.gains.get(device)
        return "" if gain is None else hashlib.sha256(gain.astype("<f8").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Extracted:
    """Windows of recordings: row ``entries[i].first`` and on of ``log_mels`` are of the i-th.

    ``log_mels`` is (N, F, T), mapped from the cache; ``speed`` by how much faster than recorded
    they play, 1 where only their spectrum differs.
    """

    log_mels: np.ndarray
    entries: tuple[Entry, ...]
    speed: float = 1.0


class BadRecordingsError(InputError):
    """Recordings that cannot be used, by place in the list, each with the reason."""

    def __init__(self, reasons: Mapping[int, str], total: int) -> None:
        self.reasons = reasons
        first = next(iter(reasons.values()))
        super().__init__(
            f"{len(reasons):,} of {total:,} recordings cannot be used, the first: {first}; mend "
            "them, or leave them out with --skip-bad"
        )


def extract(
    recordings: Sequence[Recording],
    definition: FeatureDefinition,
    cut: Cut,
    variation: Variation,
    cache: Path,
    progress: Progress = no_progress,
) -> Extracted:
    """Windows of every recording, from the cache where they are in it.

    Raises `BadRecordingsError` where some are missing or damaged, after all others were extracted.
    """
    recipe = {
        "features": definition.to_dict(),
        "hop_samples": cut.hop_samples,
        "semitones": variation.semitones,
    }
    shape = (definition.mel_bands, definition.frames)
    told = progress(recordings, "reading", len(recordings))
    keys, bad = _keys(told, variation, Contents(cache))
    with store(cache, recipe, shape, cut.dtype) as found:
        wanted = [i for i, key in keys.items() if key not in found.entries]
        tasks = [_Task(recordings[i], definition, cut, variation) for i in wanted]
        with contextlib.closing(in_parallel(_Task.compute, tasks)) as computed:
            results = progress(computed, "features", len(tasks))
            for i, result in zip(wanted, results, strict=True):
                if isinstance(result, str):
                    bad[i] = result
                elif keys[i] not in found.entries:
                    found.add(keys[i], *result)
        if not bad:
            entries = tuple(found.entries[key] for key in keys.values())
            return Extracted(found.windows(), entries, speed(variation.semitones))
    raise BadRecordingsError(dict(sorted(bad.items())), len(recordings))


def _keys(
    recordings: Iterable[Recording], variation: Variation, contents: Contents
) -> tuple[dict[int, str], dict[int, str]]:
    """What the windows of each recording depend on, by its place; and what cannot be read."""
    keys, bad = dict[int, str](), dict[int, str]()
    for i, recording in enumerate(recordings):
        paths = [path for path in (recording.path, recording.response) if path is not None]
        try:
            if missing := [path for path in paths if not path.is_file()]:
                bad[i] = f"{str(missing[0])!r} is not a file"
                continue
            parts = [contents.digest(path) for path in paths]
        except OSError as error:
            bad[i] = f"{str(error.filename)!r} cannot be read: {error.strerror}"
            continue
        keys[i] = ":".join([*parts, variation.digest(recording.device)])
    return keys, bad


@dataclass(frozen=True)
class _Task:
    recording: Recording
    definition: FeatureDefinition
    cut: Cut
    variation: Variation

    def compute(self) -> tuple[np.ndarray, np.ndarray] | str:
        """(n, F, T) windows in the dtype of the cut, and which are active; or why not."""
        try:
            return self._windows()
        except InputError as error:
            return str(error)

    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        recording, definition = self.recording, self.definition
        samples = heard(recording, definition)
        if self.variation.semitones:
            samples = pitch_shift(samples, self.variation.semitones, definition.sample_rate_hz)
        parts = windows(samples, definition, self.cut.hop_samples)
        starts = range(0, len(parts), WINDOWS_AT_ONCE)
        blocks = [parts[start : start + WINDOWS_AT_ONCE] for start in starts]
        log_mels = np.concatenate([self._log_mels(block) for block in blocks])
        return log_mels, np.concatenate([is_active(block) for block in blocks])

    def _log_mels(self, parts: np.ndarray) -> np.ndarray:
        definition = self.definition
        pcm = fixed_frontend.pcm16(parts)  # a device hears no more
        gain = self.variation.gains.get(self.recording.device)
        if gain is None and self.cut.dtype != HALF:
            log_mels = fixed_frontend.as_reals(fixed_frontend.log_mel(pcm))
        else:
            sound = pcm.astype(np.float32) * np.float32(2.0**-15)
            log_mels = log_mel(sound, definition, gain, np.float32, scipy.fft.rfft)
        return log_mels.astype(self.cut.dtype)


def heard(recording: Recording, definition: FeatureDefinition) -> np.ndarray:
    """Samples of a recording, (n,) float32, through its impulse response where it has one."""
    samples = read_audio(recording.path, definition.sample_rate_hz)
    if recording.response is None:
        return samples
    return heard_through(samples, read_response(recording.response, definition.sample_rate_hz))


def in_parallel(
    compute: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Result, None, None]:
    """What ``compute`` makes of each item, in order; in other processes where there are many.

    ``compute`` and its results are pickled. Raises `MemoryError` where a process was killed.
    """
    lots = [items[start : start + LOT] for start in range(0, len(items), LOT)]
    if len(lots) < 2:
        yield from map(compute, items)
        return
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
        results = parallel(joblib.delayed(_lot)(compute, lot) for lot in lots)
        try:
            yield from itertools.chain.from_iterable(results)
        except TerminatedWorkerError:
            raise MemoryError from None
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that results nobody waits for are dropped
                results.close()


def _lot(compute: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [compute(item) for item in items]
