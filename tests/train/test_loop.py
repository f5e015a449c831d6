"""The loop: rates and steps by hand, the same bytes every time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firmware_ref.errors import InputError
from tests.train.fitting import Run, copied, label_stage, same, training_set
from train.config import Config, OptimizerConfig
from train.data import Windows
from train.loop import Stage, learning_rate, network_input
from train.model import build_model
from train.objective import Batch, LabelObjective, Objective
from train.qat import DeviceNetwork
from train.ranges import calibrate
from train.state import module_tensors

TinyConfig = Callable[..., Config]


# Learning rate


def test_the_rate_by_hand() -> None:
    config = OptimizerConfig(
        epochs=12, learning_rate=0.1, restart_epochs=(4, 8), final_learning_rate=0.02
    )
    for start in (0, 4, 8):
        assert learning_rate(config, start) == pytest.approx(0.1)
        assert learning_rate(config, start + 2) == pytest.approx(0.06)
        # A quarter of the way: 0.02 + 0.08 (1 + cos(pi / 4)) / 2.
        assert learning_rate(config, start + 1) == pytest.approx(0.02 + 0.04 * (1 + 0.5**0.5))
        assert learning_rate(config, start + 3.999999) == pytest.approx(0.02, abs=1e-9)
    assert learning_rate(config, 12) == pytest.approx(0.02)


def test_stretches_between_restarts_have_their_own_length() -> None:
    config = OptimizerConfig(epochs=128, learning_rate=0.1, restart_epochs=(4, 8, 16, 32, 64))
    for start, end in ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128)):
        assert learning_rate(config, (start + end) / 2) == pytest.approx((0.1 + 1e-5) / 2)


def test_restarts_at_or_after_the_end_do_nothing() -> None:
    plain = OptimizerConfig(epochs=10, learning_rate=0.1)
    late = dataclasses.replace(plain, restart_epochs=(10, 64))
    for progress in np.linspace(0, 10, 21):
        assert learning_rate(plain, progress) == learning_rate(late, progress)


def test_the_rate_falls_between_restarts() -> None:
    config = OptimizerConfig(epochs=10, learning_rate=0.1, restart_epochs=(5,))
    rates = [learning_rate(config, p) for p in np.linspace(0, 4.99, 50)]
    assert rates == sorted(rates, reverse=True)


def test_network_input_is_a_view() -> None:
    features = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    x = network_input(features)
    assert x.shape == (2, 5, 3, 4) and x.is_contiguous(memory_format=torch.channels_last)
    assert x[1, 2, 0, 3] == features[1, 0, 3, 2]
    features[0, 0, 0, 0] = 7
    assert x[0, 0, 0, 0] == 7


# Training


def test_the_loss_falls(tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows) -> None:
    stage = {"epochs": 12, "learning_rate": 0.05, "batch_size": 8}
    still = {"mixup_alpha": 0, "frequency_mask_bands": 0, "time_mask_frames": 0}
    run = Run(tmp_path, tiny_config(float=stage, augment=still), tiny_windows)
    run.float_stage()
    losses = [epoch.loss for epoch in run.epochs]
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3])
    assert losses[0] == pytest.approx(math.log(3), rel=0.5), "starts near chance"


def test_epochs_are_reported(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(), tiny_windows)
    run.float_stage()
    assert [(e.stage, e.number, e.epochs) for e in run.epochs] == [("float", 1, 2), ("float", 2, 2)]
    # 24 windows in 3 steps an epoch: the last step of epoch 1 lies at 2/3 of its stretch.
    expected = learning_rate(run.config.float_stage, 2 / 3)
    assert run.epochs[0].learning_rate == pytest.approx(expected)
    assert all(e.seconds > 0 for e in run.epochs)


def test_every_step_is_taken_at_its_rate(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[set[float]] = []
    step = torch.optim.SGD.step

    def watched(optimizer: torch.optim.SGD, closure: None = None) -> None:
        rates.append({group["lr"] for group in optimizer.param_groups})
        step(optimizer, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    stage = {"epochs": 3, "learning_rate": 0.05, "batch_size": 8, "restart_epochs": [1]}
    run = Run(tmp_path, tiny_config(float=stage), tiny_windows)
    run.float_stage()
    # Twelve clips of two windows in batches of eight: three steps an epoch.
    expected = [learning_rate(run.config.float_stage, n / 3) for n in range(9)]
    assert all(len(rate) == 1 for rate in rates)
    assert [rate.pop() for rate in rates] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    folders = [tmp_path / name for name in "abc"]
    configs = [tiny_config(seed=1), tiny_config(seed=1), tiny_config(seed=2)]
    found = []
    for number, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        found.append(Run(folder, config, tiny_windows).float_stage())
        torch.manual_seed(1000 + number)  # what came before does not matter
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    states = [(folder / "state.safetensors").read_bytes() for folder in folders]
    assert states[0] == states[1] != states[2]


def test_stages_draw_different_numbers(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    config = tiny_config()
    found = []
    for name in ("float", "qat"):
        torch.manual_seed(0)
        model = build_model(config.network)
        run = Run(tmp_path / name, config, tiny_windows)
        found.append(run.fit(model, label_stage(name, config)))
    assert not same(found[0], found[1])


class Seven(Objective):
    """Notes what it is given; 7, whatever the network says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], ...]] = []

    def forward(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        assert network.training and self.training and batch.teacher is None
        logits = network(batch.x)
        parts = (batch.x, logits, batch.scenes, batch.devices)
        self.seen.append(tuple(tuple(part.shape) for part in parts))
        return 0.0 * logits.sum() + 7.0


def test_the_loss_is_that_of_the_stage(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """It sees the network and every batch; its mean is reported."""
    config, loss = tiny_config(), Seven()
    torch.manual_seed(0)
    model = build_model(config.network)
    start = copied(model)
    run = Run(tmp_path, config, tiny_windows)
    stage = dataclasses.replace(config.float_stage, weight_decay=0.0)
    end = run.fit(model, Stage("float", stage, loss))
    assert loss.seen == [((8, 3, 32, 20), (8, 3), (8, 3), (8, 2))] * 6
    assert [epoch.loss for epoch in run.epochs] == [7.0, 7.0]
    trained = [name for name, _ in model.named_parameters()]
    assert all(start[name].tobytes() == end[name].tobytes() for name in trained)


def test_no_epochs_change_nothing(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(float={"epochs": 0, "learning_rate": 0.1}), tiny_windows)
    torch.manual_seed(run.config.seed)
    start = module_tensors(build_model(run.config.network))
    assert same(run.float_stage(), start)
    assert run.epochs == [] and not run.state.exists()


# Optimisers


ONE_STEP = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 24, "momentum": 0.0}


def one_step(folder: Path, config: Config, data: Windows) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors before and after an epoch of a single step."""
    torch.manual_seed(0)
    model = build_model(config.network)
    start = copied(model)
    return start, Run(folder, config, data).fit(model, label_stage("float", config))


def test_weight_decay_acts_on_convolution_weights_alone(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """One step with decay 1 and one without differ by the rate times the weight."""
    found = []
    for decay in (0.0, 1.0):
        config = tiny_config(float={**ONE_STEP, "weight_decay": decay})
        start, end = one_step(tmp_path / str(decay), config, tiny_windows)
        found.append(end)
    for name, value in start.items():
        difference = found[0][name] - found[1][name]
        if name.endswith("weight") and value.ndim > 1:
            np.testing.assert_allclose(difference, 1e-2 * value, atol=2e-6)
        else:
            assert not difference.any(), name


def test_adam_is_chosen_by_name(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """A first step of Adam is ``rate g / (|g| + 1e-8)``, with g from the same step of SGD."""
    found = []
    for algorithm in ("sgd", "adam"):
        config = tiny_config(float={**ONE_STEP, "algorithm": algorithm})
        start, end = one_step(tmp_path / algorithm, config, tiny_windows)
        found.append(end)
    names = [name for name, _ in build_model(config.network).named_parameters()]
    moved = 0
    for name in names:
        gradient = (start[name].astype(np.float64) - found[0][name]) / 1e-2
        # What SGD's step leaves of a smaller gradient in float32 is too coarse to compare with.
        clear = np.abs(gradient) > 1e-4
        step = start[name].astype(np.float64) - found[1][name]
        np.testing.assert_allclose(step[clear], 1e-2 * np.sign(gradient[clear]), rtol=1e-3)
        moved += int(clear.sum())
    assert moved > 500


@pytest.fixture
def device(
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    trained: Callable[..., Any],
    folded: Callable[..., DeviceNetwork],
) -> Callable[[], DeviceNetwork]:
    """Makes the tiny network on its grids, each time the same."""

    def make() -> DeviceNetwork:
        result = folded(trained(tiny_config().network))
        data = training_set(tiny_config(), tiny_windows)
        calibrate(result, [data.clean(np.arange(len(tiny_windows)))], 0)
        return result

    return make


def test_ranges_learn_at_a_rate_of_their_own(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    device: Callable[[], DeviceNetwork],
) -> None:
    """One step of SGD: ranges move by their rate times the gradient, the rest as without them."""
    config = tiny_config(qat=ONE_STEP)
    found = {}
    for rate in (0.0, 1e-3, 2e-3):
        run = Run(tmp_path / str(rate), config, tiny_windows)
        optimizer = config.qat_stage.optimizer
        stage = Stage("qat", optimizer, LabelObjective(), range_learning_rate=rate)
        found[rate] = run.fit(device(), stage)
    changes = {rate: tensors.pop("log_scale_changes") for rate, tensors in found.items()}
    assert not changes[0.0].any()
    assert changes[1e-3].any()
    np.testing.assert_allclose(changes[2e-3], 2 * changes[1e-3], rtol=1e-5)
    assert same(found[0.0], found[1e-3]) and same(found[0.0], found[2e-3])


def test_the_rate_of_the_ranges_falls_with_the_other(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    device: Callable[[], DeviceNetwork],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[list[float]] = []
    step = torch.optim.Adam.step

    def watched(optimizer: torch.optim.Adam, closure: None = None) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])
        step(optimizer, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    config = tiny_config(
        qat={"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "algorithm": "adam"}
    )
    stage = Stage("qat", config.qat_stage.optimizer, LabelObjective(), range_learning_rate=0.05)
    Run(tmp_path, config, tiny_windows).fit(device(), stage)
    # Convolution weights, then biases, then ranges.
    expected = [learning_rate(stage.optimizer, n / 3) for n in range(6)]
    np.testing.assert_allclose(rates, [[rate, rate, 50 * rate] for rate in expected], rtol=1e-12)


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_ranges_are_frozen_at_the_end(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    device: Callable[[], DeviceNetwork],
    algorithm: str,
) -> None:
    """With momentum too, the last epochs change weights and no range."""
    qat = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 8, "algorithm": algorithm}
    config = tiny_config(qat=qat)
    found = []
    for frozen, epochs in ((2, 3), (1, 2), (2, 2)):
        run = Run(tmp_path / f"{frozen}-{epochs}", config, tiny_windows)
        # The rate is that of three epochs, whatever the number that is run.
        optimizer = dataclasses.replace(
            config.qat_stage.optimizer, epochs=epochs, final_learning_rate=1e-3
        )
        stage = Stage("qat", optimizer, LabelObjective(), 0.05, frozen)
        found.append(run.fit(device(), stage))
    ranges = [tensors["log_scale_changes"] for tensors in found]
    assert ranges[1].any() and not ranges[2].any()
    np.testing.assert_array_equal(ranges[0], ranges[1])
    assert not same(found[0], found[1])


# Divergence


def test_a_rate_far_too_high_is_named(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    stage = {"epochs": 40, "learning_rate": 10, "batch_size": 8, "weight_decay": 1.0}
    run = Run(tmp_path, tiny_config(float=stage), tiny_windows)
    with pytest.raises(InputError, match=r"float: training diverged in epoch \d+.*rate=10"):
        run.float_stage()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_input_that_is_not_finite_is_named(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows, value: float
) -> None:
    tiny_windows.maps[0][3] = value
    run = Run(tmp_path, tiny_config(), tiny_windows)
    with pytest.raises(InputError, match="float: training diverged in epoch 1"):
        run.float_stage()
    assert not run.state.exists(), "a diverged state is not kept"
