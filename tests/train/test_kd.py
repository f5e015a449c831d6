"""Distillation against its definition, written out in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.arch import Network
from train.kd import DistillationObjective, FloatTeacherObjective, distillation, divergence
from train.model import build_model
from train.objective import Batch, LabelObjective, LogitsObjective


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
    """Cross-entropy with the targets, and T^2 KL(teacher || student); means over the batch."""
    cross_entropy = -(targets.numpy() * log_softmax(logits)).sum(axis=1).mean()
    student, wanted = log_softmax(logits, temperature), log_softmax(teacher, temperature)
    softened = (np.exp(wanted) * (wanted - student)).sum(axis=1).mean()
    return float(cross_entropy), float(temperature**2 * softened)


# The function


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.98, 1.0])
def test_it_is_the_weighted_sum_of_both(weight: float, temperature: float) -> None:
    logits, teacher, targets = draws()
    cross_entropy, softened = by_hand(logits, teacher, targets, temperature)
    assert abs(cross_entropy - softened) > 0.1, "the two can be told apart"
    found = distillation(logits, teacher, targets, weight, temperature)
    expected = (1 - weight) * cross_entropy + weight * softened
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_another_temperature_or_direction_is_another_value() -> None:
    logits, teacher, _ = draws()
    found = float(divergence(logits, teacher, 2))
    for other in (
        divergence(logits, teacher, 2.01),
        divergence(logits, teacher, 2) / 4,
        divergence(teacher, logits, 2),
    ):
        assert found != pytest.approx(float(other), rel=1e-3)


def test_torch_agrees_at_both_ends() -> None:
    logits, teacher, targets = draws(1)
    found = distillation(logits, teacher, targets, 0.0)
    torch.testing.assert_close(found, functional.cross_entropy(logits, targets))
    student, wanted = (torch.distributions.Categorical(logits=x) for x in (logits, teacher))
    expected = torch.distributions.kl_divergence(wanted, student).mean()
    torch.testing.assert_close(distillation(logits, teacher, targets, 1.0), expected)


def test_two_classes_by_hand() -> None:
    """Student 1 : 1, teacher 3 : 1: ``3/4 log(3/2) + 1/4 log(1/2)``; from 9 : 1 at T = 2, by 4."""
    logits = torch.zeros(1, 2)
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    found = divergence(logits, torch.log(torch.tensor([[3.0, 1.0]])))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    found = divergence(logits, torch.log(torch.tensor([[9.0, 1.0]])), temperature=2)
    assert float(found) == pytest.approx(4 * expected, rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    _, teacher, targets = draws(2)
    logits = (teacher + 5).requires_grad_()  # the same probabilities
    loss = distillation(logits, teacher, targets, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_pulls_towards_the_mixture(weight: float, temperature: float) -> None:
    """It is ``(1 - w) (student - targets) + w T (student_T - teacher_T)`` over the batch."""
    logits, teacher, targets = draws(3)
    logits.requires_grad_()
    distillation(logits, teacher, targets, weight, temperature).backward()
    hard = logits.detach().softmax(dim=1) - targets
    soft = (logits.detach() / temperature).softmax(dim=1) - (teacher / temperature).softmax(dim=1)
    expected = ((1 - weight) * hard + weight * temperature * soft) / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_at_temperature_one_no_bit_has_changed_since_checkpoints_were_shipped() -> None:
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


def batch() -> Batch:
    _, teacher, scenes = draws(5)
    x = 2 * torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(6))
    return Batch(x, scenes, torch.ones(6, 1), teacher)


def test_labels_alone() -> None:
    given, network = batch(), linear()
    cross_entropy, _ = by_hand(network(given.x), network(given.x), given.scenes)
    found = LabelObjective()(network, given).detach()
    assert float(found) == pytest.approx(cross_entropy, rel=1e-5)


@pytest.mark.parametrize(("label_weight", "temperature"), [(0.02, 2.0), (0.5, 1.0), (0.0, 3.0)])
def test_distillation_from_the_teacher_of_the_batch(
    label_weight: float, temperature: float
) -> None:
    given, network = batch(), linear()
    assert given.teacher is not None
    parts = by_hand(network(given.x), given.teacher, given.scenes, temperature)
    expected = label_weight * parts[0] + (1 - label_weight) * parts[1]
    found = DistillationObjective(label_weight, temperature)(network, given).detach()
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("base", [LabelObjective(), DistillationObjective(0.02, 2.0)])
def test_a_float_network_beside_any_base(base: LogitsObjective, weight: float) -> None:
    given, student, teacher = batch(), Counted(linear(1)), linear(2)
    softened = by_hand(student(given.x), teacher(given.x), given.scenes)[1]
    expected = (1 - weight) * float(base(student, given).detach()) + weight * softened
    student.passes = 0
    found = FloatTeacherObjective(base, teacher, weight)(student, given).detach()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert student.passes == 1


def test_at_its_ends_only_the_one_part_is_computed() -> None:
    given, teacher = batch(), Counted(linear(2))
    FloatTeacherObjective(LabelObjective(), teacher, 0.0)(linear(1), given)
    assert teacher.passes == 0
    FloatTeacherObjective(Never(), teacher, 1.0)(linear(1), given)
    assert teacher.passes == 1
    with pytest.raises(AssertionError, match="the base was computed"):
        FloatTeacherObjective(Never(), teacher, 0.5)(linear(1), given)


def test_the_float_network_is_neither_trained_nor_kept(tiny_network: Network) -> None:
    torch.manual_seed(0)
    teacher, student = build_model(tiny_network).train(), build_model(tiny_network).train()
    before = copy.deepcopy(teacher.state_dict())
    objective = FloatTeacherObjective(LabelObjective(), teacher, 0.5)
    objective.train()
    x = torch.randn(4, 3, 32, 20)
    found = objective(student, Batch(x, torch.eye(4)[:, :3], torch.ones(4, 1)))
    found.backward()
    assert not teacher.training, "dropout and batch statistics are off"
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert not list(objective.parameters()) and not objective.state_dict()


class Half(nn.Module):
    """A network whose logits are bfloat16, as autocast on a GPU makes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).bfloat16()


@pytest.mark.parametrize(
    "objective",
    [
        LabelObjective(),
        DistillationObjective(0.02, 3.0),
        FloatTeacherObjective(LabelObjective(), Half(linear(2)), 0.5),
    ],
    ids=["labels", "teacher", "float teacher"],
)
def test_losses_of_bfloat16_logits_are_computed_in_float32(objective: LogitsObjective) -> None:
    given, student = batch(), linear(1)
    found = objective(Half(student), given)
    assert found.dtype == torch.float32
    rounded = student(given.x).bfloat16().float()
    if isinstance(objective, FloatTeacherObjective):
        teacher = linear(2)(given.x).bfloat16().float()
        assert torch.equal(found, distillation(rounded, teacher, given.scenes, 0.5))
    else:
        assert torch.equal(found, objective.loss(rounded, given))


@pytest.mark.parametrize(
    "objective",
    [
        LabelObjective(),
        DistillationObjective(0.02, 2.0),
        FloatTeacherObjective(LabelObjective(), linear(2), 0.5),
    ],
)
def test_under_autocast_the_loss_is_of_float32(objective: LogitsObjective) -> None:
    network, given = linear(1), batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(given.x).dtype == torch.bfloat16
        found = objective(network, given)
    assert found.dtype == torch.float32
    found.backward()
    value, plain = found.detach(), objective(network, given).detach()
    assert float(value) == pytest.approx(float(plain), rel=0.02)
    assert float(value) != float(value.bfloat16()), "not rounded to three digits on the way"
