"""Distillation against its definition, written out in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.train.conftest import TinyConfig
from tests.train.distilling import batch, by_hand, draws, linear, log_softmax
from tests.train.fitting import training_set
from train.augment.mix_up import mix_up
from train.data import Windows
from train.kd import (
    DistillationObjective,
    distillation,
    divergence,
    softened,
)
from train.objective import Batch, LabelObjective

# The functions


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_softened_are_probabilities_at_the_temperature(temperature: float) -> None:
    _, teacher, _ = draws()
    found = softened(teacher, temperature)
    expected = np.exp(log_softmax(teacher, temperature))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert np.abs(softened(teacher, 1.01 * temperature).numpy() - expected).max() > 1e-4


def test_softened_by_hand() -> None:
    """9 : 1 at T = 2 is 3 : 1; 3 : 1 at T = 1/2 is 9 : 1."""
    found = softened(torch.log(torch.tensor([[9.0, 1.0]])), 2)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]]))
    found = softened(torch.log(torch.tensor([[3.0, 1.0]])), 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1]]))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.98, 1.0])
def test_it_is_the_weighted_sum_of_both(weight: float) -> None:
    logits, teacher, targets = draws()
    cross_entropy, kl = by_hand(logits, teacher, targets)
    assert abs(cross_entropy - kl) > 0.1, "the two can be told apart"
    found = distillation(logits, teacher, targets, weight)
    assert float(found) == pytest.approx((1 - weight) * cross_entropy + weight * kl, rel=1e-5)


def test_another_direction_or_a_nudged_value_is_another_value() -> None:
    logits, teacher, targets = draws()
    found = float(divergence(logits, teacher))
    nudged = teacher.clone()
    nudged[3, 1] += 0.1
    for other in (
        divergence(teacher, logits),
        divergence(logits, nudged),
        divergence(logits / 2, teacher / 2),
    ):
        assert found != pytest.approx(float(other), rel=1e-4)
    found = float(distillation(logits, teacher, targets, 0.5))
    other = distillation(logits, teacher, targets, 0.51)
    assert found != pytest.approx(float(other), rel=1e-4)


def test_torch_agrees_at_both_ends() -> None:
    logits, teacher, targets = draws(1)
    found = distillation(logits, teacher, targets, 0.0)
    torch.testing.assert_close(found, functional.cross_entropy(logits, targets))
    student, wanted = (torch.distributions.Categorical(logits=x) for x in (logits, teacher))
    expected = torch.distributions.kl_divergence(wanted, student).mean()
    torch.testing.assert_close(distillation(logits, teacher, targets, 1.0), expected)


def test_two_classes_by_hand() -> None:
    """Student 1 : 1, teacher 3 : 1: ``3/4 log(3/2) + 1/4 log(1/2)``."""
    found = divergence(torch.zeros(1, 2), torch.log(torch.tensor([[3.0, 1.0]])))
    assert float(found) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    _, teacher, targets = draws(2)
    logits = (teacher + 5).requires_grad_()  # the same probabilities
    loss = distillation(logits, teacher, targets, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_pulls_towards_the_mixture(weight: float) -> None:
    """It is ``(1 - w) (student - targets) + w (student - teacher)`` over the batch."""
    logits, teacher, targets = draws(3)
    logits.requires_grad_()
    distillation(logits, teacher, targets, weight).backward()
    student = logits.detach().softmax(dim=1)
    soft = student - teacher.softmax(dim=1)
    expected = ((1 - weight) * (student - targets) + weight * soft) / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_no_bit_has_changed_since_checkpoints_were_shipped() -> None:
    """They are made again byte for byte; so value and gradient are those of this expression."""
    for seed in range(20):
        logits, teacher, targets = draws(seed)
        ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        found = distillation(ours, teacher, targets, 1.0)
        expected = functional.kl_div(
            plain.log_softmax(dim=1),
            teacher.log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        found.backward()
        expected.backward()
        assert torch.equal(found, expected)
        assert ours.grad is not None and plain.grad is not None
        assert torch.equal(ours.grad, plain.grad)


# The objectives


def test_labels_alone() -> None:
    given, network = batch(), linear()
    cross_entropy, _ = by_hand(network(given.x), network(given.x), given.scenes)
    found = LabelObjective()(network, given).detach()
    assert float(found) == pytest.approx(cross_entropy, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("label_weight", [0.0, 0.02, 0.5, 0.7, 1.0])
def test_distillation_from_the_teacher_of_the_batch(
    label_weight: float, temperature: float
) -> None:
    given, network = batch(temperature), linear()
    cross_entropy, kl = by_hand(network(given.x), draws(5)[1], given.scenes, temperature)
    assert abs(cross_entropy - kl) > 0.1, "the two can be told apart"
    expected = label_weight * cross_entropy + (1 - label_weight) * kl
    found = DistillationObjective(label_weight, temperature)(network, given).detach()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_two_classes_at_temperature_two_by_hand() -> None:
    """Student 1 : 1, teacher 3 : 1 at T = 2: ``4 (3/4 log(3/2) + 1/4 log(1/2))``."""
    given = Batch(torch.zeros(1), torch.eye(2)[:1], torch.ones(1, 1), torch.tensor([[0.75, 0.25]]))
    found = DistillationObjective(0, 2).loss(torch.zeros(1, 2), given)
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_another_temperature_weight_or_teacher_is_another_value() -> None:
    given, (logits, _, _) = batch(), draws()
    assert given.teacher is not None
    nudged = given.teacher.clone()
    nudged[3] += torch.tensor([0.01, -0.01, 0, 0])
    found = float(DistillationObjective(0.3, 2).loss(logits, given))
    for other in (
        DistillationObjective(0.3, 2.01).loss(logits, given),
        DistillationObjective(0.31, 2).loss(logits, given),
        DistillationObjective(0.3, 2).loss(logits, batch(2.01)),
        DistillationObjective(0.3, 2).loss(logits, dataclasses.replace(given, teacher=nudged)),
    ):
        assert found != pytest.approx(float(other), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("label_weight", [0.0, 0.02, 0.6, 1.0])
def test_its_gradient_pulls_towards_labels_and_teacher(
    label_weight: float, temperature: float
) -> None:
    """It is ``w (student - scenes) + (1 - w) T (student_T - teacher)`` over the batch."""
    given, (logits, _, _) = batch(temperature), draws(3)
    logits.requires_grad_()
    DistillationObjective(label_weight, temperature).loss(logits, given).backward()
    hard = np.exp(log_softmax(logits)) - given.scenes.numpy()
    soft = np.exp(log_softmax(logits, temperature)) - np.exp(log_softmax(draws(5)[1], temperature))
    expected = (label_weight * hard + (1 - label_weight) * temperature * soft) / len(logits)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_teacher_without_any_doubt_gives_finite_losses() -> None:
    """A probability of exactly 0 counts nothing, in value and gradient."""
    certain = softened(500 * torch.eye(4)[[0, 1, 2, 3, 0, 1]], 2)
    assert set(certain.unique().tolist()) == {0.0, 1.0}
    logits = draws()[0].requires_grad_()
    found = DistillationObjective(0, 2).loss(logits, dataclasses.replace(batch(), teacher=certain))
    found.backward()
    expected = -4 * (certain.numpy() * log_softmax(logits, 2)).sum(axis=1).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


# Mixtures


def one_sided(classes: Tensor, count: int, gap: float) -> Tensor:
    """Logits of a teacher that hears one class in each example, (N, count)."""
    return gap * functional.one_hot(classes, count).float()


def taught(given: Batch, temperature: float) -> np.ndarray:
    """What a student that has learnt all of a batch says at T, (B, classes), by descent."""
    assert given.teacher is not None
    logits = torch.zeros_like(given.teacher).requires_grad_()
    objective = DistillationObjective(0, temperature)
    for _ in range(100):
        (gradient,) = torch.autograd.grad(len(logits) * objective.loss(logits, given), logits)
        with torch.no_grad():
            logits -= 2 * gradient
    return np.exp(log_softmax(logits, temperature))


def test_a_mixture_of_two_sounds_is_taught_as_what_it_is() -> None:
    """Each of two one-sided teachers with its weight, not sharper: the scenes show the weights.

    At T = 2 a gap of 8 is 0.982 : 0.018: a mixture with w = 0.7 is 0.69 : 0.31. The mean of the
    logits would be 0.83 : 0.17 there.
    """
    classes = torch.arange(512) % 2
    given = Batch(
        torch.zeros(512, 1, 1, 1),
        functional.one_hot(classes, 2).float(),
        torch.ones(512, 1),
        softened(one_sided(classes, 2, 8), 2),
    )
    mixed = mix_up(given, 0.4, torch.Generator().manual_seed(0))
    found, weights = taught(mixed, 2), mixed.scenes.numpy().astype(np.float64)
    sure = 1 / (1 + np.exp(-4))
    np.testing.assert_allclose(found, weights * sure + weights[:, ::-1] * (1 - sure), atol=1e-3)
    assert np.abs(found - weights).max() < 0.02
    minor = found.min(axis=1)
    seven_tenths = np.abs(weights.max(axis=1) - 0.7) < 0.03
    assert seven_tenths.sum() > 5 and (minor[seven_tenths] > 0.27).all()
    geometric = log_softmax(torch.from_numpy(8 * weights), 2)
    assert (np.exp(geometric).min(axis=1)[seven_tenths] < 0.22).all(), "logits would be told apart"


def test_batches_of_a_training_set_teach_mixtures(
    tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """With teachers as good as certain, the mixed labels themselves."""
    config = tiny_config()
    teacher = softened(one_sided(torch.from_numpy(tiny_windows.labels), 3, 40), 2)
    data = dataclasses.replace(training_set(config, tiny_windows), teacher=teacher)
    generator = torch.Generator().manual_seed(0)
    found = data.batch(np.arange(24), config.augment, generator)
    assert found.teacher is not None
    between = (found.scenes.amax(dim=1) < 0.9).sum()
    assert between >= 4, "some were mixed with another class"
    torch.testing.assert_close(found.teacher, found.scenes, rtol=0, atol=1e-6)
