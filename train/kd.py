"""Knowledge distillation: learn from a teacher's outputs beside, or instead of, the labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.objective import Batch, LogitsObjective


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities (N, classes) of (N, classes) logits at a temperature."""
    return (logits / temperature).softmax(dim=1)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)``, a mean over the batch, of (B, classes) logits of both."""
    return functional.kl_div(
        logits.log_softmax(dim=1),
        teacher.log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


def distillation(logits: Tensor, teacher: Tensor, targets: Tensor, weight: float) -> Tensor:
    """``(1 - weight) CE(targets) + weight KL(teacher || student)``, a mean over the batch.

    All are (B, classes); ``teacher`` are logits, ``targets`` probabilities. At weight 0 and 1 only
    the one part is computed.
    """
    if weight == 0:
        return functional.cross_entropy(logits, targets)
    loss = divergence(logits, teacher)
    if weight == 1:
        return loss
    return (1 - weight) * functional.cross_entropy(logits, targets) + weight * loss


class DistillationObjective(LogitsObjective):
    """``label_weight CE(scenes) + (1 - label_weight) T^2 KL(batch.teacher || student)``.

    Probabilities are at the temperature T, those of the teacher `softened` before mix-up: a
    mixture of two sounds is taught the mixture of what they are. T^2 keeps the gradient's size as T
    changes. Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2.
    """

    def __init__(self, label_weight: float, temperature: float) -> None:
        super().__init__()
        self.label_weight, self.temperature = label_weight, temperature

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of ``logits`` (B, classes); the batch needs a teacher."""
        assert batch.teacher is not None
        student = (logits / self.temperature).log_softmax(dim=1)
        kl = functional.kl_div(student, batch.teacher, reduction="batchmean")
        labels = functional.cross_entropy(logits, batch.scenes)
        return self.label_weight * labels + (1 - self.label_weight) * self.temperature**2 * kl


class FloatTeacherObjective(LogitsObjective):
    """``(1 - weight) base + weight KL(float network || student)``, for quantisation-aware training.

    The float network hears the same augmented input. It is put into eval mode and its parameters
    require no gradient from here on; it is no part of this module, so that it is neither trained
    nor saved with it, and does not move to another device with it.
    """

    def __init__(self, base: LogitsObjective, float_network: nn.Module, weight: float) -> None:
        super().__init__()
        self.base, self.weight = base, weight
        # A module in a tuple is no submodule.
        self._float_network = (float_network.eval().requires_grad_(False),)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of ``logits`` (B, classes); at weight 1 the base is not computed."""
        if self.weight == 0:
            return self.base.loss(logits, batch)
        with torch.no_grad():
            teacher = self._float_network[0](batch.x).float()
        loss = divergence(logits, teacher)
        if self.weight == 1:
            return loss
        return (1 - self.weight) * self.base.loss(logits, batch) + self.weight * loss
