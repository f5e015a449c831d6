"""Knowledge distillation: learn from a teacher's outputs beside, or instead of, the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def distillation(logits: Tensor, teacher: Tensor, targets: Tensor, weight: float) -> Tensor:
    """``(1 - weight) CE(targets) + weight KL(teacher || student)``, a mean over the batch.

    All are (B, classes); ``teacher`` are logits, ``targets`` probabilities. Hinton et al.,
    "Distilling the knowledge in a neural network", 2015, at temperature 1.
    """
    if weight == 0:
        return functional.cross_entropy(logits, targets)
    loss = functional.kl_div(
        logits.log_softmax(dim=1),
        teacher.log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    if weight == 1:
        return loss
    return (1 - weight) * functional.cross_entropy(logits, targets) + weight * loss
