"""From windows to augmented batches on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.features import FeatureDefinition
from train.augment.mix_up import mix_up
from train.augment.silence import attenuate, silence
from train.augment.spec_augment import frequency_mask, time_mask
from train.augment.time_warp import time_warp
from train.config import AugmentConfig
from train.data import EpochSampler, InputNormalization, Windows
from train.frontend import Frontend
from train.objective import Batch


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Windows to train on, with what is known of each, as in `train.objective.Batch`: (N, ...)."""

    windows: Windows
    sampler: EpochSampler
    frontend: nn.Module
    scenes: Tensor
    devices: Tensor
    teacher: Tensor | None = None

    @classmethod
    def of(
        cls,
        windows: Windows,
        sampler: EpochSampler,
        normalization: InputNormalization,
        classes: int,
        devices: int,
        device: torch.device,
    ) -> TrainingSet:
        """One-hot labels of all windows on ``device``."""
        return cls(
            windows,
            sampler,
            Frontend(normalization.mean, normalization.std).to(device),
            functional.one_hot(torch.from_numpy(windows.labels), classes).float().to(device),
            functional.one_hot(torch.from_numpy(windows.devices), devices).float().to(device),
        )

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.scenes.device

    def batch(self, index: np.ndarray, config: AugmentConfig, generator: torch.Generator) -> Batch:
        """Augmented examples of the windows ``index`` (B,)."""
        log_mel = torch.from_numpy(self.windows.log_mels(index)).to(self.device, torch.float32)
        log_mel = time_warp(log_mel, config.time_warp_frames, generator)
        place = torch.from_numpy(index).to(self.device)
        teacher = None if self.teacher is None else self.teacher[place]
        batch = Batch(self.frontend(log_mel), self.scenes[place], self.devices[place], teacher)
        batch = mix_up(batch, config.mixup_alpha, generator)
        if config.silence_probability:
            quiet = self.frontend(attenuate(log_mel, FeatureDefinition().log_floor, generator))
            batch = silence(batch, quiet, config.silence_probability, generator)
        x = frequency_mask(batch.x, config.frequency_mask_bands, generator)
        x = time_mask(x, config.time_mask_frames, generator)
        return Batch(x, batch.scenes, batch.devices, batch.teacher)

    def clean(self, index: np.ndarray) -> Tensor:
        """Network input (B, C, F, T) of windows as they are."""
        log_mel = torch.from_numpy(self.windows.log_mels(index))
        x: Tensor = self.frontend(log_mel.to(self.device, torch.float32))
        return x
