"""Mix-up and masks, measured on what they did."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from train.augment import augment, mask, mix_up
from train.config import AugmentConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (B, 2, 16, 12) and one class an example, so that targets show who was mixed."""
    return torch.randn(size, 2, 16, 12, generator=generator(9)), torch.eye(size)


# Mix-up


def test_mixed_examples_and_targets_are_the_same_convex_combination() -> None:
    x, targets = batch()
    mixed, mixed_targets = mix_up(x, targets, 0.4, generator())
    assert mixed.shape == x.shape and mixed.dtype == torch.float32
    # Row i of the targets holds w at i and 1 - w at its partner: the mixture itself.
    torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(64))
    assert (mixed_targets >= 0).all() and ((mixed_targets > 0).sum(dim=1) <= 2).all()
    expected = torch.einsum("ij,jcft->icft", mixed_targets, x)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    # Each example is the partner of exactly one.
    own = mixed_targets.diagonal()
    partners = (mixed_targets - torch.diag(own)).argmax(dim=1)[own < 0.999]
    assert len(set(partners.tolist())) == len(partners)


def test_each_example_has_a_weight_of_its_own() -> None:
    x, targets = batch()
    weights = mix_up(x, targets, 0.4, generator())[1].diagonal()
    assert len(set(weights.tolist())) > 60


def test_alpha_zero_changes_nothing() -> None:
    x, targets = batch()
    mixed, mixed_targets = mix_up(x, targets, 0, generator())
    assert torch.equal(mixed, x) and torch.equal(mixed_targets, targets)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 4.0])
def test_weights_are_beta_distributed(alpha: float) -> None:
    x, targets = batch()
    order = generator()
    weights = []
    for _ in range(300):
        mixed_targets = mix_up(x, targets, alpha, order)[1]
        mixed = (mixed_targets > 0).sum(dim=1) == 2  # not with itself
        weights.append(mixed_targets.diagonal()[mixed])
    w = torch.cat(weights)
    assert len(w) > 15_000
    assert abs(float(w.mean()) - 0.5) < 0.02
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert float(w.var()) == pytest.approx(variance, rel=0.05)


def test_a_tiny_alpha_gives_finite_weights() -> None:
    x, targets = batch()
    mixed, mixed_targets = mix_up(x, targets, 1e-6, generator())
    assert torch.isfinite(mixed).all() and torch.isfinite(mixed_targets).all()


# Masks


@pytest.mark.parametrize(("axis", "limit"), [(2, 13), (2, 1), (3, 5), (3, 12), (2, 16)])
def test_a_mask_is_one_run_below_the_limit_on_every_channel(axis: int, limit: int) -> None:
    x = torch.randn(500, 2, 16, 12, generator=generator(9)) + 10
    masked = mask(x, axis, limit, generator())
    zero = masked == 0
    assert torch.equal(masked[~zero], x[~zero]), "the rest is untouched"
    rows = zero.all(dim=5 - axis).all(dim=1)  # (B, size): masked on the whole of the other axes
    assert torch.equal(rows, zero.any(dim=5 - axis).any(dim=1))
    widths = rows.sum(dim=1)
    assert sorted(set(widths.tolist())) == list(range(limit)), "every width below the limit"
    edges = (functional.pad(rows.int(), (1, 1)).diff(dim=1) == 1).sum(dim=1)
    assert (edges <= 1).all(), "one run"


def test_masks_reach_both_edges() -> None:
    x = torch.ones(2000, 1, 16, 4)
    hit = (mask(x, 2, 4, generator()) == 0).any(dim=(1)).any(dim=2).float().mean(dim=0)
    # Every band is masked now and then, the middle ones equally often.
    assert hit.min() > 0.01
    assert hit[4:-4].max() < 1.6 * hit[4:-4].min()


def test_a_limit_of_zero_changes_nothing() -> None:
    x, _ = batch()
    assert torch.equal(mask(x, 2, 0, generator()), x)


# Both


def test_augmentation_follows_its_generator_and_leaves_its_inputs_alone() -> None:
    x, targets = batch()
    before = x.clone(), targets.clone()
    config = AugmentConfig(frequency_mask_bands=8, time_mask_frames=5)
    found = [augment(x, targets, config, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(x, before[0]) and torch.equal(targets, before[1])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[2][0])
    assert (found[0][0] == 0).all(dim=3).any(), "a band is masked"
    assert (found[0][0] == 0).all(dim=2).any(), "a frame is masked"


def test_augmentation_draws_nothing_from_the_global_generator() -> None:
    x, targets = batch()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    augment(x, targets, AugmentConfig(), generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_switched_off_it_is_the_identity() -> None:
    x, targets = batch()
    config = AugmentConfig(mixup_alpha=0, frequency_mask_bands=0, time_mask_frames=0)
    found = augment(x, targets, config, generator())
    assert torch.equal(found[0], x) and torch.equal(found[1], targets)
