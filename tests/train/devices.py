"""Input for the tiny network on its grids, and what it computes there."""

from __future__ import annotations

import numpy as np
import torch

from train.qat import DeviceNetwork


def inputs(count: int, seed: int) -> torch.Tensor:
    """Random maps (N, 3, 32, 20), each louder in bands of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, 3, 32, 20), generator=generator)
    loud = torch.randint(0, 24, (count,), generator=generator)
    for example, start in zip(x, loud, strict=True):
        example[:, start : start + 8] += 3
    return x


def windows(count: int, seed: int) -> np.ndarray:
    """The same as (N, F, T, C)."""
    return np.ascontiguousarray(inputs(count, seed).permute(0, 2, 3, 1).numpy())


def activations(device: DeviceNetwork, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Every activation (N, C, F, T) by name."""
    seen: dict[str, np.ndarray] = {}
    with torch.no_grad():
        device(x, lambda name, value: seen.update({name: value.numpy().copy()}))
    return seen
