"""Mix-up, measured on what it did."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from train.augment.mix_up import mix_up
from train.objective import Batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 64) -> Batch:
    """Maps (B, 2, 16, 12) and one class an example, so that the scenes show who was mixed."""
    draws = generator(9)
    return Batch(
        x=torch.randn(size, 2, 16, 12, generator=draws),
        scenes=torch.eye(size),
        devices=functional.one_hot(torch.randint(0, 4, (size,), generator=draws), 4).float(),
        teacher=(5 * torch.randn(size, 7, generator=draws)).softmax(dim=1),
    )


def test_everything_known_of_an_example_is_the_same_convex_combination() -> None:
    given = batch()
    found = mix_up(given, 0.4, generator())
    # Row i of the scenes holds w at i and 1 - w at its partner: the mixture itself.
    weights = found.scenes
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(64))
    assert (weights >= 0).all() and ((weights > 0).sum(dim=1) <= 2).all()
    assert found.teacher is not None and given.teacher is not None
    for mixed, values in (
        (found.x.flatten(1), given.x.flatten(1)),
        (found.devices, given.devices),
        (found.teacher, given.teacher),
    ):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, weights @ values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.teacher.sum(dim=1), torch.ones(64))
    # Each example is the partner of exactly one.
    own = weights.diagonal()
    partners = (weights - torch.diag(own)).argmax(dim=1)[own < 0.999]
    assert len(set(partners.tolist())) == len(partners)


@pytest.mark.parametrize("field", ["x", "devices", "teacher"])
def test_weights_or_partners_of_its_own_would_show(field: str) -> None:
    """What the test above compares with differs from a mixture by another draw."""
    found, other = mix_up(batch(), 0.4, generator()), mix_up(batch(), 0.4, generator(1))
    expected = found.scenes @ getattr(batch(), field).flatten(1)
    difference = (getattr(other, field).flatten(1) - expected).abs().amax(dim=1)
    assert (difference > 1e-2).sum() > 16


def test_without_a_teacher_there_is_none() -> None:
    given = dataclasses.replace(batch(), teacher=None)
    found = mix_up(given, 0.4, generator())
    assert found.teacher is None
    assert torch.equal(found.x, mix_up(batch(), 0.4, generator()).x)


def test_each_example_has_a_weight_of_its_own() -> None:
    weights = mix_up(batch(), 0.4, generator()).scenes.diagonal()
    assert len(set(weights.tolist())) > 60


def test_alpha_zero_changes_nothing() -> None:
    given = batch()
    assert mix_up(given, 0, generator()) is given


@pytest.mark.parametrize("alpha", [0.4, 1.0, 4.0])
def test_weights_are_beta_distributed(alpha: float) -> None:
    order = generator()
    weights = []
    for _ in range(300):
        scenes = mix_up(batch(), alpha, order).scenes
        mixed = (scenes > 0).sum(dim=1) == 2  # not with itself
        weights.append(scenes.diagonal()[mixed])
    w = torch.cat(weights)
    assert len(w) > 15_000
    assert abs(float(w.mean()) - 0.5) < 0.02
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert float(w.var()) == pytest.approx(variance, rel=0.05)


def test_a_tiny_alpha_gives_finite_weights() -> None:
    found = mix_up(batch(), 1e-6, generator())
    assert torch.isfinite(found.x).all() and torch.isfinite(found.scenes).all()
