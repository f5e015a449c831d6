"""The time warp against `numpy.interp`, and its draws against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firmware_ref.errors import InputError
from train.augment.time_warp import time_warp, warp

FRAMES = 44


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_interp(x: torch.Tensor, point: torch.Tensor, displacement: torch.Tensor) -> np.ndarray:
    """One example and band after another, in float64."""
    values, last = x.numpy().astype(np.float64), x.shape[-1] - 1
    time, found = np.arange(last + 1), []
    for bands, w0, w in zip(values, point.tolist(), displacement.tolist(), strict=True):
        source = np.interp(time, [0, w0 + w, last], [0, w0, last])
        found.append([np.interp(source, time, band) for band in bands])
    return np.array(found)


def close(x: torch.Tensor, expected: np.ndarray) -> bool:
    return bool(np.abs(x.numpy() - expected).max() < 1e-4)


def drawn(count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (B, 6, 44), points and displacements anywhere that the definition allows."""
    draws = generator(4)
    limit = 5 + 16 * torch.rand(count, generator=draws)
    point = limit + (FRAMES - 1 - 2 * limit) * torch.rand(count, generator=draws)
    displacement = limit * (2 * torch.rand(count, generator=draws) - 1)
    return torch.randn(count, 6, FRAMES, generator=draws), point, displacement


def test_it_is_piecewise_linear_interpolation() -> None:
    x, point, displacement = drawn()
    assert close(warp(x, point, displacement), by_interp(x, point, displacement))


def test_the_comparison_sees_a_displacement_nudged_by_a_hundredth_of_a_frame() -> None:
    x, point, displacement = drawn()
    found = warp(x, point, displacement)
    for nudge in (point, displacement):
        nudge[7] += 0.01
        assert not close(found, by_interp(x, point, displacement))
        nudge[7] -= 0.01


def test_five_frames_by_hand() -> None:
    """Frame 2 comes one later: three steps of 2/3 before it, one step of 2 after it."""
    x = torch.tensor([[[0.0, 10, 20, 30, 90]]])
    found = warp(x, torch.tensor([2.0]), torch.tensor([1.0]))
    expected = torch.tensor([[[0, 20 / 3, 40 / 3, 20, 90]]])
    torch.testing.assert_close(found, expected)
    earlier = warp(x, torch.tensor([2.0]), torch.tensor([-1.0]))
    torch.testing.assert_close(earlier, torch.tensor([[[0, 20, 20 + 20 / 3, 50, 90]]]))


def test_channels_and_bands_of_an_example_are_warped_alike() -> None:
    x = drawn()[0]
    flat = time_warp(x, 5, generator())
    assert torch.equal(time_warp(x.unsqueeze(1), 5, generator()), flat.unsqueeze(1))
    alike = x[:, :1].expand(-1, 6, -1)
    bands = time_warp(alike, 5, generator())
    assert torch.equal(bands, bands[:, :1].expand(-1, 6, -1))


def test_ends_stay_and_nothing_leaves_the_range() -> None:
    x = drawn()[0]
    warped = time_warp(x, 21, generator())
    assert torch.equal(warped[..., [0, -1]], x[..., [0, -1]])
    assert (warped <= x.amax(dim=-1, keepdim=True)).all()
    assert (warped >= x.amin(dim=-1, keepdim=True)).all()


def test_what_rises_still_rises() -> None:
    rising = torch.rand(200, 3, FRAMES, generator=generator(2)).add(0.01).cumsum(dim=-1)
    assert (time_warp(rising, 21, generator()).diff(dim=-1) > 0).all()


def test_a_point_moved_onto_an_end_is_finite() -> None:
    x = drawn(2)[0]
    last = FRAMES - 1.0
    found = warp(x, torch.tensor([5.0, last - 5]), torch.tensor([-5.0, 5.0]))
    assert torch.isfinite(found).all()
    assert torch.equal(found[..., [0, -1]], x[..., [0, -1]])


def test_points_and_displacements_are_uniform() -> None:
    """A ramp shows where each frame came from, its two slopes the point and the displacement."""
    limit, last, count = 5, FRAMES - 1, 20_000
    ramp = torch.arange(FRAMES).float().expand(count, 1, -1)
    source = time_warp(ramp, limit, generator())[:, 0].double()
    first, second = source[:, 1], last - source[:, -2]  # slopes of either half
    clear = (first - second).abs() > 0.02
    assert clear.float().mean() > 0.9
    moved = (last * (1 - second) / (first - second))[clear]
    point = first[clear] * moved
    displacement = moved - point
    assert limit - 0.01 < point.min() < limit + 0.1
    assert last - limit - 0.1 < point.max() < last - limit + 0.01
    assert abs(float(point.mean()) - last / 2) < 0.3
    assert float(point.std()) == pytest.approx((last - 2 * limit) / 12**0.5, rel=0.03)
    assert float(displacement.abs().max()) == pytest.approx(limit, abs=0.02)
    assert abs(float(displacement.mean())) < 0.1
    # Small ones are not clear; the others are uniform to either side.
    for low, high in ((-5, -3), (-3, -1), (1, 3), (3, 5)):
        share = ((displacement > low) & (displacement < high)).sum() / count
        assert float(share) == pytest.approx(0.2, abs=0.015)
    assert abs(float(torch.corrcoef(torch.stack([point, displacement]))[0, 1])) < 0.03


def test_a_limit_of_zero_changes_nothing() -> None:
    x = drawn()[0]
    assert time_warp(x, 0, generator()) is x


def test_a_limit_that_leaves_no_point_is_refused() -> None:
    x = torch.randn(2, 3, FRAMES)
    assert torch.isfinite(time_warp(x, 21, generator())).all()
    message = "a time warp of 22 frames does not fit 44; at most 21"
    with pytest.raises(InputError, match=message):
        time_warp(x, 22, generator())
    with pytest.raises(InputError, match="does not fit 3; at most 0"):
        time_warp(x[..., :3], 1, generator())
