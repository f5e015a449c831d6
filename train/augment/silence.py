"""Silence: an example becomes too quiet to tell, and what is taught of it is that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.objective import Batch

# From where a window counts as padding for sound at full scale, to where nothing is left of any.
ATTENUATION_DECIBELS = (60.0, 120.0)


def silence(batch: Batch, quiet: Tensor, probability: float, generator: torch.Generator) -> Batch:
    """Each example is its ``quiet`` input (B, C, F, T) instead, with ``probability``; 0: none.

    Scenes, devices and the teacher's probabilities become uniform. A recording is decided by the
    mean over its windows: one that holds nothing then favours no class, where a network that has
    heard active windows alone calls it what it likes. Windows below -60 dBFS are not trained on
    with their recording's label, here neither.
    """
    if probability == 0:
        return batch
    draws = torch.rand(len(batch.x), generator=generator, device=batch.x.device)
    chosen = draws < probability

    def uniform(values: Tensor) -> Tensor:
        return torch.where(chosen.unsqueeze(1), 1 / values.shape[1], values)

    return Batch(
        torch.where(chosen.view(-1, 1, 1, 1), quiet, batch.x),
        uniform(batch.scenes),
        uniform(batch.devices),
        None if batch.teacher is None else uniform(batch.teacher),
    )


def attenuate(log_mel: Tensor, log_floor: float, generator: torch.Generator) -> Tensor:
    """(B, F, T) log-mel of the same sounds by `ATTENUATION_DECIBELS` quieter, uniform an example.

    ``log_floor`` is what `firmware_ref.features.FeatureDefinition` adds to each energy: energies
    fall with the gain, the floor stays.
    """
    least, most = ATTENUATION_DECIBELS
    draws = torch.rand(len(log_mel), 1, 1, generator=generator, device=log_mel.device)
    power = torch.exp((least + draws * (most - least)) * (-math.log(10) / 10))
    energies = (log_mel.exp() - log_floor).clamp_min(0)
    return (energies * power + log_floor).log()
