"""Masks, measured on what they did."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from firmware_ref.errors import InputError
from train.augment.spec_augment import frequency_mask, time_mask

MASKS = {2: frequency_mask, 3: time_mask}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("axis", "limit"), [(2, 13), (2, 1), (3, 5), (3, 12), (2, 16)])
def test_a_mask_is_one_run_below_the_limit_on_every_channel(axis: int, limit: int) -> None:
    x = torch.randn(500, 2, 16, 12, generator=generator(9)) + 10
    masked = MASKS[axis](x, limit, generator())
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
    hit = (frequency_mask(x, 4, generator()) == 0).any(dim=1).any(dim=2).float().mean(dim=0)
    # Every band is masked now and then, the middle ones equally often.
    assert hit.min() > 0.01
    assert hit[4:-4].max() < 1.6 * hit[4:-4].min()


@pytest.mark.parametrize("axis", [2, 3])
def test_a_limit_of_zero_changes_nothing(axis: int) -> None:
    x = torch.randn(8, 2, 16, 12)
    assert MASKS[axis](x, 0, generator()) is x


def test_a_mask_that_does_not_fit_is_refused() -> None:
    x = torch.ones(3, 2, 16, 12)
    with pytest.raises(InputError, match="a mask under 17 bands does not fit 16; at most 16"):
        frequency_mask(x, 17, generator())
    with pytest.raises(InputError, match="a mask under 13 frames does not fit 12; at most 12"):
        time_mask(x, 13, generator())
