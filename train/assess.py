"""Measure a saved model on one official fold: float, QAT, or INT8 in device arithmetic."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from firmware_ref import frontend, graph
from firmware_ref.arch import layers
from firmware_ref.classify import Classifier
from firmware_ref.errors import InputError
from firmware_ref.manifest import read_checkpoint_manifest
from train import checkpoint, loop, qat_checkpoint
from train.data import Dataset, Progress, extract
from train.evaluate import Metrics, measure, module_probabilities
from train.model import build_model


def assess(
    path: Path, dataset: Dataset, fold: int | None, progress: Progress
) -> dict[str, Metrics]:
    """Metrics by model kind (``float``, ``qat``, ``int8``) on every window of ``fold``.

    None is the fold that the model says it never heard.

    Raises `InputError` where the model's labels are not the dataset's, or where a checkpoint
    says that it was trained on that fold.
    """
    if path.suffix == ".tflite":
        return {"int8": _measure_int8(path, dataset, fold, progress)}
    module: nn.Module
    if read_checkpoint_manifest(path)["stage"] == qat_checkpoint.STAGE:
        saved, module = qat_checkpoint.load(path)
    else:
        saved = checkpoint.load(path, "float")
        _check_size(saved, str(path))
        module = build_model(saved.network)
        loop.load_module(module, saved.tensors, f"checkpoint {str(path)!r}")
    wanted = saved.metadata
    fold = _check_fold(str(path), wanted.test_fold, fold)
    _check_labels(list(wanted.labels), dataset)
    data = extract(dataset.split(fold)[1], wanted.features, progress=progress)
    x = frontend.network_input(data.features, wanted.mean, wanted.std)
    return {
        saved.manifest["stage"]: measure(module_probabilities(module, x), data.labels, data.clips)
    }


def _measure_int8(path: Path, dataset: Dataset, fold: int | None, progress: Progress) -> Metrics:
    """The flatbuffer through `firmware_ref`: the numbers a device computes."""
    classifier = Classifier(graph.read(path))
    fold = _check_fold(str(path), classifier.metadata.test_fold, fold)
    _check_labels(list(classifier.metadata.labels), dataset)
    data = extract(dataset.split(fold)[1], classifier.metadata.features, progress=progress)
    probabilities = classifier.probabilities(classifier.quantize(data.features))
    return measure(probabilities, data.labels, data.clips)


def _check_size(saved: checkpoint.Checkpoint, path: str) -> None:
    """Refuse a network of more parameters than the file holds before any of it is built."""
    claimed = sum(layer.parameters for layer in layers(saved.network))
    held = sum(tensor.size for tensor in saved.tensors.values())
    if claimed > held:
        raise InputError(
            f"checkpoint {path!r} claims {claimed:,} parameters and holds {held:,} numbers; "
            "restore the file"
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


def _check_labels(labels: list[str], dataset: Dataset) -> None:
    if labels != list(dataset.labels):
        raise InputError(
            f"the model's labels {labels} are not those of {dataset.name}, "
            f"{list(dataset.labels)}; use the data it was trained for"
        )
