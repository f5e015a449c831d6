"""From a configuration and recordings to what a run trains, validates and tests on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from firmware_ref.errors import InputError, write_whole
from train import distributed, spectrum_correction
from train.batches import TrainingSet
from train.cgt import balanced_weights
from train.config import AugmentConfig, Config
from train.data import EpochSampler, InputNormalization, Source, Windows, gather
from train.dataset import Dataset, Recording, hold_out
from train.extract import Cut, Variation
from train.kd import softened

CORRECTION_FILE, CORRECTION_PLOT = "spectrum-correction.npz", "spectrum-correction.png"
TRAINING_PRECISION = "float16"


@dataclass(frozen=True, eq=False)
class Prepared:
    """Windows by use, and what was measured on those for training.

    ``plain`` are the training windows as recorded, in the order of their ``moments``; ``train``
    holds their variations too, drawn with the probabilities ``shares``.
    ``validation`` chooses an epoch; None keeps the last. ``names`` are the recordings that
    ``train.clips`` counts, ``train_devices`` the devices that ``train.devices`` numbers;
    ``left_out`` recordings of all kinds could not be read.
    """

    train: Windows
    plain: Windows
    shares: tuple[float, ...]
    names: tuple[str, ...]
    train_devices: tuple[str, ...]
    validation: Windows | None
    test: Windows
    test_sources: tuple[str, ...]
    normalization: InputNormalization
    left_out: int

    def training_set(
        self, config: Config, device: torch.device, teacher: Tensor | None = None
    ) -> TrainingSet:
        """What `train.loop.fit` draws batches from, on ``device``.

        ``teacher`` are logits of every training window, (N, classes).
        """
        sampler = EpochSampler(self.train, config.data.windows_per_clip, self.shares)
        data = TrainingSet.of(
            self.train,
            sampler,
            self.normalization,
            config.network.classes,
            len(self.train_devices),
            device,
        )
        if teacher is None:
            return data
        soft = softened(teacher.to(device), config.distillation.temperature)
        return dataclasses.replace(data, teacher=soft)


@dataclass(frozen=True)
class Split:
    """Recordings to learn from, to choose an epoch by, and to test on."""

    train: list[Recording]
    validation: list[Recording]
    test: list[Recording]


def split(config: Config, dataset: Dataset, test_fold: int) -> Split:
    """The recordings by use; refuses those that the configuration cannot train on."""
    train, test = dataset.split(test_fold)
    _check_heard(dataset, train)
    validation: list[Recording] = []
    if config.data.selection == "validation":
        train, validation = hold_out(train, config.data.validation_fraction)
    if config.cross_gradient.epsilon:
        balanced_weights(list(Counter(r.device for r in train).values()))
    return Split(train, validation, test)


def prepare(
    config: Config,
    dataset: Dataset,
    recordings: Split,
    source: Source,
    out: Path,
    warn: Callable[[str], None],
) -> Prepared:
    """Extract the features of recordings, and measure the input's normalisation.

    Where spectrum correction is on, its coefficients are measured on the training recordings and
    written to ``out`` with a plot.
    """
    cut = training_cut(config, source)
    train_clips = source.usable(recordings.train, cut, warn)
    _check_heard(dataset, train_clips)
    variations = _variations(config.augment, train_clips, source, out)
    extracted = [source.extract(train_clips, cut, variation) for variation, _ in variations]
    train_devices = tuple(d for d in dataset.devices if any(r.device == d for r in train_clips))
    train = gather(train_clips, train_devices, extracted, active_only=True)
    plain = gather(train_clips, train_devices, extracted[:1], active_only=True)
    test_clips = source.usable(recordings.test, Cut(), warn)
    if absent := dataset.absent(test_clips):
        warn(f"the test split has no recording of {absent}; no figure covers that")
    test = _evaluation(test_clips, dataset, source)
    validation = test if config.data.selection == "test" else None
    kept = len(train_clips) + len(test_clips) + len(recordings.validation)
    if recordings.validation:
        clips = source.usable(recordings.validation, Cut(), warn)
        validation = _evaluation(clips, dataset, source)
        kept += len(clips) - len(recordings.validation)
    return Prepared(
        train,
        plain,
        tuple(share for _, share in variations),
        tuple(r.name for r in train_clips),
        train_devices,
        validation,
        test,
        tuple(r.source for r in test_clips),
        InputNormalization.measure(plain, config.network.input_channels),
        sum(map(len, (recordings.train, recordings.validation, recordings.test))) - kept,
    )


def _check_heard(dataset: Dataset, train: Sequence[Recording]) -> None:
    """Refuse to train a class without a recording of it, which the model would only ever guess."""
    if absent := dataset.absent(train):
        raise InputError(
            f"{dataset.name} has no training recording of {absent} in this split; give "
            "another --fold, or add recordings"
        )


def training_cut(config: Config, source: Source) -> Cut:
    """How training recordings become windows."""
    hop = round(config.data.train_hop_seconds * source.definition.sample_rate_hz)
    return Cut(hop, TRAINING_PRECISION)


def _evaluation(clips: Sequence[Recording], dataset: Dataset, source: Source) -> Windows:
    """Every window of the deployed cut."""
    return gather(clips, dataset.devices, [source.extract(clips, Cut())], active_only=False)


def _variations(
    config: AugmentConfig, train_clips: Sequence[Recording], source: Source, out: Path
) -> list[tuple[Variation, float]]:
    """Every way in which training recordings are heard, with its probability."""
    pitch, corrected = config.pitch_shift_probability, config.spectrum_correction_probability
    found = [(Variation(), 1 - pitch - corrected)]
    if pitch:
        steps = config.pitch_shift_semitones
        found += [(Variation(semitones=s), pitch / len(steps)) for s in steps]
    if corrected:
        gains = _gains(config, train_clips, source)
        write_correction(out, gains, source, train_clips)
        found.append((Variation(gains=gains), corrected))
    return found


def _gains(
    config: AugmentConfig, train_clips: Sequence[Recording], source: Source
) -> dict[str, np.ndarray]:
    """Coefficients of every training device, read or measured."""
    if not config.spectrum_correction_file:
        return spectrum_correction.measure(
            train_clips, source.definition, config.spectrum_correction_moments, source.progress
        )
    path = Path(config.spectrum_correction_file)
    gains = spectrum_correction.load(path, source.definition, train_clips)
    if missing := sorted({r.device for r in train_clips} - gains.keys()):
        raise InputError(
            f"spectrum correction {str(path)!r} lacks device {missing[0]!r} of the training split; "
            "write it again with python -m train spectrum-correction"
        )
    return gains


def write_correction(
    out: Path, gains: dict[str, np.ndarray], source: Source, recordings: Sequence[Recording]
) -> None:
    """Coefficients, measured on ``recordings``, and their plot into a folder."""
    if not distributed.is_first():
        return
    spectrum_correction.save(out / CORRECTION_FILE, gains, source.definition, recordings)
    write_whole(out / CORRECTION_PLOT, spectrum_correction.plot(gains, source.definition))
