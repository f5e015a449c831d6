"""The QAT stage: the device graph, calibrated and trained, chosen in device arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from firmware_ref.frontend import softmax
from firmware_ref.lowering import lower
from train import checkpoint, distributed, loop, qat_checkpoint
from train.config import ComputeConfig, Config
from train.data import over_log_mels, over_windows
from train.device import DeviceListener
from train.evaluate import measure, module_logits
from train.float_stage import scene_objective
from train.fold import fold
from train.kd import FloatTeacherObjective, distillation
from train.model import BCResNetMod
from train.prepare import Prepared
from train.qat import DeviceNetwork
from train.ranges import calibrate
from train.state import Score, module_tensors

QAT_FILE, QAT_STATE = "qat.safetensors", "qat-state.safetensors"


def qat_stage(
    config: Config,
    prepared: Prepared,
    teacher: Tensor | None,
    identity: Mapping[str, Any],
    float_model: BCResNetMod,
    out: Path,
    where: torch.device,
    report: Callable[[loop.Epoch], None],
) -> DeviceNetwork:
    """Fold, calibrate and train on the device graph, or read where already finished.

    Trains on ``where``; what is returned is on the CPU, as the integer kernels are.
    """
    path, state = out / QAT_FILE, out / QAT_STATE
    if path.exists():
        saved, trained = qat_checkpoint.load(path)
        checkpoint.require_run(saved, identity, path)
        distributed.remove(state)
        return trained
    graph = lower(config.network)
    device = DeviceNetwork(graph, fold(config.network, module_tensors(float_model), graph))
    device.to(where)
    float_model.to(where)  # the teacher of every step
    data = prepared.training_set(config, where, teacher)
    qat = config.qat_stage
    plain = np.flatnonzero(data.windows.variation == 0)
    draws = np.random.default_rng([config.seed, *b"calibration"]).permutation(plain)
    draws = draws[: qat.optimizer.batch_size * qat.calibration_batches]
    size = qat.optimizer.batch_size
    batches = (data.clean(draws[start : start + size]) for start in range(0, len(draws), size))
    calibrate(device, batches, config.seed)
    objective = scene_objective(config)
    if qat.float_teacher_weight:
        objective = FloatTeacherObjective(objective, float_model, qat.float_teacher_weight)
    stage = loop.Stage(
        "qat",
        qat.optimizer,
        objective,
        qat.range_learning_rate,
        qat.frozen_range_epochs,
        _validator(config, device, float_model, prepared),
        replace(config.compute, precision=ComputeConfig.precision, compile=False),
    )
    loop.fit(device, data, config, stage, identity, state, report)
    qat_checkpoint.save(path, device, identity)
    float_model.to("cpu")
    distributed.remove(state)
    # As a resumed run would have it: with the scales that were written.
    return qat_checkpoint.load(path)[1]


def _validator(
    config: Config, device: DeviceNetwork, float_model: BCResNetMod, prepared: Prepared
) -> Callable[[], Score] | None:
    """Scores by the stage's own loss in device arithmetic, on the windows that choose an epoch.

    Teachers have not heard these windows: there the labels stand alone.
    """
    windows, normalization = prepared.validation, prepared.normalization
    if windows is None:
        return None
    weight = config.qat_stage.float_teacher_weight
    one_hot = functional.one_hot(torch.from_numpy(windows.labels), config.network.classes)
    float_logits = over_windows(windows, normalization, lambda x: module_logits(float_model, x))

    def validate() -> Score:
        logits = over_log_mels(windows, DeviceListener(device, normalization).logits)
        found = measure(softmax(logits), windows.labels, windows.clips)
        loss = distillation(
            torch.from_numpy(logits).double(),
            torch.from_numpy(float_logits).double(),
            one_hot.double(),
            weight,
        )
        return Score(loss.item(), found.window_accuracy, found.window_log_loss)

    return validate
