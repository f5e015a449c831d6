"""Silence: what becomes of an example, and how quiet it is, held against sound made quieter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from firmware_ref.features import FeatureDefinition, log_mel
from tests.train.test_augment import batch, seeded
from train.augment import silence as module
from train.augment.silence import ATTENUATION_DECIBELS, attenuate, silence
from train.batches import TrainingSet
from train.config import AugmentConfig
from train.data import EpochSampler, InputNormalization, Windows
from train.objective import Batch

FLOOR = FeatureDefinition().log_floor


def test_an_example_is_silent_whole_or_not_at_all() -> None:
    given = batch(400)
    quiet = torch.full_like(given.x, -9.0)
    found = silence(given, quiet, 0.25, seeded())
    chosen = (found.x == -9).flatten(1).all(dim=1)
    assert 70 < chosen.sum() < 130
    assert found.teacher is not None and given.teacher is not None
    for after, before in (
        (found.scenes, given.scenes),
        (found.devices, given.devices),
        (found.teacher, given.teacher),
    ):
        torch.testing.assert_close(
            after[chosen], torch.full_like(after[chosen], 1 / after.shape[1])
        )
        assert torch.equal(after[~chosen], before[~chosen])
    assert torch.equal(found.x[~chosen], given.x[~chosen])


def test_all_of_them_and_without_a_teacher() -> None:
    given = dataclasses.replace(batch(), teacher=None)
    found = silence(given, -given.x, 1.0, seeded())
    assert torch.equal(found.x, -given.x) and found.teacher is None


def test_attenuated_features_are_those_of_the_attenuated_sound(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """By 60 dB: the front end's own features of samples a thousand times smaller."""
    definition = FeatureDefinition()
    samples = (0.3 * rng.standard_normal((2, definition.clip_samples))).astype(np.float32)
    loud = torch.from_numpy(np.stack([log_mel(s, definition) for s in samples]))
    expected = torch.from_numpy(np.stack([log_mel(s / 1000, definition) for s in samples]))
    monkeypatch.setattr(module, "ATTENUATION_DECIBELS", (60.0, 60.0))
    found = attenuate(loud.float(), FLOOR, seeded())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-3)
    monkeypatch.setattr(module, "ATTENUATION_DECIBELS", (60.1, 60.1))
    other = attenuate(loud.float(), FLOOR, seeded())
    assert (other - expected).abs().max() > 0.02


def test_nothing_is_left_at_the_most_and_the_floor_stays() -> None:
    loudest = torch.full((1, 4, 5), 12.0)
    least, most = ATTENUATION_DECIBELS
    for seed in range(20):
        found = attenuate(loudest, FLOOR, seeded(seed))
        assert math.log(FLOOR) <= found.min() and found.max() <= 12 - least * math.log(10) / 10
    floor = torch.full((1, 4, 5), math.log(FLOOR))
    torch.testing.assert_close(attenuate(floor, FLOOR, seeded()), floor)
    assert math.exp(12) * 10 ** (-most / 10) < FLOOR


def test_batches_of_a_training_set_have_silent_examples() -> None:
    """Through its front end, after mix-up, and none where it is off."""
    rng = np.random.default_rng(0)
    maps = (5 + rng.standard_normal((200, 128, 44))).astype(np.float32)
    numbers = np.arange(200)
    windows = Windows((maps,), 0 * numbers, numbers, numbers % 4, 0 * numbers, numbers, numbers)
    normalization = InputNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    sampler = EpochSampler(windows, 1, [1.0])
    data = TrainingSet.of(windows, sampler, normalization, 4, 1, torch.device("cpu"))
    off = AugmentConfig(frequency_mask_bands=0, time_mask_frames=0)

    def silent(config: AugmentConfig) -> Batch:
        return data.batch(numbers, config, seeded())

    on = silent(dataclasses.replace(off, silence_probability=0.3))
    uniform = (on.scenes == 0.25).all(dim=1)
    assert 40 < uniform.sum() < 80
    # 60 dB are 13.8 nats.
    assert on.x[uniform, 0].max() < -2 and on.x[~uniform, 0].min() > -2
    assert not (silent(off).scenes == 0.25).all(dim=1).any()
