"""Measure a saved model on one official fold: float, QAT, or INT8 in device arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from firmware_ref import graph
from firmware_ref.classify import Classifier
from firmware_ref.errors import InputError
from firmware_ref.manifest import ModelMetadata, read_checkpoint_manifest
from train import checkpoint, qat_checkpoint
from train.data import InputNormalization, Source, Windows, gather, over_log_mels, over_windows
from train.dataset import ONE_DEVICE, Dataset
from train.device import device_inputs
from train.evaluate import evaluate, module_probabilities
from train.extract import Cut
from train.model import build_model
from train.report import Report
from train.state import load_module


def assess(
    path: Path, dataset: Dataset, fold: int | None, source: Source, warn: Callable[[str], None]
) -> Report:
    """A model (``float``, ``qat``, ``int8``) measured on every window of ``fold``.

    None is the fold that the model says it never heard.

    Raises `InputError` where the model's labels or folds are not the dataset's, or where it says
    that it was trained on that fold.
    """
    model = _int8(path) if path.suffix == ".tflite" else _torch(path)
    fold = _check_fold(str(path), model.metadata.test_fold, fold)
    _check_dataset(str(path), model.metadata.dataset, dataset)
    _check_labels(list(model.metadata.labels), dataset)
    _check_folds(str(path), model.metadata.folds, dataset)
    train_clips, clips = dataset.split(fold)
    clips = source.usable(clips, Cut(), warn)
    windows = gather(clips, dataset.devices, [source.extract(clips, Cut())], active_only=False)
    probabilities = model.probabilities(windows)
    heard = {r.device for r in train_clips}
    if model.metadata.dataset not in (None, dataset.name):
        heard &= {ONE_DEVICE}  # all that datasets of the same clips share
    sources = np.array([r.source for r in clips])[windows.clips]
    metrics = evaluate(
        probabilities,
        windows.labels,
        windows.clips,
        windows.devices,
        [device in heard for device in dataset.devices],
        sources,
    )
    on_test = model.metadata.selected_on_test
    return Report(
        title=path.name,
        dataset=dataset.name,
        split=f"fold {fold}",
        labels=dataset.labels,
        devices=dataset.devices,
        metrics={model.kind: metrics},
        selection="the reported split itself" if on_test else "nothing on the reported split",
        selected_on_reported_split=on_test,
        provenance={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )


@dataclass(frozen=True, eq=False)
class _Model:
    """A model of some kind: what it says of itself, and its (N, classes) probabilities."""

    kind: str
    metadata: ModelMetadata
    probabilities: Callable[[Windows], np.ndarray]


def _torch(path: Path) -> _Model:
    """A checkpoint, in float or simulated INT8."""
    if read_checkpoint_manifest(path)["stage"] == qat_checkpoint.STAGE:
        saved, device = qat_checkpoint.load(path)
        heard = device_inputs(device, InputNormalization(saved.metadata.mean, saved.metadata.std))
        return _Model(
            saved.manifest["stage"],
            saved.metadata,
            lambda windows: over_log_mels(
                windows, lambda x: module_probabilities(device, heard(x))
            ),
        )
    saved = checkpoint.load(path, "float")
    checkpoint.check_size(saved, path)
    module = build_model(saved.network)
    load_module(module, saved.tensors, f"checkpoint {str(path)!r}")
    normalization = InputNormalization(saved.metadata.mean, saved.metadata.std)
    return _Model(
        saved.manifest["stage"],
        saved.metadata,
        lambda windows: over_windows(windows, normalization, partial(module_probabilities, module)),
    )


def _int8(path: Path) -> _Model:
    """The flatbuffer through `firmware_ref`: the numbers a device computes."""
    classifier = Classifier(graph.read(path))
    return _Model(
        "int8",
        classifier.metadata,
        lambda windows: over_log_mels(windows, classifier.of_log_mels),
    )


def _check_fold(path: str, unheard: int | None, fold: int | None) -> int:
    """The fold to measure on; a figure on folds that were trained on says nothing."""
    if unheard is None:
        raise InputError(f"model {path!r} does not say which fold it never heard; convert it again")
    if fold not in (None, unheard):
        raise InputError(
            f"model {path!r} kept fold {unheard} apart in training, not fold {fold}; "
            f"measure it with --fold {unheard}"
        )
    return unheard


def _check_dataset(path: str, heard: str | None, dataset: Dataset) -> None:
    """Refuse a dataset whose folds are not those that the model was trained by."""
    if heard not in (None, dataset.name, *dataset.same_folds):
        raise InputError(
            f"model {path!r} was trained on {heard!r}; its fold says nothing of {dataset.name}; "
            "name its own with --dataset"
        )


def _check_folds(path: str, folds: str | None, dataset: Dataset) -> None:
    """Refuse recordings that were dealt to other folds when the model was trained."""
    if folds not in (None, dataset.folds):
        raise InputError(
            f"model {path!r} was trained when {dataset.name} had other recordings or folds, and "
            "may have heard these; give the recordings and the table it was trained with"
        )


def _check_labels(labels: list[str], dataset: Dataset) -> None:
    if labels != list(dataset.labels):
        raise InputError(
            f"the model's labels {labels} are not those of {dataset.name}, "
            f"{list(dataset.labels)}; use the data it was trained for"
        )
