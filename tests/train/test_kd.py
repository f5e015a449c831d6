"""Distillation against its definition, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from train.kd import distillation


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, teacher's logits and mixed targets, (6, 4)."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher, other = (2 * torch.randn(6, 4, generator=generator) for _ in range(3))
    return logits, teacher, other.softmax(dim=1)


def log_softmax(x: torch.Tensor) -> np.ndarray:
    values = x.detach().numpy().astype(np.float64)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def by_hand(
    logits: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor
) -> tuple[float, ...]:
    """Cross-entropy with the targets, and KL(teacher || student); means over the batch."""
    student, wanted = log_softmax(logits), log_softmax(teacher)
    cross_entropy = -(targets.numpy() * student).sum(axis=1).mean()
    divergence = (np.exp(wanted) * (wanted - student)).sum(axis=1).mean()
    return float(cross_entropy), float(divergence)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_it_is_the_weighted_sum_of_both(weight: float) -> None:
    logits, teacher, targets = batch()
    cross_entropy, divergence = by_hand(logits, teacher, targets)
    assert abs(cross_entropy - divergence) > 0.1, "the two can be told apart"
    found = distillation(logits, teacher, targets, weight)
    expected = (1 - weight) * cross_entropy + weight * divergence
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_torch_agrees_at_both_ends() -> None:
    logits, teacher, targets = batch(1)
    found = distillation(logits, teacher, targets, 0.0)
    torch.testing.assert_close(found, functional.cross_entropy(logits, targets))
    student, wanted = (torch.distributions.Categorical(logits=x) for x in (logits, teacher))
    divergence = torch.distributions.kl_divergence(wanted, student).mean()
    torch.testing.assert_close(distillation(logits, teacher, targets, 1.0), divergence)


def test_two_classes_by_hand() -> None:
    """Student 1 : 1, teacher 3 : 1: ``3/4 log(3/2) + 1/4 log(1/2)``."""
    logits, teacher = torch.zeros(1, 2), torch.log(torch.tensor([[3.0, 1.0]]))
    found = distillation(logits, teacher, torch.tensor([[1.0, 0.0]]), 1.0)
    assert float(found) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    _, teacher, targets = batch(2)
    logits = (teacher + 5).requires_grad_()  # the same probabilities
    loss = distillation(logits, teacher, targets, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_pulls_towards_the_mixture(weight: float) -> None:
    """It is ``(student - (1 - w) targets - w teacher) / batch``, for either part."""
    logits, teacher, targets = batch(3)
    logits.requires_grad_()
    distillation(logits, teacher, targets, weight).backward()
    student, wanted = logits.detach().softmax(dim=1), teacher.softmax(dim=1)
    expected = (student - (1 - weight) * targets - weight * wanted) / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)
