"""What every augmentation holds: its generator alone decides, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from train.augment.mix_up import mix_up
from train.augment.silence import silence
from train.augment.spec_augment import frequency_mask, time_mask
from train.augment.time_warp import time_warp
from train.objective import Batch

Technique = Callable[[Batch, int, torch.Generator], Batch]


def on_input(
    function: Callable[[torch.Tensor, int, torch.Generator], torch.Tensor],
) -> Technique:
    """A technique for input alone as one for batches."""

    def apply(batch: Batch, limit: int, generator: torch.Generator) -> Batch:
        return dataclasses.replace(batch, x=function(batch.x, limit, generator))

    return apply


# Each with a limit at which it changes something.
TECHNIQUES = [
    pytest.param(mix_up, 1, id="mix_up"),
    pytest.param(lambda b, p, g: silence(b, -b.x, p / 2, g), 1, id="silence"),
    pytest.param(on_input(time_warp), 4, id="time_warp"),
    pytest.param(on_input(frequency_mask), 9, id="frequency_mask"),
    pytest.param(on_input(time_mask), 6, id="time_mask"),
]
each = pytest.mark.parametrize(("technique", "limit"), TECHNIQUES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 32) -> Batch:
    """Maps (B, 2, 16, 12) with scenes, devices and a teacher."""
    draws = seeded(9)
    return Batch(
        x=torch.randn(size, 2, 16, 12, generator=draws),
        scenes=functional.one_hot(torch.randint(0, 5, (size,), generator=draws), 5).float(),
        devices=functional.one_hot(torch.randint(0, 3, (size,), generator=draws), 3).float(),
        teacher=torch.randn(size, 5, generator=draws).softmax(dim=1),
    )


def tensors(values: Batch) -> list[torch.Tensor]:
    found = [values.x, values.scenes, values.devices, values.teacher]
    return [tensor for tensor in found if tensor is not None]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_the_comparison_sees_one_nudged_value() -> None:
    for field in ("x", "scenes", "devices", "teacher"):
        nudged = batch()
        getattr(nudged, field)[3, 1] += 1e-3
        assert same(batch(), batch()) and not same(batch(), nudged)


@each
def test_it_follows_its_generator_and_leaves_its_input_alone(
    technique: Technique, limit: int
) -> None:
    given = batch()
    first, again, other = (technique(given, limit, seeded(seed)) for seed in (1, 1, 2))
    assert same(given, batch())
    assert same(first, again)
    assert not same(first, given) and not same(first, other)
    assert [t.dtype for t in tensors(first)] == [torch.float32] * 4
    assert [t.shape for t in tensors(first)] == [t.shape for t in tensors(given)]


@each
def test_it_draws_nothing_from_the_global_generator(technique: Technique, limit: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    technique(batch(), limit, seeded())
    assert torch.equal(torch.get_rng_state(), before)


@each
def test_at_zero_it_is_the_identity_and_draws_nothing(technique: Technique, limit: int) -> None:
    generator = seeded()
    assert same(technique(batch(), 0, generator), batch())
    assert torch.equal(generator.get_state(), seeded().get_state())


@each
def test_all_of_it_happens_on_the_device_of_the_batch(technique: Technique, limit: int) -> None:
    """A tensor of the meta device has no values: reading one back, or mixing in one from the
    processor, raises."""
    there = Batch(*(tensor.to("meta") for tensor in tensors(batch())))
    found = technique(there, limit, seeded())
    assert {tensor.device.type for tensor in tensors(found)} == {"meta"}
    with pytest.raises(RuntimeError):
        there.x.sum().item()
    with pytest.raises(RuntimeError):
        there.x + batch().x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_it_runs_on_cuda_without_waiting_for_it(technique: Technique, limit: int) -> None:
    there = Batch(*(tensor.cuda() for tensor in tensors(batch())))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the debug mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            found.append(technique(there, limit, torch.Generator("cuda").manual_seed(1)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(*found) and not same(found[0], there)
