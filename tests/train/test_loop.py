"""The loop: rates by hand, the same bytes every time, interrupted or not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from firmware_ref.errors import InputError
from train import checkpoint
from train.config import Config, OptimizerConfig
from train.data import Windows
from train.loop import Epoch, fit, learning_rate, load_module, module_tensors, network_input
from train.model import build_model
from train.qat import calibrate

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


def identity_of(config: Config) -> dict[str, Any]:
    return {"network": config.network.to_dict(), "labels": [], "config": config.to_dict()}


class Run:
    """Trains the tiny network in a folder, as `train.run` does."""

    def __init__(self, folder: Path, config: Config, data: Windows) -> None:
        self.state, self.config, self.data = folder / "state.safetensors", config, data
        self.epochs: list[Epoch] = []
        self.identity: Mapping[str, Any] = identity_of(config)

    def float_stage(self, stop_after: int | None = None) -> dict[str, np.ndarray]:
        """Tensors after training; ``stop_after`` raises KeyboardInterrupt after that epoch."""

        def report(epoch: Epoch) -> None:
            self.epochs.append(epoch)
            if epoch.number == stop_after:
                raise KeyboardInterrupt

        torch.manual_seed(self.config.seed)
        model: nn.Module = build_model(self.config.network)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        stage = self.config.float_stage
        fit(model, self.data, self.config, stage, "float", self.identity, self.state, report)
        return {name: value.copy() for name, value in module_tensors(model).items()}


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    assert set(a) == set(b)
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


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


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows, stop_after: int
) -> None:
    stage = {"epochs": 3, "learning_rate": 0.05, "batch_size": 8, "restart_epochs": [2]}
    config = tiny_config(float=stage)
    whole = Run(tmp_path / "whole", config, tiny_windows).float_stage()
    run = Run(tmp_path / "parts", config, tiny_windows)
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(stop_after)
    resumed = run.float_stage()
    assert [epoch.number for epoch in run.epochs] == [1, 2, 3]
    assert same(whole, resumed)
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "parts")]
    assert states[0] == states[1]


def test_the_device_network_trains_and_resumes_alike(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    trained: Callable[..., Any],
    folded: Callable[..., Any],
) -> None:
    config = tiny_config()
    found = []
    for stop_after in (None, 1):
        device = folded(trained(config.network))
        calibrate(device, [network_input(tiny_windows.features)], 0)
        start = {name: value.copy() for name, value in device.float_constants().items()}

        def stop(epoch: Epoch, after: int | None = stop_after) -> None:
            if epoch.number == after:
                raise KeyboardInterrupt

        arguments = (tiny_windows, config, config.qat_stage.optimizer, "qat", identity_of(config))
        state = tmp_path / f"{stop_after}.safetensors"
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                fit(device, *arguments, state, stop)
            device = folded(trained(config.network))
            calibrate(device, [network_input(tiny_windows.features)], 0)
        fit(device, *arguments, state, lambda epoch: None)
        found.append(device.float_constants())
        assert not same(start, found[-1])
    assert same(found[0], found[1])


def test_stages_draw_different_numbers(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    config = tiny_config()
    found = []
    for stage in ("float", "qat"):
        torch.manual_seed(0)
        model = build_model(config.network)
        arguments = (stage, identity_of(config), tmp_path / stage, lambda epoch: None)
        fit(model, tiny_windows, config, config.float_stage, *arguments)
        found.append(module_tensors(model))
    assert not same(found[0], found[1])


def test_no_epochs_change_nothing(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(float={"epochs": 0, "learning_rate": 0.1}), tiny_windows)
    torch.manual_seed(run.config.seed)
    start = module_tensors(build_model(run.config.network))
    assert same(run.float_stage(), start)
    assert run.epochs == [] and not run.state.exists()


# Weight decay


def test_weight_decay_acts_on_convolution_weights_alone(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """One step with decay 1 and one without differ by the rate times the weight."""
    stage = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 24, "momentum": 0.0}
    found = []
    for decay in (0.0, 1.0):
        config = tiny_config(float={**stage, "weight_decay": decay})
        torch.manual_seed(0)
        model = build_model(config.network)
        start = {name: value.copy() for name, value in module_tensors(model).items()}
        arguments = ("float", identity_of(config), tmp_path / str(decay), lambda epoch: None)
        fit(model, tiny_windows, config, config.float_stage, *arguments)
        found.append(module_tensors(model))
    for name, value in start.items():
        difference = found[0][name] - found[1][name]
        if name.endswith("weight") and value.ndim > 1:
            np.testing.assert_allclose(difference, 1e-2 * value, atol=2e-6)
        else:
            assert not difference.any(), name


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
    tiny_windows.features[3] = value
    run = Run(tmp_path, tiny_config(), tiny_windows)
    with pytest.raises(InputError, match="float: training diverged in epoch 1"):
        run.float_stage()
    assert not run.state.exists(), "a diverged state is not kept"


# Resuming


def test_another_configuration_is_refused(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, tiny_config(), tiny_windows).float_stage(1)
    other = Run(tmp_path, tiny_config(seed=3), tiny_windows)
    with pytest.raises(InputError, match="another config; resume with that one, or train into"):
        other.float_stage()
    for key, value in (("labels", ["a"]), ("dataset", {"test_fold": 2})):
        other = Run(tmp_path, tiny_config(), tiny_windows)
        other.identity = {**other.identity, key: value}
        with pytest.raises(InputError, match=f"another {key}"):
            other.float_stage()


@pytest.mark.parametrize("done", [None, "1", 1.0, True, -1, 0])
def test_a_state_that_says_no_epoch_is_refused(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows, done: object
) -> None:
    run = Run(tmp_path, tiny_config(), tiny_windows)
    checkpoint.save(run.state, {}, {**run.identity, "stage": "float-state", "epochs_done": done})
    with pytest.raises(InputError, match="epochs_done="):
        run.float_stage()


def test_a_state_of_other_tensors_is_refused(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(), tiny_windows)
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(1)
    saved = checkpoint.load(run.state)
    for name, change, message in (
        ("module/stem.conv.weight", None, "'stem.conv.weight' does not fit"),
        ("module/new", np.zeros(1, np.float32), "'new' does not fit"),
        ("module/stem.conv.bias", np.zeros(3, np.float32), r"float32 \(3,\); the network needs"),
        ("module/stem.conv.bias", np.zeros(8, np.float64), r"float64 \(8,\); the network needs"),
        ("momentum/stem.conv.bias", None, "momentum: tensor 'stem.conv.bias' does not fit"),
        ("momentum/stem.conv.bias", np.zeros(1, np.float32), r"momentum: tensor .*\(1,\)"),
    ):
        tensors = dict(saved.tensors)
        tensors.pop(name, None)
        if change is not None:
            tensors[name] = change
        checkpoint.save(run.state, tensors, saved.manifest)
        with pytest.raises(InputError, match=message):
            run.float_stage()


def test_a_module_is_not_half_loaded_in_silence(tiny_config: TinyConfig) -> None:
    model = build_model(tiny_config().network)
    tensors = {name: value.copy() for name, value in module_tensors(model).items()}
    changed = {name: np.asarray(value + 1) for name, value in tensors.items()}
    load_module(model, changed, "this")
    assert same(module_tensors(model), changed)
    with pytest.raises(InputError, match=r"this: tensor 'classifier.bias' does not fit"):
        load_module(model, {n: v for n, v in tensors.items() if n != "classifier.bias"}, "this")


def test_a_state_is_plain_json_and_tensors(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(), tiny_windows)
    run.float_stage()
    saved = checkpoint.load(run.state, "float-state")
    assert saved.manifest["epochs_done"] == 2
    assert saved.manifest["config"] == json.loads(json.dumps(run.config.to_dict()))
    assert {name.partition("/")[0] for name in saved.tensors} == {"module", "momentum"}
