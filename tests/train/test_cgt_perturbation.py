"""What the two networks of cross-gradient training hear of each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.train.cross_gradient import (
    CLASSES,
    DEVICE_EPSILON,
    DEVICES,
    SCENE_EPSILON,
    SHAPE,
    Heard,
    Noting,
    batch,
    linear,
    objective,
)
from train.cgt import CrossGradientObjective, perturbed
from train.kd import DistillationObjective
from train.objective import Batch, LabelObjective


def smooth(seed: int = 0) -> nn.Sequential:
    """A small network without batch norm, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(SHAPE[0], 3, (3, 1)), nn.SiLU(), nn.Flatten(), nn.Linear(27, CLASSES)
    ).double()


def perturbations(scene: nn.Module, device: nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    """``x_d - x``, which the scene network hears, and ``x_s - x``, which the device network does.

    In float64, so that finite differences and other batches can be compared closely.
    """
    noting = Noting(scene), Noting(device)
    cgt = objective(noting[1])
    cgt(noting[0], given)
    for network in noting:
        assert len(network.inputs) == 2 and torch.equal(network.inputs[0], given.x)
    x_d, x_s = (network.inputs[1] for network in noting)
    return x_d - given.x, x_s - given.x


def test_an_input_gradient_by_finite_differences() -> None:
    """Up the device loss goes what the scene network hears, and the other way round."""
    network, given = smooth(), batch(3)
    x, step = given.x.double(), 1e-6

    def losses(values: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.cross_entropy(
                network(values), given.scenes.double(), reduction="none"
            )

    gradient = torch.zeros_like(x)
    for place in np.ndindex(*SHAPE):
        nudge = torch.zeros(SHAPE, dtype=torch.float64)
        nudge[place] = step
        gradient[:, place[0], place[1], place[2]] = (losses(x + nudge) - losses(x - nudge)) / (
            2 * step
        )
    rms = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    same = dataclasses.replace(given, x=x, devices=given.scenes)
    cgt = CrossGradientObjective(
        LabelObjective(), network, torch.ones(CLASSES), DEVICE_EPSILON, SCENE_EPSILON
    )
    noting = Noting(network)
    cgt(noting, same)
    torch.testing.assert_close(
        noting.inputs[1], x + DEVICE_EPSILON * gradient / rms, rtol=0, atol=1e-6
    )


def test_each_network_hears_the_perturbation_of_the_other_of_its_own_size() -> None:
    scene, device = linear(CLASSES, 1).double(), linear(DEVICES, 2).double()
    given = dataclasses.replace(batch(), x=batch().x.double())
    towards_device, towards_scene = perturbations(scene, device, given)
    for found, epsilon in ((towards_device, DEVICE_EPSILON), (towards_scene, SCENE_EPSILON)):
        sizes = found.square().mean(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(sizes, torch.full_like(sizes, epsilon))


def test_a_perturbation_does_not_depend_on_who_else_is_in_the_batch() -> None:
    """The gradient of a mean loss shrinks with the batch; a perturbation must not."""
    scene, device = linear(CLASSES, 1).double(), linear(DEVICES, 2).double()
    full = dataclasses.replace(batch(32), x=batch(32).x.double())
    alone = Batch(full.x[5:6], full.scenes[5:6], full.devices[5:6])
    for many, one in zip(
        perturbations(scene, device, full), perturbations(scene, device, alone), strict=True
    ):
        torch.testing.assert_close(many[5:6], one, rtol=1e-6, atol=1e-9)


def test_a_small_perturbation_raises_the_loss_it_follows() -> None:
    scene, device = linear(CLASSES, 1).double(), linear(DEVICES, 2).double()
    given = dataclasses.replace(batch(), x=batch().x.double())
    towards_device, towards_scene = perturbations(scene, device, given)

    def losses(network: nn.Module, labels: Tensor, move: Tensor) -> Tensor:
        return functional.cross_entropy(
            network(given.x + 1e-3 * move), labels.double(), reduction="none"
        )

    still = torch.zeros_like(given.x)
    for network, labels, move in (
        (device, given.devices, towards_device),
        (scene, given.scenes, towards_scene),
    ):
        assert (losses(network, labels, move) > losses(network, labels, still)).all()


def test_no_gradient_is_no_perturbation_and_a_tiny_one_a_whole_one() -> None:
    x = torch.randn(4, *SHAPE)
    gradient = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        scaled = gradient.clone()
        scaled[0] = 0
        scaled[1:] *= scale
        moved = perturbed(x, scaled, 0.5) - x
        assert torch.equal(moved[0], torch.zeros(SHAPE))
        expected = (
            0.5 * gradient[1:] / gradient[1:].square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        )
        torch.testing.assert_close(moved[1:], expected, rtol=1e-4, atol=1e-5)
    # Squared as it is, the smallest would have vanished.
    assert float((gradient * 1e-30).square().mean()) == 0


def test_the_base_is_asked_twice_about_the_same_labels_and_teacher() -> None:
    given, heard = batch(), Heard(DistillationObjective(0.02, 2.0))
    scene = linear(CLASSES, 1)
    loss = objective(linear(DEVICES, 2), heard)(scene, given)
    assert torch.isfinite(loss)
    clean, other = heard.batches
    assert torch.equal(clean.x, given.x) and not torch.equal(other.x, given.x)
    for asked in (clean, other):
        assert asked.scenes is given.scenes and asked.teacher is given.teacher
