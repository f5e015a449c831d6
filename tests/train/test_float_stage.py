"""The float stage: what it minimises, what it keeps, what it finds already done."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from firmware_ref.arch import Network, layers, preset
from firmware_ref.frontend import network_input
from tests.train.fitting import same
from tests.train.runs import EVERYTHING, arguments, with_teachers
from tests.train.stages import Bench, bench
from train import checkpoint, loop
from train.__main__ import main
from train.cgt import CrossGradientObjective
from train.config import DistillationConfig, TeacherConfig
from train.data import InputNormalization
from train.float_stage import device_network, scene_objective, validator
from train.kd import DistillationObjective
from train.model import build_model
from train.objective import LabelObjective
from train.state import module_tensors

PLAIN = tuple(s for s in EVERYTHING if not s.startswith("cross_gradient"))


def test_the_network_that_is_returned_is_the_one_that_is_written(
    tiny_devices: Path, tmp_path: Path
) -> None:
    found = bench(tiny_devices, tmp_path, PLAIN)
    model = found.float()
    saved = checkpoint.load(tmp_path / "float.safetensors", "float")
    assert same(saved.tensors, module_tensors(model))
    assert set(saved.tensors) == set(build_model(found.config.network).state_dict())
    assert not model.training and {p.device.type for p in model.parameters()} == {"cpu"}
    said = json.loads(json.dumps(found.identity))
    assert {key: saved.manifest[key] for key in said} == said
    assert [epoch.number for epoch in found.epochs] == [1, 2]
    assert not (tmp_path / "float-state.safetensors").exists()


def test_a_finished_stage_is_read_and_its_state_removed(tiny_devices: Path, tmp_path: Path) -> None:
    """A run that was killed between the two writes leaves both."""
    found = bench(tiny_devices, tmp_path, PLAIN)
    expected = module_tensors(found.float())
    state = tmp_path / "float-state.safetensors"
    state.write_bytes(b"left over")
    again = dataclasses.replace(found, epochs=[])
    torch.manual_seed(99)
    assert same(module_tensors(again.float()), expected)
    assert again.epochs == [] and not state.exists()


# What is minimised


def stage_of(found: Bench, monkeypatch: pytest.MonkeyPatch) -> loop.Stage:
    """The stage that the float stage runs, without running it."""
    stages: list[loop.Stage] = []

    def noted(
        module: nn.Module, data: object, config: object, stage: loop.Stage, *rest: object
    ) -> None:
        stages.append(stage)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", noted)
        found.float()
    (stage,) = stages
    return stage


def test_the_objective_is_what_the_configuration_says(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stage_of(bench(tiny_devices, tmp_path / "a", PLAIN), monkeypatch)
    assert isinstance(plain.objective, LabelObjective)
    taught = stage_of(bench(tiny_devices, tmp_path / "b", with_teachers(tiny_devices)), monkeypatch)
    objective = taught.objective
    assert isinstance(objective, CrossGradientObjective)
    assert isinstance(objective.base, DistillationObjective)
    assert (objective.base.label_weight, objective.base.temperature) == (0.02, 2.0)
    assert (objective.device_epsilon, objective.scene_epsilon) == (0.1, 0.1)
    assert objective.perturbed_weight == 0.5
    # Six recordings: as many by A as by B.
    assert objective.device_weights.tolist() == [1.0, 1.0]
    assert taught.validate is not None and taught.range_learning_rate == 0


def test_distillation_is_as_configured(tiny_devices: Path, tmp_path: Path) -> None:
    config = bench(tiny_devices, tmp_path, PLAIN).config
    assert isinstance(scene_objective(config), LabelObjective)
    teachers = (TeacherConfig("table", "t.npz"),)
    taught = dataclasses.replace(config, distillation=DistillationConfig(0.25, 4.0, teachers))
    found = scene_objective(taught)
    assert isinstance(found, DistillationObjective)
    assert (found.label_weight, found.temperature) == (0.25, 4.0)


@pytest.mark.parametrize("divisor", [1, 2, 4, 64])
@pytest.mark.parametrize("name", ["report-125k", "qti-c80"])
def test_the_device_classifier_is_the_network_made_narrower(name: str, divisor: int) -> None:
    whole = preset(name)
    found = device_network(whole, 6, divisor)
    assert found.classes == 6 and found.blocks == whole.blocks
    assert found.stem_channels == max(whole.stem_channels // divisor, 8)
    assert found.widths == tuple(max(width // divisor, 8) for width in whole.widths)
    parameters = [sum(layer.parameters for layer in layers(n)) for n in (found, whole)]
    assert parameters[0] <= parameters[1]
    logits = build_model(found).eval()(torch.zeros(2, whole.input_channels, 128, 44))
    assert logits.shape == (2, 6)


def test_devices_that_are_heard_more_weigh_less(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By clips, of which an epoch draws equally, however many windows each has."""
    found = bench(tiny_devices, tmp_path, EVERYTHING)
    plain = found.prepared.plain
    clips = np.arange(len(plain)) // 2
    devices = (clips >= 3 * (clips[-1] + 1) // 4).astype(int)  # three quarters of the clips by A
    twice = np.concatenate([np.arange(len(plain)), np.flatnonzero(devices == 1)])  # B has long ones
    twice = twice[np.argsort(clips[twice], kind="stable")]
    changed = dataclasses.replace(
        plain,
        **{name: getattr(plain, name)[twice] for name in ("variation", "row", "labels")},
        devices=devices[twice],
        clips=clips[twice],
        moments=np.arange(len(twice)),
    )
    found = dataclasses.replace(found, prepared=dataclasses.replace(found.prepared, plain=changed))
    objective = stage_of(found, monkeypatch).objective
    assert isinstance(objective, CrossGradientObjective)
    counts = np.bincount([devices[clips == clip][0] for clip in np.unique(clips)])
    expected = counts.sum() / (2 * counts)
    np.testing.assert_allclose(objective.device_weights.numpy(), expected, rtol=1e-6)
    assert expected[0] < 1 < expected[1]


def test_cross_gradient_training_changes_what_is_learned_and_is_not_deployed(
    tiny_devices: Path, tmp_path: Path
) -> None:
    found = {}
    for name, settings in (("with", EVERYTHING), ("without", PLAIN)):
        found[name] = module_tensors(bench(tiny_devices, tmp_path / name, settings).float())
    assert set(found["with"]) == set(found["without"])
    assert not same(found["with"], found["without"])


def test_its_state_holds_the_device_classifier(
    tiny_devices: Path, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    """Or a resumed run would begin it anew."""
    interrupted(arguments(tiny_devices, tmp_path, "--quiet", settings=EVERYTHING), 1)
    state = checkpoint.load(tmp_path / "float-state.safetensors")
    parts = {name.split("/")[0] for name in state.tensors}
    assert parts == {"module", "objective", "momentum_buffer"}
    names = {n for n in state.tensors if n.startswith("objective/device_network.")}
    weights = {n for n in names if n.endswith("weight")}
    assert len(weights) > 10
    assert all(f"momentum_buffer/{name}" in state.tensors for name in weights)


# Which epoch


class Fixed(nn.Module):
    """The class whose number is at the first band and frame, surely."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * nn.functional.one_hot(x[:, 0, 0, 0].round().long() % 3, 3).float()


def test_a_score_is_the_windows_that_are_wrong(tiny_devices: Path, tmp_path: Path) -> None:
    prepared = bench(tiny_devices, tmp_path, PLAIN).prepared
    windows = prepared.validation
    assert windows is not None
    log_mels = np.zeros((len(windows), 128, 44), np.float32)
    log_mels[:, 0, 0] = windows.labels
    log_mels[0, 0, 0] += 1  # one is wrong
    numbers = np.arange(len(windows))
    changed = dataclasses.replace(windows, maps=(log_mels,), row=numbers)
    plain = InputNormalization((0.0,) * 3, (1.0,) * 3)
    assert network_input(log_mels[..., None], (0.0,), (1.0,)).shape[-1] == 1
    prepared = dataclasses.replace(prepared, validation=changed, normalization=plain)
    score = validator(Fixed(), prepared)()
    count = len(windows)
    assert score.accuracy == (count - 1) / count and score.loss == pytest.approx(1 / count)
    sure = math.log(1 + 2 * math.exp(-8))
    assert score.log_loss == pytest.approx(sure + 8 / count, rel=1e-6)


# On what it is computed


def test_bfloat16_trains_and_ends_finite(tiny_devices: Path, tmp_path: Path) -> None:
    """With every technique; weights stay float32, and are others."""
    found = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        settings = (*with_teachers(tiny_devices), f"compute.precision={precision}")
        assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == 0
        found[precision] = checkpoint.load(out / "float.safetensors").tensors
    half = found["bfloat16"]
    assert all(np.isfinite(tensor).all() for tensor in half.values())
    assert {t.dtype.name for t in half.values()} == {"float32", "int64"}
    assert not same(half, found["float32"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_network_learns_nearly_the_same(tiny_devices: Path, tmp_path: Path) -> None:
    """In other roundings; its checkpoint has the names of the network as it is."""
    found = {}
    for compiled in ("false", "true"):
        out = tmp_path / compiled
        settings = (*EVERYTHING, f"compute.compile={compiled}", "qat.epochs=0")
        assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == 0
        found[compiled] = checkpoint.load(out / "float.safetensors").tensors
    assert set(found["true"]) == set(found["false"])
    for name, tensor in found["false"].items():
        np.testing.assert_allclose(found["true"][name], tensor, rtol=0.05, atol=0.01)


def test_a_network_without_a_head_has_a_device_classifier_too(tiny_network: Network) -> None:
    assert device_network(tiny_network, 2, 4).head_channels == 8
    bare = dataclasses.replace(tiny_network, head_channels=None)
    assert device_network(bare, 2, 4).head_channels is None
