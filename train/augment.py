"""Augmentation of batches of network input: mix-up and SpecAugment masks."""

from __future__ import annotations

import torch
from torch import Tensor

from train.config import AugmentConfig


def augment(
    x: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix a batch with a permutation of itself, then mask it; inputs are left alone.

    ``x`` is (B, C, F, T) float32 normalised network input, ``targets`` (B, classes) float32.
    """
    x, targets = mix_up(x, targets, config.mixup_alpha, generator)
    x = mask(x, 2, config.frequency_mask_bands, generator)
    return mask(x, 3, config.time_mask_frames, generator), targets


def mix_up(
    x: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``w x_i + (1 - w) x_j`` with one w ~ Beta(alpha, alpha) an example; 0 switches it off.

    The second batch is the first in another order, and features are mixed rather than samples.

    Zhang et al., "mixup: beyond empirical risk minimization", 2017; section 2.1 of the report.
    """
    if alpha == 0:
        return x, targets
    # A Beta variate is G1 / (G1 + G2) of two Gamma variates.
    shape = torch.full((2, len(x)), alpha)
    gamma = torch._standard_gamma(shape, generator=generator)
    # Both may underflow where alpha is tiny.
    weight = gamma[0] / gamma.sum(dim=0).clamp_min(torch.finfo(gamma.dtype).tiny)
    other = torch.randperm(len(x), generator=generator)
    w = weight.view(-1, 1, 1, 1)
    mixed = w * x + (1 - w) * x[other]
    w = weight.view(-1, 1)
    return mixed, w * targets + (1 - w) * targets[other]


def mask(x: Tensor, axis: int, limit: int, generator: torch.Generator) -> Tensor:
    """Zero one run of under ``limit`` bands or frames of each example, at a random place.

    Zero is the training mean of the normalised input. Park et al., "SpecAugment", 2019.
    """
    if limit == 0:
        return x
    size = x.shape[axis]
    width = torch.randint(0, limit, (len(x), 1), generator=generator)
    start = (torch.rand(len(x), 1, generator=generator) * (size - width + 1)).long()
    index = torch.arange(size)
    keep = (index < start) | (index >= start + width)  # (B, size)
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    return x * keep.view(shape)
