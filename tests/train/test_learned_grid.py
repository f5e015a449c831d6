"""Ranges that learn: gradients by the definition of learned step size quantisation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from firmware_ref.errors import InputError
from firmware_ref.graph import Quantization
from tests.train.devices import inputs
from train.qat import DeviceNetwork, _fake_quantize, _LearnedGrid, fixed_ranges, range_owners

SCALE, ZERO_POINT = 0.5, 3  # reals from 0.5 (-128 - 3) = -65.5 to 0.5 (127 - 3) = 62


def gradients(
    x: torch.Tensor, scale: float = SCALE, zero_point: int = ZERO_POINT
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rounded values, each one's gradient for x, and each one's for the scale."""
    of_scale = []
    x = x.clone().requires_grad_()
    for place in range(len(x)):
        change = torch.zeros((), requires_grad=True)
        rounded: Any = _LearnedGrid.apply(x, change, scale, zero_point)
        rounded[place].backward()
        assert change.grad is not None
        of_scale.append(change.grad / scale)  # d(scale) = scale d(log scale)
    assert x.grad is not None
    return rounded.detach(), x.grad, torch.stack(of_scale)


@pytest.mark.parametrize(
    ("x", "rounded", "of_x", "of_scale"),
    [
        (0.6, 0.5, 1, -0.2),  # v = 1.2: 1 - 1.2
        (0.9, 1.0, 1, 0.2),  # v = 1.8: 2 - 1.8
        (-0.4, -0.5, 1, -0.2),  # v = -0.8: -1 + 0.8
        (-7.0, -7.0, 1, 0.0),  # v = -14, on the grid
        (0.0, 0.0, 1, 0.0),
        (61.9, 62.0, 1, 0.2),  # v = 123.8
        (62.0, 62.0, 1, 0.0),  # the last code
        (-65.5, -65.5, 1, 0.0),  # the first code
        (62.6, 62.0, 0, 124.0),  # above: the end of the range, in steps
        (1000.0, 62.0, 0, 124.0),
        (-66.0, -65.5, 0, -131.0),
        (-1000.0, -65.5, 0, -131.0),
    ],
)
def test_single_values_by_hand(x: float, rounded: float, of_x: int, of_scale: float) -> None:
    """``round(v) - v`` inside the range and its end outside, with ``v = x / s``."""
    found = gradients(torch.tensor([x]))
    assert (float(found[0]), float(found[1])) == (pytest.approx(rounded), of_x)
    assert float(found[2]) == pytest.approx(of_scale, abs=1e-5)


@pytest.mark.parametrize("zero_point", [-128, 0, 3, 127])
def test_the_definition_by_automatic_differentiation(zero_point: int) -> None:
    """``s (clip(v) + stop(round(clip(v)) - clip(v)))``, Esser et al. 2020, appendix A."""
    generator = torch.Generator().manual_seed(zero_point + 200)
    x = 60 * torch.randn(400, generator=generator)
    low, high = -128.0 - zero_point, 127.0 - zero_point
    # Within half a step beyond an end rounding has not begun to clip: torch counts it as inside.
    v = x / SCALE
    x = x[((v - low).abs() > 0.5) & ((v - high).abs() > 0.5)]
    a, scale = x.clone().requires_grad_(), torch.full(x.shape, SCALE, requires_grad=True)
    v = (a / scale).clamp(low, high)
    expected = scale * (v + (v.round() - v).detach())
    expected.sum().backward()
    rounded, of_x, of_scale = gradients(x, SCALE, zero_point)
    torch.testing.assert_close(rounded, expected.detach())
    assert torch.equal(of_x, a.grad)
    torch.testing.assert_close(of_scale, scale.grad, rtol=1e-4, atol=1e-4)
    outside = of_x == 0
    # Both ends are passed, unless no real number lies beyond one.
    assert outside.any() and not outside.all()


def test_values_and_their_gradients_are_those_of_torchs_rounding() -> None:
    """Also half a step beyond both ends, where its range ends."""
    x = torch.cat([torch.linspace(-67, 64, 2621), torch.linspace(-0.3, 0.3, 61) - 65.5])
    theirs = x.clone().requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(theirs, SCALE, ZERO_POINT, -128, 127)
    expected.sum().backward()
    ours = x.clone().requires_grad_()
    change = torch.zeros((), requires_grad=True)
    rounded: Any = _LearnedGrid.apply(ours, change, SCALE, ZERO_POINT)
    rounded.sum().backward()
    assert torch.equal(rounded, expected)
    # At the very half a float32 may fall on either side.
    clear = ((x - 62.25).abs() > 1e-4) & ((x + 65.75).abs() > 1e-4)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad[clear], theirs.grad[clear])


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0371, 1e-6, 2.5, 7e4])
def test_the_rounding_is_torchs_bit_for_bit(scale: float, rng: np.random.Generator) -> None:
    """Ties, both ends, values far beyond them; without its mask, NaN stays NaN."""
    steps = np.concatenate([np.arange(-300, 300, 0.5), rng.normal(0, 90, 5000), [1e6, -1e6]])
    x = torch.from_numpy((steps * scale).astype(np.float32))
    for zero_point in (-128, -13, 0, 127):
        theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
        assert torch.equal(_fake_quantize(x, scale, zero_point), theirs)
    assert _fake_quantize(torch.tensor([torch.nan]), scale, 0).isnan()
    assert not torch.equal(_fake_quantize(x, scale * 1.001, zero_point), theirs)


