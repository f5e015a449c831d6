"""Measure a saved model on one official fold: float, QAT, or INT8 in device arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from firmware_ref import frontend, graph, scheme
from firmware_ref.classify import Classifier
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition
from firmware_ref.manifest import read_checkpoint_manifest
from train import checkpoint, loop, qat_checkpoint
from train.data import Dataset, Progress, Windows, extract
from train.evaluate import Metrics, measure, module_probabilities
from train.model import build_model


def assess(path: Path, dataset: Dataset, fold: int, progress: Progress) -> dict[str, Metrics]:
    """Metrics by model kind (``float``, ``qat``, ``int8``) on every window of ``fold``.

    Raises `InputError` where the model's labels are not the dataset's, or where a checkpoint
    says that it was trained on that fold.
    """
    if path.suffix == ".tflite":
        return {"int8": _measure_int8(path, dataset, fold, progress)}
    manifest = read_checkpoint_manifest(path)
    trained_without = manifest.get("dataset", {}).get("test_fold")
    if trained_without != fold:
        raise InputError(
            f"checkpoint {str(path)!r} was trained without fold {trained_without}, so with fold "
            f"{fold} among its training data; measure it with --fold {trained_without}"
        )
    _check_labels(manifest["labels"], dataset)
    definition = FeatureDefinition.from_dict(manifest["features"])
    data = extract(dataset.split(fold)[1], definition, progress=progress)
    normalization = manifest["input_normalization"]
    x = frontend.network_input(data.features, normalization["mean"], normalization["std"])
    stage = manifest["stage"]
    module: nn.Module
    if stage == "qat":
        module = qat_checkpoint.load(path)[1]
    else:
        saved = checkpoint.load(path, "float")
        module = build_model(saved.network)
        loop.load_module(module, saved.tensors, f"checkpoint {str(path)!r}")
    return {stage: _metrics(module_probabilities(module, x), data)}


def _measure_int8(path: Path, dataset: Dataset, fold: int, progress: Progress) -> Metrics:
    """The flatbuffer through `firmware_ref`: the numbers a device computes."""
    classifier = Classifier(graph.read(path))
    wanted = classifier.metadata
    _check_labels(list(wanted.labels), dataset)
    data = extract(dataset.split(fold)[1], wanted.features, progress=progress)
    model = classifier.interpreter
    assert model.input.quantization is not None and model.output.quantization is not None
    x = frontend.network_input(data.features, wanted.mean, wanted.std)
    outputs = model.run(scheme.quantize(x, model.input.quantization))
    return _metrics(frontend.probabilities(outputs, model.output.quantization), data)


def _metrics(probabilities: np.ndarray, data: Windows) -> Metrics:
    return measure(probabilities, data.labels, data.clips)


def _check_labels(labels: list[str], dataset: Dataset) -> None:
    if labels != list(dataset.labels):
        raise InputError(
            f"the model's labels {labels} are not those of {dataset.name}, "
            f"{list(dataset.labels)}; use the data it was trained for"
        )
