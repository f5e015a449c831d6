"""The stages of a run on their own, on the tiny recordings: what `train.run` hands to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firmware_ref.features import FeatureDefinition
from train import loop
from train.cache import cache_folder
from train.config import Config
from train.config_file import load_config
from train.data import Source
from train.dataset import Dataset
from train.datasets import load_dataset
from train.float_stage import float_stage
from train.model import BCResNetMod
from train.prepare import Prepared, Split, prepare, split
from train.qat import DeviceNetwork
from train.qat_stage import qat_stage
from train.run import identity_of
from train.teacher_stage import teacher_logits

DEFINITION = FeatureDefinition()
CPU = torch.device("cpu")


def source() -> Source:
    """Features through the tests' own cache."""
    return Source(DEFINITION, cache_folder(None))


@dataclass(eq=False)
class Bench:
    """One run's parts; ``epochs`` are those that its stages told of."""

    config: Config
    dataset: Dataset
    recordings: Split
    prepared: Prepared
    out: Path
    epochs: list[loop.Epoch]

    @property
    def identity(self) -> dict[str, Any]:
        return identity_of(self.config, self.dataset, 1, DEFINITION, self.prepared)

    def teachers(self) -> Tensor | None:
        arguments = (self.config, self.prepared, self.identity, self.out, CPU)
        return teacher_logits(*arguments, self.epochs.append)

    def float(self, teacher: Tensor | None = None) -> BCResNetMod:
        arguments = (self.config, self.prepared, teacher, self.identity, self.out, CPU)
        return float_stage(*arguments, self.epochs.append)

    def qat(self, model: BCResNetMod, teacher: Tensor | None = None) -> DeviceNetwork:
        arguments = (self.config, self.prepared, teacher, self.identity, model, self.out, CPU)
        return qat_stage(*arguments, self.epochs.append)


def bench(data: Path, out: Path, settings: Sequence[str]) -> Bench:
    """Prepared as `train.run` does, of fold 1 and the shipped configuration with ``settings``."""
    config = load_config("esc10", settings)
    dataset = load_dataset(config.data.dataset, data)
    recordings = split(config, dataset, 1)
    prepared = prepare(config, dataset, recordings, source(), out, no_warning)
    return Bench(config, dataset, recordings, prepared, out, [])


def no_warning(line: str) -> None:
    raise AssertionError(line)


MakeBench = Callable[..., Bench]
