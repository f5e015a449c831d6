"""The tiny network in training, as `train.run` trains it: shared by the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.config import Config
from train.data import Windows
from train.loop import Epoch, Score, Stage, fit, module_tensors
from train.model import build_model

Tensors = dict[str, np.ndarray]


def identity_of(config: Config) -> dict[str, Any]:
    return {"network": config.network.to_dict(), "labels": [], "config": config.to_dict()}


class Run:
    """Trains in a folder and notes the epochs, and the tensors at the end of each."""

    def __init__(self, folder: Path, config: Config, data: Windows) -> None:
        self.state, self.config, self.data = folder / "state.safetensors", config, data
        self.epochs: list[Epoch] = []
        self.seen: list[Tensors] = []
        self.identity: Mapping[str, Any] = identity_of(config)

    def fit(self, module: nn.Module, stage: Stage, stop_after: int | None = None) -> Tensors:
        """Tensors after training; ``stop_after`` raises KeyboardInterrupt after that epoch."""

        def report(epoch: Epoch) -> None:
            self.epochs.append(epoch)
            self.seen.append(copied(module))
            if epoch.number == stop_after:
                raise KeyboardInterrupt

        fit(module, self.data, self.config, stage, self.identity, self.state, report)
        return copied(module)

    def float_stage(
        self, stop_after: int | None = None, validate: Callable[[], Score] | None = None
    ) -> Tensors:
        """The float stage of the configuration, from the weights of its seed."""
        torch.manual_seed(self.config.seed)
        model: nn.Module = build_model(self.config.network)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        stage = Stage("float", self.config.float_stage, validate=validate)
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
