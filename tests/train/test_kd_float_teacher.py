"""The float network as the teacher of its quantised self, and precision under autocast."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from firmware_ref.arch import Network
from tests.train.distilling import Counted, Never, batch, by_hand, linear
from train.kd import (
    DistillationObjective,
    FloatTeacherObjective,
    distillation,
)
from train.model import build_model
from train.objective import Batch, LabelObjective, LogitsObjective

# A float network as teacher


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("base", [LabelObjective(), DistillationObjective(0.02, 2.0)])
def test_a_float_network_beside_any_base(base: LogitsObjective, weight: float) -> None:
    given, student, teacher = batch(), Counted(linear(1)), linear(2)
    kl = by_hand(student(given.x), teacher(given.x), given.scenes)[1]
    expected = (1 - weight) * float(base(student, given).detach()) + weight * kl
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


def test_the_teacher_of_the_batch_is_heard_beside_a_float_network_but_at_weight_one() -> None:
    given, student = batch(), linear(1)
    other = dataclasses.replace(given, teacher=batch(4).teacher)
    for weight, heard in ((0.5, True), (1.0, False)):
        objective = FloatTeacherObjective(DistillationObjective(0.02, 2.0), linear(2), weight)
        first, second = (objective(student, each).detach() for each in (given, other))
        assert (float(first) != float(second)) is heard


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
