"""Networks, teachers and the definition of distillation that its tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from train.kd import (
    softened,
)
from train.objective import Batch, LogitsObjective


def draws(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, teacher's logits and mixed targets, (6, 4)."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher, other = (2 * torch.randn(6, 4, generator=generator) for _ in range(3))
    return logits, teacher, other.softmax(dim=1)


def log_softmax(x: Tensor, temperature: float = 1.0) -> np.ndarray:
    values = x.detach().numpy().astype(np.float64) / temperature
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def by_hand(
    logits: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[float, float]:
    """Cross-entropy with the targets, and T^2 KL(teacher || student); means over the batch.

    ``teacher`` are logits.
    """
    cross_entropy = -(targets.numpy() * log_softmax(logits)).sum(axis=1).mean()
    student, wanted = log_softmax(logits, temperature), log_softmax(teacher, temperature)
    kl = (np.exp(wanted) * (wanted - student)).sum(axis=1).mean()
    return float(cross_entropy), float(temperature**2 * kl)


def linear(seed: int = 0) -> nn.Module:
    """(B, 3, 2, 2) to 4 logits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


class Counted(nn.Module):
    """A network that counts its passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.network(x)


class Never(LogitsObjective):
    """A base that is not to be computed."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        raise AssertionError("the base was computed")


def batch(temperature: float = 2.0) -> Batch:
    """Mixed scenes, and the teacher of `draws` at a temperature."""
    _, teacher, scenes = draws(5)
    x = 2 * torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(6))
    return Batch(x, scenes, torch.ones(6, 1), softened(teacher, temperature))
