"""Interrupted stages and the epoch that is kept: the same bytes as in one go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from firmware_ref.errors import InputError
from tests.train.fitting import Run, identity_of, same, scores, training_set
from train import checkpoint
from train.config import Config
from train.data import Windows
from train.loop import Stage
from train.model import build_model
from train.objective import LabelObjective
from train.qat import DeviceNetwork
from train.ranges import calibrate
from train.state import Score

TinyConfig = Callable[..., Config]
STAGE = {"epochs": 3, "learning_rate": 0.05, "batch_size": 8}
ADAM = {**STAGE, "learning_rate": 1e-3, "algorithm": "adam"}


# Interruptions


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("stage", [{**STAGE, "restart_epochs": [2]}, ADAM], ids=["sgd", "adam"])
def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    stage: Mapping[str, Any],
    stop_after: int,
) -> None:
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


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_the_device_network_trains_and_resumes_alike(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    trained: Callable[..., Any],
    folded: Callable[..., DeviceNetwork],
    algorithm: str,
) -> None:
    """Weights, ranges, and the grids that follow from them."""
    config = tiny_config(qat={**STAGE, "learning_rate": 1e-3, "algorithm": algorithm})
    stage = Stage("qat", config.qat_stage.optimizer, LabelObjective(), range_learning_rate=0.05)

    def device() -> DeviceNetwork:
        result = folded(trained(config.network))
        data = training_set(config, tiny_windows)
        calibrate(result, [data.clean(np.arange(len(tiny_windows)))], 0)
        return result

    start, whole, part = device(), device(), device()
    expected = Run(tmp_path / "whole", config, tiny_windows).fit(whole, stage)
    run = Run(tmp_path / "parts", config, tiny_windows)
    with pytest.raises(KeyboardInterrupt):
        run.fit(part, stage, stop_after=1)
    resumed = device()
    assert same(expected, run.fit(resumed, stage))
    assert whole.quantization == resumed.quantization != start.quantization
    assert not same(start.float_constants(), resumed.float_constants())


# The epoch that is kept


def test_a_score_is_better_by_its_loss() -> None:
    score = Score(0.5, 0.6, 1.0)
    assert score.better_than(None)
    assert score.better_than(Score(0.6, 0.9, 0.1)) and not Score(0.6, 0.9, 0.1).better_than(score)
    assert not score.better_than(score), "the first of equals stays"


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ([(2.0, 0.5), (0.5, 0.4), (1.0, 0.9)], 2),
        ([(1.0, 0.5), (1.0, 0.9), (1.0, 0.7)], 1),
        ([(9.0, 0.3), (2.0, 0.2), (1.0, 0.1)], 3),
    ],
)
def test_the_best_validated_epoch_is_kept(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    given: list[tuple[float, float]],
    best: int,
) -> None:
    run = Run(tmp_path, tiny_config(float=STAGE), tiny_windows)
    found = run.float_stage(validate=scores(*given))
    assert [same(found, seen) for seen in run.seen] == [n == best for n in (1, 2, 3)]
    reported = [(e.validation_loss, e.validation_accuracy) for e in run.epochs]
    assert reported == given
    saved = checkpoint.load(run.state, "float-state")
    assert saved.manifest["best_score"] == {
        "loss": given[best - 1][0],
        "accuracy": given[best - 1][1],
        "log_loss": 1.0,
    }
    parts = {name.partition("/")[0] for name in saved.tensors}
    assert parts == {"module", "momentum_buffer", "best"}
    for part, epoch in (("module", 3), ("best", best)):
        prefix = f"{part}/"
        tensors = {
            n.removeprefix(prefix): t for n, t in saved.tensors.items() if n.startswith(prefix)
        }
        assert same(tensors, run.seen[epoch - 1])


def test_without_a_validation_the_last_epoch_is_kept(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    run = Run(tmp_path, tiny_config(float=STAGE), tiny_windows)
    assert same(run.float_stage(), run.seen[-1])
    assert {e.validation_accuracy for e in run.epochs} == {None}
    assert {e.validation_log_loss for e in run.epochs} == {None}


def test_a_validation_changes_nothing_in_training(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    """It may leave the module in evaluation mode and draw random numbers."""
    config = tiny_config(float=STAGE)
    plain = Run(tmp_path / "plain", config, tiny_windows)
    plain.float_stage()
    torch.manual_seed(config.seed)
    model: nn.Module = build_model(config.network)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    modes: list[bool] = []

    def validate() -> Score:
        modes.append(model.training)
        model.eval()
        torch.rand(3)
        return Score(1.0, 0.5, 1.0)

    run = Run(tmp_path / "validated", config, tiny_windows)
    run.fit(model, Stage("float", config.float_stage, LabelObjective(), validate=validate))
    assert modes == [True] * 3
    assert all(same(ours, theirs) for ours, theirs in zip(plain.seen, run.seen, strict=True))


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("best", [1, 2, 3])
def test_the_best_epoch_survives_an_interruption(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows, stop_after: int, best: int
) -> None:
    """Also one after the last epoch, when nothing is left to train."""
    given = [(0.5 if n == best else 0.9, 1.0) for n in (1, 2, 3)]
    config = tiny_config(float=STAGE)
    whole = Run(tmp_path / "whole", config, tiny_windows)
    expected = whole.float_stage(validate=scores(*given))
    run = Run(tmp_path / "parts", config, tiny_windows)
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(stop_after, scores(*given))
    found = run.float_stage(validate=scores(*given[stop_after:]))
    assert same(found, expected) and same(found, whole.seen[best - 1])
    assert run.state.read_bytes() == whole.state.read_bytes()


# State files


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


BIAS = "stem.conv.bias"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("module/stem.conv.weight", None, "'stem.conv.weight' does not fit"),
        ("module/new", np.zeros(1, np.float32), "'new' does not fit"),
        (f"module/{BIAS}", np.zeros(3, np.float32), r"float32 \(3,\); the network needs"),
        (f"module/{BIAS}", np.zeros(8, np.float64), r"float64 \(8,\); the network needs"),
        (f"best/{BIAS}", None, rf"best epoch: tensor '{BIAS}' does not fit"),
        (f"best/{BIAS}", np.zeros(3, np.float32), r"best epoch: tensor .* \(3,\); the network"),
        (f"exp_avg/module/{BIAS}", None, f"exp_avg: tensor 'module/{BIAS}' does not fit"),
        (f"exp_avg_sq/module/{BIAS}", np.zeros(1, np.float32), r"exp_avg_sq: tensor .*\(1,\)"),
        (f"step/module/{BIAS}", np.zeros(1, np.float32), r"step: tensor .*\(1,\)"),
        (
            f"momentum_buffer/module/{BIAS}",
            np.zeros(8, np.float32),
            "'momentum_buffer' does not fit",
        ),
        ("odd", np.zeros(1, np.float32), "'odd' does not fit the optimiser"),
    ],
)
def test_a_state_of_other_tensors_is_refused(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    name: str,
    value: np.ndarray | None,
    message: str,
) -> None:
    run = Run(tmp_path, tiny_config(float=ADAM), tiny_windows)
    validate = scores((0.5, 1.0))
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(1, validate)
    saved = checkpoint.load(run.state)
    tensors = {n: t for n, t in saved.tensors.items() if n != name}
    if value is not None:
        tensors[name] = value
    checkpoint.save(run.state, tensors, saved.manifest)
    with pytest.raises(InputError, match=message):
        run.float_stage(validate=validate)


@pytest.mark.parametrize(
    ("stage", "kind"), [(STAGE, "momentum_buffer"), (ADAM, "exp_avg"), (ADAM, "step")]
)
def test_a_state_without_part_of_the_optimiser_is_refused(
    tmp_path: Path,
    tiny_config: TinyConfig,
    tiny_windows: Windows,
    stage: Mapping[str, Any],
    kind: str,
) -> None:
    run = Run(tmp_path, tiny_config(float=stage), tiny_windows)
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(1)
    saved = checkpoint.load(run.state)
    tensors = {n: t for n, t in saved.tensors.items() if n.partition("/")[0] != kind}
    checkpoint.save(run.state, tensors, saved.manifest)
    with pytest.raises(InputError, match=f"'{kind}' does not fit the optimiser"):
        run.float_stage()


@pytest.mark.parametrize(
    "score",
    [None, [], {}, {"accuracy": 0.5}, {"loss": 1, "accuracy": 1.0, "log_loss": 1.0}, "0.5"],
    ids=str,
)
def test_a_best_score_that_cannot_be_is_refused(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows, score: object
) -> None:
    run = Run(tmp_path, tiny_config(), tiny_windows)
    validate = scores((0.5, 1.0))
    with pytest.raises(KeyboardInterrupt):
        run.float_stage(1, validate)
    saved = checkpoint.load(run.state)
    checkpoint.save(run.state, saved.tensors, {**saved.manifest, "best_score": score})
    with pytest.raises(InputError, match=r"best_score=.* does not fit its tensors"):
        run.float_stage(validate=validate)
    rest = {n: t for n, t in saved.tensors.items() if not n.startswith("best/")}
    checkpoint.save(run.state, rest, saved.manifest)
    with pytest.raises(InputError, match=r"best_score=.* does not fit its tensors"):
        run.float_stage(validate=validate)


def test_a_state_is_plain_json_and_tensors(
    tmp_path: Path, tiny_config: TinyConfig, tiny_windows: Windows
) -> None:
    for stage, kinds in ((STAGE, {"momentum_buffer"}), (ADAM, {"exp_avg", "exp_avg_sq", "step"})):
        config = tiny_config(float=stage)
        run = Run(tmp_path / str(len(kinds)), config, tiny_windows)
        run.float_stage()
        saved = checkpoint.load(run.state, "float-state")
        assert saved.manifest["epochs_done"] == 3 and saved.manifest["best_score"] is None
        assert saved.manifest["config"] == json.loads(json.dumps(identity_of(config)["config"]))
        assert {name.partition("/")[0] for name in saved.tensors} == {"module", *kinds}
