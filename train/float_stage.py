"""The float stage: a network from scratch, or as this run has already finished it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.arch import Network
from firmware_ref.frontend import softmax
from train import checkpoint, distributed, loop
from train.cgt import CrossGradientObjective, balanced_weights
from train.config import Config
from train.data import over_windows
from train.evaluate import measure, module_logits
from train.kd import DistillationObjective
from train.model import BCResNetMod, build_model
from train.objective import LabelObjective, LogitsObjective, Objective
from train.prepare import Prepared
from train.state import Score, load_module, module_tensors

FLOAT_FILE, FLOAT_STATE = "float.safetensors", "float-state.safetensors"


def float_stage(
    config: Config,
    prepared: Prepared,
    teacher: Tensor | None,
    identity: Mapping[str, Any],
    out: Path,
    device: torch.device,
    report: Callable[[loop.Epoch], None],
) -> BCResNetMod:
    """The trained float network, on the CPU, in evaluation mode; written to ``out``."""
    path, state = out / FLOAT_FILE, out / FLOAT_STATE
    model = build_model(config.network)
    if path.exists():
        saved = checkpoint.load(path, "float")
        checkpoint.require_run(saved, identity, path)
        distributed.remove(state)
        load_module(model, saved.tensors, "float checkpoint")
        return model.eval()
    torch.manual_seed(config.seed)
    model = build_model(config.network)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    objective: Objective = scene_objective(config)
    if config.cross_gradient.epsilon:
        objective = _cross_gradient(config, prepared, objective)
    stage = loop.Stage(
        "float",
        config.float_stage,
        objective.to(device),
        validate=validator(model, prepared) if prepared.validation is not None else None,
        compute=config.compute,
    )
    data = prepared.training_set(config, device, teacher)
    loop.fit(model, data, config, stage, identity, state, report)
    checkpoint.save(path, module_tensors(model), {"stage": "float", **identity})
    distributed.remove(state)
    fresh = build_model(config.network)
    # From the file: on several GPUs each process may have kept another best epoch.
    load_module(fresh, checkpoint.load(path, "float").tensors, "float checkpoint")
    return fresh.eval()


def scene_objective(config: Config) -> LogitsObjective:
    """What a scene network minimises: the labels, and the teachers where there are any."""
    kd = config.distillation
    if not kd.teachers:
        return LabelObjective()
    return DistillationObjective(kd.label_weight, kd.temperature)


def device_network(network: Network, devices: int, divisor: int) -> Network:
    """The classifier of recording devices that trains beside ``network``: its shape, narrower."""

    def narrow(channels: int) -> int:
        return max(channels // divisor, 8)

    head = network.head_channels
    return replace(
        network,
        name="device-classifier",
        classes=devices,
        stem_channels=narrow(network.stem_channels),
        widths=tuple(narrow(width) for width in network.widths),
        head_channels=None if head is None else narrow(head),
    )


def validator(model: nn.Module, prepared: Prepared) -> Callable[[], Score]:
    """Scores a network by its accuracy on the windows that choose an epoch."""
    windows = prepared.validation
    assert windows is not None

    def validate() -> Score:
        logits = over_windows(windows, prepared.normalization, lambda x: module_logits(model, x))
        found = measure(softmax(logits), windows.labels, windows.clips)
        return Score(1 - found.window_accuracy, found.window_accuracy, found.window_log_loss)

    return validate


def _cross_gradient(config: Config, prepared: Prepared, scenes: Objective) -> Objective:
    cgt = config.cross_gradient
    devices = len(prepared.train_devices)
    # An epoch draws as many windows from every clip.
    _, first = np.unique(prepared.plain.clips, return_index=True)
    counts = np.bincount(prepared.plain.devices[first], minlength=devices)
    network = device_network(config.network, devices, cgt.device_width_divisor)
    return CrossGradientObjective(
        scenes,
        build_model(network),
        balanced_weights(counts.tolist()),
        device_epsilon=cgt.epsilon,
        scene_epsilon=cgt.epsilon,
        perturbed_weight=cgt.perturbed_weight,
    )
