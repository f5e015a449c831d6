"""What the tests of cross-gradient training share: small networks, and what they hear."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.cgt import CrossGradientObjective, balanced_weights
from train.objective import Batch, LabelObjective, Objective

CLASSES, DEVICES, SHAPE = 4, 3, (2, 5, 3)
COUNTS = (73, 17, 10)
SCENE_EPSILON, DEVICE_EPSILON, A = 0.3, 0.7, 0.4


def linear(outputs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), outputs))


def batch(size: int = 8) -> Batch:
    """Examples with mixed labels of both sorts."""
    draws = torch.Generator().manual_seed(3)

    def mixed(outputs: int) -> Tensor:
        labels = torch.randint(0, outputs, (2, size), generator=draws)
        first, second = functional.one_hot(labels, outputs).float()
        w = torch.rand(size, 1, generator=draws)
        return w * first + (1 - w) * second

    x = torch.randn(size, *SHAPE, generator=draws)
    teacher = (2 * torch.randn(size, CLASSES, generator=draws)).softmax(dim=1)
    return Batch(x, mixed(CLASSES), mixed(DEVICES), teacher)


def objective(device_network: nn.Module, base: Objective | None = None) -> CrossGradientObjective:
    return CrossGradientObjective(
        base or LabelObjective(),
        device_network,
        balanced_weights(COUNTS),
        device_epsilon=DEVICE_EPSILON,
        scene_epsilon=SCENE_EPSILON,
        perturbed_weight=A,
    )


class Heard(Objective):
    """A base objective that notes the batches it is asked about."""

    def __init__(self, base: Objective | None = None) -> None:
        super().__init__()
        self.base, self.batches = base or LabelObjective(), list[Batch]()

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        self.batches.append(dataclasses.replace(batch, x=batch.x.detach().clone()))
        return self.base(network, batch)


class Noting(nn.Module):
    """A network that notes its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.inputs = network, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        return self.network(x)
