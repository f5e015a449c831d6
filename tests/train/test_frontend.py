"""The front end in torch against the device's, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firmware_ref import features as reference
from firmware_ref.frontend import network_input
from train.frontend import Frontend, delta

MEAN, STD = (-6.5, 0.01, -0.002), (3.7, 0.6, 0.25)
# Of normalised input; float32 near 8 has steps of 9.5e-7.
TOLERANCE = 1e-6


def log_mels(rng: np.random.Generator, count: int = 5, frames: int = 44) -> np.ndarray:
    """As loud as features get: from the floor at -13.8 upwards."""
    return rng.uniform(-13.8, 8, (count, 128, frames)).astype(np.float32)


def ours(x: np.ndarray, channels: int = 3) -> torch.Tensor:
    front: torch.Tensor = Frontend(MEAN[:channels], STD[:channels])(torch.from_numpy(x))
    return front


def theirs(x: np.ndarray, channels: int = 3) -> np.ndarray:
    """(B, C, F, T)."""
    x = network_input(reference.stack_deltas(x), MEAN[:channels], STD[:channels])
    return np.moveaxis(x, -1, 1)


def close(a: torch.Tensor, b: np.ndarray) -> bool:
    assert a.shape == b.shape
    return float(np.abs(a.numpy().astype(np.float64) - b).max()) <= TOLERANCE


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_input_is_the_devices(rng: np.random.Generator, channels: int) -> None:
    x = log_mels(rng)
    found = ours(x, channels)
    assert found.shape == (5, channels, 128, 44) and found.dtype == torch.float32
    assert close(found, theirs(x, channels))


def test_the_comparison_fails_on_one_nudged_value(rng: np.random.Generator) -> None:
    x = log_mels(rng)
    nudged = x.copy()
    nudged[3, 100, 43] += np.float32(1e-5)
    assert not close(ours(nudged), theirs(x))
    assert not close(ours(x), theirs(nudged))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 44])
def test_deltas_are_the_devices(rng: np.random.Generator, frames: int) -> None:
    x = log_mels(rng, 2, frames)
    assert close(delta(torch.from_numpy(x)), reference.delta(x))


def test_half_precision_is_widened_before_it_is_computed_with(rng: np.random.Generator) -> None:
    x = log_mels(rng).astype(np.float16)
    assert ours(x).dtype == torch.float32
    assert close(ours(x), theirs(x.astype(np.float32)))


def test_channels_lie_last_in_memory(rng: np.random.Generator) -> None:
    assert ours(log_mels(rng)).is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_learned() -> None:
    front = Frontend(MEAN, STD)
    assert not list(front.parameters()) and {*front.state_dict()} == {"mean", "std"}
