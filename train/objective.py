"""What a training step sees, and what it minimises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one step: network input ``x`` (B, C, F, T) float32 with what is known of each.

    ``scenes`` (B, classes) and ``devices`` (B, devices) are probabilities, float32: one-hot until
    mix-up. ``teacher`` (B, classes) float32 are a teacher's probabilities at the temperature of
    distillation, where there is one.
    """

    x: Tensor
    scenes: Tensor
    devices: Tensor
    teacher: Tensor | None = None

    def part(self, chosen: slice) -> Batch:
        """Some of the examples."""
        teacher = None if self.teacher is None else self.teacher[chosen]
        return Batch(self.x[chosen], self.scenes[chosen], self.devices[chosen], teacher)


class Objective(nn.Module):
    """A loss of a network on a batch; its own parameters, if it has any, train beside it."""

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a float32 scalar, under autocast too."""
        raise NotImplementedError


class LogitsObjective(Objective):
    """A loss of the network's logits: several can be added after one forward pass."""

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a float32 scalar, under autocast too."""
        return self.loss(network(batch.x).float(), batch)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of ``logits`` (B, classes), those of ``batch.x``."""
        raise NotImplementedError


class LabelObjective(LogitsObjective):
    """Cross-entropy with the scene labels alone."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of ``logits`` (B, classes), those of ``batch.x``."""
        return functional.cross_entropy(logits, batch.scenes)
