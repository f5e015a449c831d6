"""The tiny network in training, as `train.run` trains it: shared by the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from train import loop
from train.batches import TrainingSet
from train.config import Config
from train.data import EpochSampler, InputNormalization, Windows
from train.loop import Epoch, Stage, fit
from train.model import build_model
from train.objective import LabelObjective
from train.state import Progress, Score, Trained, keep, module_tensors

Tensors = dict[str, np.ndarray]
# Of the tiny windows, nearly: their deltas vary less.
NORMALIZATION = InputNormalization((0.0, 0.0, 0.0), (1.0, 0.25, 0.1))
DEVICES = 2


def identity_of(config: Config) -> dict[str, Any]:
    return {"network": config.network.to_dict(), "labels": [], "config": config.to_dict()}


def training_set(config: Config, windows: Windows) -> TrainingSet:
    """Windows as training draws them, on the CPU."""
    shares = [1.0 / len(windows.maps)] * len(windows.maps)
    sampler = EpochSampler(windows, config.data.windows_per_clip, shares)
    classes = config.network.classes
    return TrainingSet.of(windows, sampler, NORMALIZATION, classes, DEVICES, torch.device("cpu"))


def label_stage(name: str, config: Config) -> Stage:
    """A stage of the float optimiser that learns from the labels alone."""
    return Stage(name, config.float_stage, LabelObjective())


class Run:
    """Trains in a folder and notes the epochs, and the tensors at the end of each."""

    def __init__(self, folder: Path, config: Config, data: Windows) -> None:
        self.state, self.config = folder / "state.safetensors", config
        self.data = training_set(config, data)
        self.epochs: list[Epoch] = []
        self.seen: list[Tensors] = []
        self.identity: Mapping[str, Any] = identity_of(config)

    def fit(self, module: nn.Module, stage: Stage, stop_after: int | None = None) -> Tensors:
        """Tensors after training; ``stop_after`` raises KeyboardInterrupt after that epoch."""

        def report(epoch: Epoch) -> None:
            self.epochs.append(epoch)
            self.seen.append(copied(module))

        def kept(trained: Trained, path: Path, name: str, identity: Any, done: Progress) -> None:
            keep(trained, path, name, identity, done)
            if done.epochs_done == stop_after:
                raise KeyboardInterrupt

        with mock.patch.object(loop, "keep", kept):
            fit(module, self.data, self.config, stage, self.identity, self.state, report)
        return copied(module)

    def float_stage(
        self, stop_after: int | None = None, validate: Callable[[], Score] | None = None
    ) -> Tensors:
        """The float stage of the configuration, from the weights of its seed."""
        torch.manual_seed(self.config.seed)
        model: nn.Module = build_model(self.config.network)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        stage = Stage("float", self.config.float_stage, LabelObjective(), validate=validate)
        return self.fit(model, stage, stop_after)


def scores(*values: tuple[float, float]) -> Callable[[], Score]:
    """A validation that gives these losses and accuracies, one a call."""
    given = iter(values)

    def validate() -> Score:
        loss, accuracy = next(given)
        return Score(loss, accuracy, log_loss=1.0)

    return validate


def copied(module: nn.Module) -> Tensors:
    return {name: value.copy() for name, value in module_tensors(module).items()}


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    assert set(a) == set(b)
    return all(a[name].tobytes() == b[name].tobytes() for name in a)
