"""Cross-gradient training against its equations, written out in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.errors import InputError
from tests.train.cross_gradient import (
    CLASSES,
    COUNTS,
    DEVICE_EPSILON,
    DEVICES,
    SCENE_EPSILON,
    SHAPE,
    A,
    batch,
    linear,
    objective,
)
from train.cgt import CrossGradientObjective, balanced_weights
from train.objective import Batch, LabelObjective

# The equations, for linear networks


class Linear:
    """A linear classifier and its weighted cross-entropy, in float64."""

    def __init__(self, network: nn.Sequential, weights: Sequence[float]) -> None:
        layer = network[1]
        assert isinstance(layer, nn.Linear)
        self.weight, self.bias = (
            p.detach().numpy().astype(np.float64) for p in (layer.weight, layer.bias)
        )
        self.weights = np.array(weights)

    def loss(self, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean loss, and the gradient of each example's own loss by its logits."""
        logits = x @ self.weight.T + self.bias
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        weighted = self.weights * y
        by_logits = weighted.sum(axis=1, keepdims=True) * np.exp(log_p) - weighted
        return float(-(weighted * log_p).sum(axis=1).mean()), by_logits

    def moved(self, x: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
        gradient = self.loss(x, y)[1] @ self.weight
        rms = np.sqrt((gradient**2).mean(axis=1, keepdims=True))
        return x + epsilon * gradient / rms

    def step(self, clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """``(1 - a) J(clean) + a J(moved)`` and its gradient by the weights."""
        parts = []
        for x in (clean, moved):
            value, by_logits = self.loss(x, y)
            parts.append((value, by_logits.T @ x / len(x)))
        (j, g), (j_moved, g_moved) = parts
        return (1 - A) * j + A * j_moved, (1 - A) * g + A * g_moved


Expected = tuple[float, np.ndarray, np.ndarray]


def by_hand(
    scene: nn.Sequential,
    device: nn.Sequential,
    given: Batch,
    weights: Sequence[float] | None = None,
    devices: Tensor | None = None,
    clean_only: bool = False,
) -> Expected:
    """The loss, and its gradients by the weights of either network.

    The arguments beside the first three make the mistakes that the objective must not make.
    """
    balanced = [sum(COUNTS) / (len(COUNTS) * n) for n in COUNTS]
    s = Linear(scene, [1.0] * CLASSES)
    d = Linear(device, weights or balanced)
    x = given.x.flatten(1).numpy().astype(np.float64)
    scenes = given.scenes.numpy().astype(np.float64)
    of_device = (given.devices if devices is None else devices).numpy().astype(np.float64)
    x_d, x_s = d.moved(x, of_device, DEVICE_EPSILON), s.moved(x, scenes, SCENE_EPSILON)
    if clean_only:
        x_d = x_s = x
    scene_loss, scene_gradient = s.step(x, x_d, scenes)
    device_loss, device_gradient = d.step(x, x_s, of_device)
    return scene_loss + device_loss, scene_gradient, device_gradient


def found(scene: nn.Sequential, device: nn.Sequential, given: Batch) -> Expected:
    """The same by the objective."""
    loss = objective(device)(scene, given)
    loss.backward()
    gradients = []
    for network in (scene, device):
        layer = network[1]
        assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
        gradients.append(layer.weight.grad.numpy().astype(np.float64))
    return float(loss.detach()), gradients[0], gradients[1]


def agree(a: Expected, b: Expected) -> bool:
    return all(np.allclose(a[part], b[part], rtol=1e-4, atol=1e-6) for part in range(3))


def test_loss_and_both_gradients_are_those_of_the_equations() -> None:
    """So nothing passes through a perturbation: the gradients by hand take it as a constant."""
    scene, device, given = linear(CLASSES, 1), linear(DEVICES, 2), batch()
    assert agree(found(scene, device, given), by_hand(scene, device, given))


def test_the_comparison_sees_one_nudged_value() -> None:
    scene, device, given = linear(CLASSES, 1), linear(DEVICES, 2), batch()
    expected = by_hand(scene, device, given)
    for part in (1, 2):
        nudged = copy.deepcopy(expected)
        array = nudged[part]
        assert isinstance(array, np.ndarray)
        array[1, 2] += 1e-4
        assert not agree(expected, nudged)
    assert not agree(expected, (expected[0] * 1.001, *expected[1:]))


def test_unbalanced_hard_or_unperturbed_is_something_else() -> None:
    scene, device, given = linear(CLASSES, 1), linear(DEVICES, 2), batch()
    right = found(scene, device, given)
    hard = functional.one_hot(given.devices.argmax(dim=1), DEVICES).float()
    for wrong in (
        by_hand(scene, device, given, weights=[1.0] * DEVICES),
        by_hand(scene, device, given, devices=hard),
        by_hand(scene, device, given, clean_only=True),
    ):
        assert not agree(right, wrong)
        for ours, other in zip(right[1:], wrong[1:], strict=True):
            assert np.abs(np.array(ours) - np.array(other)).max() > 1e-3


def test_a_gradient_through_the_perturbation_would_show() -> None:
    """The same loss with perturbations left attached: its value is equal, its gradients are not."""
    scene, device, given = linear(CLASSES, 1), linear(DEVICES, 2), batch()
    weights = balanced_weights(COUNTS)

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        return (
            functional.cross_entropy(scene(x), given.scenes),
            functional.cross_entropy(device(x), given.devices, weight=weights),
        )

    x = given.x.clone().requires_grad_()
    clean = losses(x)
    moved = []
    for loss, epsilon in zip(clean, (SCENE_EPSILON, DEVICE_EPSILON), strict=True):
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        moved.append(x + epsilon * g / g.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())
    naive = (1 - A) * sum(clean) + A * (losses(moved[1])[0] + losses(moved[0])[1])
    parameters = [scene[1].weight, device[1].weight]
    attached = torch.autograd.grad(naive, parameters)  # type: ignore[arg-type]
    right = found(scene, device, given)
    assert right[0] == pytest.approx(float(naive.detach()), rel=1e-5)
    for ours, other in zip(right[1:], attached, strict=True):
        assert np.abs(ours - other.numpy()).max() > 1e-3


# The device loss


def test_balanced_weights_by_hand() -> None:
    torch.testing.assert_close(
        balanced_weights([60, 30, 10]), torch.tensor([5 / 9, 10 / 9, 10 / 3])
    )
    # A device that only the test has is not among those that are balanced.
    torch.testing.assert_close(balanced_weights([60, 0, 20]), torch.tensor([2 / 3, 0, 2]))
    assert balanced_weights([5, 5]).dtype == torch.float32


@pytest.mark.parametrize("counts", [[], [7], [7, 0, 0], [0, 0]])
def test_fewer_than_two_devices_are_refused(counts: list[int]) -> None:
    with pytest.raises(InputError, match=r"two devices at least, not [01]; switch it off"):
        balanced_weights(counts)


def test_every_device_counts_the_same_however_often_it_recorded() -> None:
    """Over data with these counts the loss is the mean of the devices' own mean losses."""
    labels = torch.repeat_interleave(torch.arange(DEVICES), torch.tensor(COUNTS))
    x = torch.randn(len(labels), *SHAPE, generator=torch.Generator().manual_seed(1))
    devices = functional.one_hot(labels, DEVICES).float()
    device = linear(DEVICES, 2)
    # Without perturbation, and without scenes to speak of.
    cgt = CrossGradientObjective(
        LabelObjective(), device, balanced_weights(COUNTS), 0.0, 0.0, perturbed_weight=0.0
    )
    scene = linear(CLASSES, 1)
    scenes = torch.full((len(labels), CLASSES), 1 / CLASSES)
    whole = cgt(scene, Batch(x, scenes, devices)).detach()
    ours = whole - functional.cross_entropy(scene(x), scenes).detach()
    each = functional.cross_entropy(device(x), labels, reduction="none").detach()
    means = torch.stack([each[labels == number].mean() for number in range(DEVICES)])
    torch.testing.assert_close(ours, means.mean(), rtol=1e-4, atol=0)
    assert abs(float(means.mean() - each.mean())) > 1e-2, "which is not the mean of all"


# As a module


def test_the_device_network_trains_with_it_and_the_scene_network_does_not_belong_to_it() -> None:
    scene, device = linear(CLASSES, 1), linear(DEVICES, 2)
    cgt = objective(device)
    assert {id(p) for p in cgt.parameters()} == {id(p) for p in device.parameters()}
    assert {name.split(".")[0] for name in cgt.state_dict()} == {"device_network"}
    both = torch.optim.SGD([*scene.parameters(), *cgt.parameters()], lr=0.2)
    losses = []
    for _ in range(50):
        both.zero_grad()
        loss = cgt(scene, batch())
        loss.backward()
        both.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_frozen_parameter_stays_without_gradient() -> None:
    scene, device = linear(CLASSES, 1), linear(DEVICES, 2)
    bias = scene[1].bias
    assert isinstance(bias, Tensor)
    bias.requires_grad_(False)
    objective(device)(scene, batch()).backward()
    assert bias.grad is None
    assert all(p.grad is not None for p in [scene[1].weight, *device.parameters()])


def test_input_and_labels_are_left_alone() -> None:
    given, before = batch(), batch()
    objective(linear(DEVICES, 2))(linear(CLASSES, 1), given).backward()
    assert torch.equal(given.x, before.x) and not given.x.requires_grad and given.x.grad is None
    assert torch.equal(given.scenes, before.scenes)
    assert torch.equal(given.devices, before.devices)


def test_losses_of_bfloat16_logits_are_computed_in_float32() -> None:
    """Which is what a network gives under autocast on a GPU."""

    class Half(nn.Module):
        def __init__(self, network: nn.Module, exact: bool) -> None:
            super().__init__()
            self.network, self.exact = network, exact

        def forward(self, x: Tensor) -> Tensor:
            rounded = self.network(x).bfloat16()
            return rounded.float() if self.exact else rounded

    found = [
        objective(Half(linear(DEVICES, 2), exact))(Half(linear(CLASSES, 1), exact), batch())
        for exact in (False, True)
    ]
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)
