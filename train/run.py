"""One training run: features, float stage, QAT stage, in order, resumable."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgets.limits import Limits, enforce_network
from firmware_ref.arch import Network
from firmware_ref.errors import InputError, write_whole
from firmware_ref.features import FeatureDefinition
from firmware_ref.frontend import network_input as normalise
from firmware_ref.lowering import lower
from train import checkpoint, loop, qat_checkpoint
from train.config import Config
from train.data import Dataset, InputNormalization, Progress, Windows, extract
from train.evaluate import Metrics, measure, module_probabilities
from train.fold import fold
from train.model import build_model
from train.qat import DeviceNetwork, calibrate

FLOAT_FILE, QAT_FILE, METRICS_FILE = "float.safetensors", "qat.safetensors", "metrics.json"
THREADS = 2


def run(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    out: Path,
    resume: bool,
    report: Callable[[loop.Epoch], None],
    progress: Progress,
    limits: Limits | None = None,
) -> dict[str, Metrics]:
    """Train on all folds but ``test_fold``, then measure float and QAT models on it.

    The last epoch is the result: the test fold selects nothing. Writes ``float.safetensors``,
    ``qat.safetensors`` and ``metrics.json`` into ``out``. ``limits`` are the shipped ones unless
    given; a network over one is refused before anything is read.
    """
    enforce_network(config.network, limits)
    _check_out(out, resume)
    _deterministic()
    definition = FeatureDefinition()
    _check_sizes(config.network, dataset, definition)
    train_clips, test_clips = dataset.split(test_fold)
    data = extract(train_clips, definition, config.data.train_hop_seconds, progress)
    channels = config.network.input_channels
    normalization = InputNormalization.measure(data.features[..., :channels])
    data = _normalised(data, normalization)
    identity = {
        "network": config.network.to_dict(),
        "labels": list(dataset.labels),
        "features": definition.to_dict(),
        "input_normalization": {"mean": normalization.mean, "std": normalization.std},
        "config": config.to_dict(),
        "dataset": {"name": dataset.name, "test_fold": test_fold},
    }
    float_tensors = _float_stage(config, data, identity, out, report)
    device = _qat_stage(config, data, identity, float_tensors, out, report)
    test = _normalised(extract(test_clips, definition, progress=progress), normalization)
    float_model = build_model(config.network)
    loop.load_module(float_model, float_tensors, "float checkpoint")
    metrics = {
        name: measure(module_probabilities(module, test.features), test.labels, test.clips)
        for name, module in (("float", float_model), ("qat", device))
    }
    _write_metrics(out, metrics, dataset, identity)
    return metrics


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
    loop.fit(model, data, config, config.float_stage, "float", identity, state, report)
    tensors = loop.module_tensors(model)
    checkpoint.save(path, tensors, {"stage": "float", **identity})
    state.unlink(missing_ok=True)
    return tensors


def _qat_stage(
    config: Config,
    data: Windows,
    identity: dict[str, Any],
    float_tensors: dict[str, np.ndarray],
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
    device = DeviceNetwork(graph, fold(config.network, float_tensors, graph))
    rng = np.random.default_rng([config.seed, *b"calibration"])
    size = config.qat_stage.optimizer.batch_size
    draws = rng.permutation(len(data.features))[: size * config.qat_stage.calibration_batches]
    batches = (
        loop.network_input(data.features[draws[i : i + size]]) for i in range(0, len(draws), size)
    )
    calibrate(device, batches, config.seed)
    state = out / "qat-state.safetensors"
    loop.fit(device, data, config, config.qat_stage.optimizer, "qat", identity, state, report)
    qat_checkpoint.save(path, device, identity)
    state.unlink(missing_ok=True)
    return device


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


def _write_metrics(
    out: Path, metrics: dict[str, Metrics], dataset: Dataset, identity: dict[str, Any]
) -> None:
    content = {
        "dataset": identity["dataset"],
        "seed": identity["config"]["seed"],
        "selection": "none: the last epoch",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics": {name: m.to_dict(dataset.labels) for name, m in metrics.items()},
    }
    write_whole(out / METRICS_FILE, (json.dumps(content, indent=2) + "\n").encode())
