"""One training run: features, float stage, QAT stage, in order, resumable."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from budgets.limits import Limits, enforce_network
from firmware_ref.arch import Network
from firmware_ref.errors import InputError, write_whole
from firmware_ref.features import FeatureDefinition
from firmware_ref.frontend import network_input as normalise
from firmware_ref.frontend import softmax
from firmware_ref.lowering import lower
from train import checkpoint, loop, qat_checkpoint
from train.config import Config
from train.data import Dataset, InputNormalization, Progress, Windows, extract, hold_out
from train.device import Fidelity, compare, device_logits, device_probabilities
from train.evaluate import Metrics, measure, module_logits, module_probabilities
from train.fold import fold
from train.kd import distillation
from train.model import build_model
from train.qat import DeviceNetwork
from train.ranges import calibrate

FLOAT_FILE, QAT_FILE, METRICS_FILE = "float.safetensors", "qat.safetensors", "metrics.json"
THREADS = 2


@dataclass(frozen=True)
class Outcome:
    """What a run measured on the test fold; ``fidelity`` holds what QAT is for."""

    metrics: Mapping[str, Metrics]
    fidelity: Fidelity


def run(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    out: Path,
    resume: bool,
    report: Callable[[loop.Epoch], None],
    progress: Progress,
    limits: Limits | None = None,
) -> Outcome:
    """Train on all folds but ``test_fold``, then measure float, QAT and INT8 models on it.

    The test fold selects nothing: float training ends with its last epoch, QAT with the epoch that
    loses least, in device arithmetic, on training clips held out for it. Writes
    ``float.safetensors``, ``qat.safetensors`` and ``metrics.json`` into ``out``. ``limits`` are the
    shipped ones unless given; a network over one is refused before anything is read.
    """
    enforce_network(config.network, limits)
    _check_out(out, resume)
    _deterministic()
    definition = FeatureDefinition()
    _check_sizes(config.network, dataset, definition)
    train_clips, test_clips = dataset.split(test_fold)
    train_clips, validation_clips = hold_out(train_clips, config.data.validation_fraction)
    data = extract(train_clips, definition, config.data.train_hop_seconds, progress)
    channels = config.network.input_channels
    normalization = InputNormalization.measure(data.features[..., :channels])
    data = _normalised(data, normalization)
    validation = None
    if validation_clips:
        windows = extract(validation_clips, definition, progress=progress)
        validation = _normalised(windows, normalization)
    identity = {
        "network": config.network.to_dict(),
        "labels": list(dataset.labels),
        "features": definition.to_dict(),
        "input_normalization": {"mean": normalization.mean, "std": normalization.std},
        "config": config.to_dict(),
        "dataset": {"name": dataset.name, "test_fold": test_fold},
    }
    float_tensors = _float_stage(config, data, identity, out, report)
    float_model = build_model(config.network)
    loop.load_module(float_model, float_tensors, "float checkpoint")
    float_model.eval()
    device = _qat_stage(config, data, validation, identity, float_model, out, report)
    test = _normalised(extract(test_clips, definition, progress=progress), normalization)
    outcome = _measure(float_model, device, test)
    _write_metrics(out, outcome, dataset, identity)
    return outcome


def _measure(float_model: nn.Module, device: DeviceNetwork, test: Windows) -> Outcome:
    probabilities = {
        "float": module_probabilities(float_model, test.features),
        "qat": module_probabilities(device, test.features),
        "int8": device_probabilities(device, test.features),
    }
    metrics = {name: measure(p, test.labels, test.clips) for name, p in probabilities.items()}
    return Outcome(metrics, compare(device, test.features, probabilities))


def _float_stage(
    config: Config,
    data: Windows,
    identity: dict[str, Any],
    out: Path,
    report: Callable[[loop.Epoch], None],
) -> dict[str, np.ndarray]:
    """Train the float network, or read it where this run has already finished it."""
    path = out / FLOAT_FILE
    if path.exists():
        saved = checkpoint.load(path, "float")
        checkpoint.require_run(saved, identity, path)
        return dict(saved.tensors)
    torch.manual_seed(config.seed)
    model = build_model(config.network)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    state = out / "float-state.safetensors"
    loop.fit(model, data, config, loop.Stage("float", config.float_stage), identity, state, report)
    tensors = loop.module_tensors(model)
    checkpoint.save(path, tensors, {"stage": "float", **identity})
    state.unlink(missing_ok=True)
    return tensors


def _qat_stage(
    config: Config,
    data: Windows,
    validation: Windows | None,
    identity: dict[str, Any],
    float_model: nn.Module,
    out: Path,
    report: Callable[[loop.Epoch], None],
) -> DeviceNetwork:
    """Fold, calibrate and train on the device graph, or read where already finished."""
    path = out / QAT_FILE
    if path.exists():
        saved, trained = qat_checkpoint.load(path)
        checkpoint.require_run(saved, identity, path)
        return trained
    graph = lower(config.network)
    device = DeviceNetwork(graph, fold(config.network, loop.module_tensors(float_model), graph))
    rng = np.random.default_rng([config.seed, *b"calibration"])
    qat = config.qat_stage
    size = qat.optimizer.batch_size
    draws = rng.permutation(len(data.features))[: size * qat.calibration_batches]
    batches = (
        loop.network_input(data.features[draws[i : i + size]]) for i in range(0, len(draws), size)
    )
    calibrate(device, batches, config.seed)

    def loss(x: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = float_model(x)
        return distillation(logits, teacher, targets, qat.float_teacher_weight)

    held_out_teacher = torch.empty(0)
    if validation is not None:
        held_out_teacher = torch.from_numpy(
            module_logits(float_model, validation.features)
        ).double()

    def validate() -> loop.Score:
        assert validation is not None
        logits = device_logits(device, validation.features)
        found = measure(softmax(logits), validation.labels, validation.clips)
        labels = functional.one_hot(torch.from_numpy(validation.labels), config.network.classes)
        value = distillation(
            torch.from_numpy(logits).double(),
            held_out_teacher,
            labels.double(),
            qat.float_teacher_weight,
        )
        return loop.Score(value.item(), found.window_accuracy, found.window_log_loss)

    stage = loop.Stage(
        "qat",
        qat.optimizer,
        loss if qat.float_teacher_weight else loop.cross_entropy,
        qat.range_learning_rate,
        validate if validation else None,
    )
    state = out / "qat-state.safetensors"
    loop.fit(device, data, config, stage, identity, state, report)
    qat_checkpoint.save(path, device, identity)
    state.unlink(missing_ok=True)
    # As a resumed run would have it: with the scales that were written.
    return qat_checkpoint.load(path)[1]


def _normalised(data: Windows, normalization: InputNormalization) -> Windows:
    return replace(data, features=normalise(data.features, normalization.mean, normalization.std))


def _check_sizes(network: Network, dataset: Dataset, definition: FeatureDefinition) -> None:
    """Before an epoch is spent: the network takes these features and has these classes."""
    for key, value, allowed in (
        ("classes", network.classes, len(dataset.labels)),
        ("input_bands", network.input_bands, definition.mel_bands),
        ("input_frames", network.input_frames, definition.frames),
    ):
        if value != allowed:
            raise InputError(f"model.{key}={value}; allowed with {dataset.name} is {allowed}")


def _deterministic() -> None:
    """The same seed gives the same bytes on one machine: fixed threads, fixed algorithms."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


def _check_out(out: Path, resume: bool) -> None:
    if not resume and out.is_dir() and any(out.glob("*.safetensors")):
        raise InputError(f"--out {str(out)!r} already holds a run; add --resume or name another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {str(out)!r} cannot be made: {error.strerror}") from None


def _write_metrics(out: Path, outcome: Outcome, dataset: Dataset, identity: dict[str, Any]) -> None:
    fraction = identity["config"]["data"]["validation_fraction"]
    content = {
        "dataset": identity["dataset"],
        "seed": identity["config"]["seed"],
        "selection": (
            f"the QAT epoch of least loss in device arithmetic on {fraction:.0%} of the "
            "training clips"
            if fraction
            else "none: the last epoch"
        ),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics": {name: m.to_dict(dataset.labels) for name, m in outcome.metrics.items()},
        "fidelity": outcome.fidelity.to_dict(),
    }
    write_whole(out / METRICS_FILE, (json.dumps(content, indent=2) + "\n").encode())