def test_the_gradient_of_a_range_is_summed_and_weighted() -> None:
    x = torch.tensor([0.6, 0.9, 100.0])
    weights = torch.tensor([2.0, 5.0, -1.0])
    change = torch.zeros((), requires_grad=True)
    rounded: Any = _LearnedGrid.apply(x, change, SCALE, ZERO_POINT)
    (weights * rounded).sum().backward()
    # In log scale: s times (2 * -0.2 + 5 * 0.2 - 124).
    assert change.grad is not None
    assert float(change.grad) == pytest.approx(SCALE * (-0.4 + 1.0 - 124), rel=1e-5)


# In the network


def test_ranges_follow_the_parameter(quantized: DeviceNetwork) -> None:
    first = dict(quantized.quantization)
    with torch.no_grad():
        count = len(quantized.log_scale_changes)
        quantized.log_scale_changes.copy_(torch.linspace(-0.5, 0.5, count))
    owners, fixed = range_owners(quantized.graph), fixed_ranges(quantized.graph)
    learned = sorted(set(owners.values()) - fixed)
    assert count == len(learned)
    changes = dict(zip(learned, quantized.log_scale_changes.tolist(), strict=True))
    found = quantized.quantization
    assert set(found) == set(quantized.activations)
    for name, q in found.items():
        assert q.zero_point == first[name].zero_point, "zero points never change"
        assert q.scale[0] == float(np.float32(q.scale[0]))
        if name in fixed:
            assert q == Quantization((1 / 256,), (-128,))
        else:
            factor = np.exp(changes[owners[name]])
            assert q.scale[0] == pytest.approx(first[name].scale[0] * factor, rel=1e-7)
            assert q == found[owners[name]]


def test_new_grids_begin_without_changes(quantized: DeviceNetwork) -> None:
    first = dict(quantized.quantization)
    with torch.no_grad():
        quantized.log_scale_changes.add_(0.25)
    changed = dict(quantized.quantization)
    assert changed != first
    quantized.set_quantization(changed)
    assert quantized.quantization == changed and not quantized.log_scale_changes.any()
    quantized.set_quantization({})
    assert quantized.quantization == {}


@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_of_an_optimiser_changes_the_grids(
    quantized: DeviceNetwork, algorithm: type[torch.optim.Optimizer]
) -> None:
    first = dict(quantized.quantization)
    optimizer = algorithm([quantized.log_scale_changes], lr=0.01)  # type: ignore[call-arg]
    functional.cross_entropy(quantized(inputs(8, 4)), torch.arange(8) % 3).backward()
    optimizer.step()
    after = quantized.quantization
    assert [q.zero_point for q in after.values()] == [q.zero_point for q in first.values()]
    changed = {name for name in first if first[name] != after[name]}
    learned = set(first) - fixed_ranges(quantized.graph)
    # A step of SGD may be below the resolution of a float32 scale; Adam's are all of one size.
    assert changed == learned or (algorithm is torch.optim.SGD and changed < learned)
    assert len(changed) > len(learned) / 2


def test_learning_changes_no_value_that_is_computed(quantized: DeviceNetwork) -> None:
    """With gradients or without, the network rounds alike."""
    x = inputs(4, 5)
    with torch.no_grad():
        expected = quantized(x)
    assert torch.equal(quantized(x), expected)


def test_ranges_learned_from_the_float_output_come_nearer_to_it(
    quantized: DeviceNetwork,
) -> None:
    """Every range eight times too wide: 40 steps on the ranges alone win much of it back."""
    x, plain = inputs(16, 8), copy.deepcopy(quantized)
    plain.set_quantization({})
    with torch.no_grad():
        wanted = plain(x)
        quantized.log_scale_changes.add_(np.log(8))
    optimizer = torch.optim.Adam([quantized.log_scale_changes], lr=0.05)
    losses = []
    for _ in range(40):
        loss = functional.mse_loss(quantized(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.5 * losses[0], losses


def test_a_range_that_runs_away_names_what_to_lower(quantized: DeviceNetwork) -> None:
    with torch.no_grad():
        quantized.log_scale_changes[0] = 95.0
    with pytest.raises(InputError, match=r"diverged to a scale of .*qat\.range_learning_rate"):
        _ = quantized.quantization


def test_a_copy_has_grids_of_its_own(quantized: DeviceNetwork) -> None:
    """Also after as many changes in place as the original had."""
    for _ in range(3):
        with torch.no_grad():
            quantized.log_scale_changes += 0.1
    before = dict(quantized.quantization)
    twin = copy.deepcopy(quantized)
    for _ in range(3):
        with torch.no_grad():
            twin.log_scale_changes += 0.1
    assert dict(quantized.quantization) == before != dict(twin.quantization)
