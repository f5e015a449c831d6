"""Cross-gradient training of whole networks: batch norm, dropout, autocast."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.arch import Network
from tests.train.cross_gradient import (
    COUNTS,
    DEVICE_EPSILON,
    A,
    Heard,
    Noting,
    objective,
)
from train.cgt import balanced_weights, running_statistics_kept
from train.model import build_model
from train.objective import Batch, LabelObjective

Networks = Callable[[], tuple[nn.Module, nn.Module, Batch]]


@pytest.fixture
def networks(tiny_network: Network) -> Networks:
    """A scene and a device network with batch norms, in training mode, without dropout."""

    def build() -> tuple[nn.Module, nn.Module, Batch]:
        torch.manual_seed(0)
        network = dataclasses.replace(tiny_network, dropout=0.0)
        labels = torch.arange(6) % 3
        one_hot = functional.one_hot(labels, 3).float()
        x = torch.randn(6, 3, 32, 20)
        return (
            build_model(network).train(),
            build_model(network).train(),
            Batch(x, one_hot, one_hot.roll(1, dims=0)),
        )

    return build


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert set(a) == set(b) and a
    return all(torch.equal(a[name], b[name]) for name in a)


def test_running_statistics_are_those_of_the_clean_input(networks: Networks) -> None:
    scene, device, given = networks()
    objective(device)(scene, given)
    for trained, plain in zip((scene, device), networks()[:2], strict=True):
        before = statistics(plain)
        plain(given.x)
        assert same(statistics(trained), statistics(plain))
        assert not same(before, statistics(plain))
        plain(given.x)  # once more, as a naive perturbed pass would
        assert not same(statistics(trained), statistics(plain))
        counters = [v for n, v in trained.named_buffers() if n.endswith("num_batches_tracked")]
        assert counters and all(int(count) == 1 for count in counters)


def test_a_perturbed_pass_normalises_by_its_own_batch(networks: Networks) -> None:
    """As training does; by running statistics it would be another loss."""
    scene, device, given = networks()
    heard = Heard()
    whole = objective(device, heard)(scene, given).detach()
    x_d = dataclasses.replace(given, x=heard.batches[1].x)
    scene, device, _ = networks()
    cross_entropy, weights = functional.cross_entropy, balanced_weights(COUNTS)
    noting = Noting(device)
    objective(noting)(copy.deepcopy(scene), given)
    x_s = noting.inputs[1]
    scene, device, _ = networks()
    scene_part = (1 - A) * LabelObjective()(scene, given) + A * LabelObjective()(scene, x_d)
    device_part = (1 - A) * cross_entropy(device(given.x), given.devices, weight=weights)
    device_part = device_part + A * cross_entropy(device(x_s), given.devices, weight=weights)
    torch.testing.assert_close(whole, (scene_part + device_part).detach())
    scene.eval()
    running = (1 - A) * LabelObjective()(scene, given) + A * LabelObjective()(scene, x_d)
    assert abs(float((running - scene_part).detach())) > 1e-2


def test_gradients_of_whole_networks_are_those_of_two_plain_losses(networks: Networks) -> None:
    """Given ``x_d`` and ``x_s``, either network's gradient is that of its own two losses alone."""
    scene, device, given = networks()
    noting = Noting(scene), Noting(device)
    objective(noting[1])(noting[0], given).backward()
    x_d, x_s = (network.inputs[1] for network in noting)
    plain_scene, plain_device, _ = networks()
    for network, trained, moved, labels, weights in (
        (plain_scene, scene, x_d, given.scenes, None),
        (plain_device, device, x_s, given.devices, balanced_weights(COUNTS)),
    ):
        loss = (1 - A) * functional.cross_entropy(network(given.x), labels, weight=weights)
        loss = loss + A * functional.cross_entropy(network(moved), labels, weight=weights)
        loss.backward()
        for parameter, expected in zip(trained.parameters(), network.parameters(), strict=True):
            assert parameter.grad is not None and expected.grad is not None
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-6)


def flags(module: nn.Module) -> list[tuple[bool, bool | None]]:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in module.modules()]


def test_whatever_happens_the_networks_are_left_as_they_were(networks: Networks) -> None:
    scene, device, given = networks()
    untracked = next(m for m in scene.modules() if isinstance(m, nn.BatchNorm2d))
    untracked.track_running_stats = False
    before = flags(scene), flags(device)
    with running_statistics_kept(scene, device):
        assert flags(scene) != before[0] and flags(device) != before[1]
    assert (flags(scene), flags(device)) == before
    with pytest.raises(KeyboardInterrupt), running_statistics_kept(scene, device):
        raise KeyboardInterrupt
    assert (flags(scene), flags(device)) == before
    objective(device)(scene, given).backward()
    assert (flags(scene), flags(device)) == before


def test_the_same_seed_gives_the_same_bits(tiny_network: Network) -> None:
    """Dropout is the only chance in it."""
    given = Batch(torch.randn(6, 3, 32, 20), torch.eye(3)[[0, 1, 2] * 2], torch.eye(3)[[0] * 6])

    def once(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        scene, device = build_model(tiny_network), build_model(tiny_network)
        torch.manual_seed(seed)
        loss = objective(device)(scene, given)
        loss.backward()
        gradient = next(scene.parameters()).grad
        assert gradient is not None
        return loss.detach(), gradient

    first, again, other = once(1), once(1), once(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_under_autocast_losses_and_perturbations_are_of_float32(networks: Networks) -> None:
    scene, device, given = networks()
    plain = objective(device)(scene, given).detach()
    heard = Heard()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(device, heard)(scene, given)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(plain), rel=0.03)
    x_d = heard.batches[1].x
    assert x_d.dtype == torch.float32
    sizes = (x_d - given.x).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(sizes, torch.full_like(sizes, DEVICE_EPSILON))
    for parameter in [*scene.parameters(), *device.parameters()]:
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_cuda_under_autocast(networks: Networks) -> None:
    scene, device, given = networks()
    plain = objective(device)(scene, given).detach()
    there = Batch(given.x.cuda(), given.scenes.cuda(), given.devices.cuda())
    scene, device, _ = networks()
    cgt = objective(device).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        loss = cgt(scene.cuda(), there)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(plain), rel=0.05)
