"""The QAT stage: calibrated on clean windows, chosen by its own loss in device arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firmware_ref.frontend import softmax
from tests.train.fitting import copied, same
from tests.train.runs import EVERYTHING, SETTINGS, with_teachers
from tests.train.stages import CPU, Bench, bench
from train import checkpoint, loop, qat_checkpoint, qat_stage
from train.config_file import CONFIG_FOLDER, load_config
from train.data import over_log_mels, over_windows
from train.device import DeviceListener
from train.evaluate import module_logits
from train.kd import DistillationObjective, FloatTeacherObjective
from train.model import BCResNetMod, build_model
from train.objective import LabelObjective
from train.qat import DeviceNetwork

PLAIN = tuple(s for s in EVERYTHING if not s.startswith("cross_gradient"))


def float_model(found: Bench) -> BCResNetMod:
    """A float network that never trained."""
    torch.manual_seed(0)
    return build_model(found.config.network).eval()


def watched_fit(
    found: Bench, monkeypatch: pytest.MonkeyPatch, teacher: torch.Tensor | None = None
) -> tuple[DeviceNetwork, loop.Stage, Any]:
    """What the stage hands to the loop, without training: module, stage, training set."""
    given: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", lambda *parts: given.append(parts))
        found.qat(float_model(found), teacher)
    ((module, data, _config, stage, *_),) = given
    return module, stage, data


def test_the_network_that_is_returned_is_the_one_that_is_written(
    tiny_devices: Path, tmp_path: Path
) -> None:
    found = bench(tiny_devices, tmp_path, PLAIN)
    device = found.qat(float_model(found))
    saved, again = qat_checkpoint.load(tmp_path / "qat.safetensors")
    assert device.quantization == again.quantization
    assert same(device.float_constants(), again.float_constants())
    checkpoint.require_run(saved, found.identity, "this")
    assert [epoch.number for epoch in found.epochs] == [1, 2]
    assert not (tmp_path / "qat-state.safetensors").exists()


def test_a_finished_stage_is_read_and_its_state_removed(tiny_devices: Path, tmp_path: Path) -> None:
    found = bench(tiny_devices, tmp_path, PLAIN)
    expected = found.qat(float_model(found))
    state = tmp_path / "qat-state.safetensors"
    state.write_bytes(b"left over")
    again = dataclasses.replace(found, epochs=[])
    device = again.qat(float_model(found))
    assert same(device.float_constants(), expected.float_constants())
    assert again.epochs == [] and not state.exists()


def test_ranges_are_measured_on_so_many_clean_batches(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of recordings as they are, in a random order of the seed, none twice."""
    seen: list[list[np.ndarray]] = []

    def noted(device: DeviceNetwork, batches: Any, seed: int) -> None:
        assert seed == 0
        seen.append([batch.numpy().copy() for batch in batches])
        calibrate(device, (torch.from_numpy(batch) for batch in seen[-1]), seed)

    calibrate = qat_stage.calibrate
    monkeypatch.setattr(qat_stage, "calibrate", noted)
    found = bench(tiny_devices, tmp_path, (*PLAIN, "qat.epochs=0", "qat.calibration_batches=3"))
    found.qat(float_model(found))
    (tmp_path / "qat.safetensors").unlink()
    found.qat(float_model(found))
    data = found.prepared.training_set(found.config, CPU)
    windows = data.clean(np.arange(len(data.windows))).numpy()
    names = {window.tobytes(): number for number, window in enumerate(windows)}
    assert len(names) == len(windows)
    assert (data.windows.variation > 0).sum() > 12, "others could be drawn"
    for batches in seen:
        assert [len(batch) for batch in batches] == [4, 4, 4]
        drawn = [names[window.tobytes()] for batch in batches for window in batch]
        assert len(set(drawn)) == 12 and drawn != sorted(drawn)
        assert (data.windows.variation[drawn] == 0).all()
    assert [b.tobytes() for b in seen[0]] == [b.tobytes() for b in seen[1]]


def test_a_small_set_is_calibrated_on_once(
    tiny_esc10: Path, tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With variations, too, every window as recorded and no more."""
    sizes: list[int] = []
    calibrate = qat_stage.calibrate

    def noted(device: DeviceNetwork, batches: Any, seed: int) -> None:
        kept = list(batches)
        sizes.extend(len(batch) for batch in kept)
        calibrate(device, kept, seed)

    monkeypatch.setattr(qat_stage, "calibrate", noted)
    more = ("qat.epochs=0", "qat.calibration_batches=100", "qat.batch_size=5")
    found = bench(tiny_esc10, tmp_path / "plain", (*SETTINGS, *more))
    found.qat(float_model(found))
    assert sizes == [5, 5, 2]
    sizes.clear()
    found = bench(tiny_devices, tmp_path / "varied", (*PLAIN, *more))
    found.qat(float_model(found))
    assert sum(sizes) == len(found.prepared.plain) < len(found.prepared.train)


@pytest.mark.parametrize("weight", ["0", "0.5", "1"])
def test_the_objective_is_what_the_configuration_says(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    change = ("distillation.temperature=3", f"qat.float_teacher_weight={weight}")
    for settings, base in (
        ((*PLAIN, *change), LabelObjective),
        ((*with_teachers(tiny_devices), *change), DistillationObjective),
    ):
        found = bench(tiny_devices, tmp_path / base.__name__, settings)
        generator = torch.Generator().manual_seed(1)
        teacher = torch.randn(len(found.prepared.train), 3, generator=generator)
        _, stage, data = watched_fit(found, monkeypatch, teacher)
        objective = stage.objective
        if weight != "0":
            assert isinstance(objective, FloatTeacherObjective)
            assert objective.weight == float(weight)
            objective = objective.base
        assert type(objective) is base
        assert not list(stage.objective.parameters()), "the float network is not trained"
        if isinstance(objective, DistillationObjective):
            assert objective.temperature == 3
        expected = softmax(teacher.numpy().astype(np.float64) / 3)
        np.testing.assert_allclose(data.teacher.numpy(), expected, rtol=1e-5)


def test_teachers_of_shipped_configurations_still_teach() -> None:
    """The float network leaves a share of this stage's loss, the labels some of that share."""
    configs = [load_config(path.stem) for path in sorted(CONFIG_FOLDER.glob("*.toml"))]
    taught = [config for config in configs if config.distillation.teachers]
    assert taught
    for config in taught:
        assert config.qat_stage.float_teacher_weight < 1, config.name
        assert config.distillation.label_weight < 1, config.name


def test_it_trains_in_single_precision_and_uncompiled(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its grids are simulated in float32."""
    settings = (*PLAIN, "compute.precision=bfloat16", "compute.compile=true")
    found = bench(tiny_devices, tmp_path, settings)
    _, stage, data = watched_fit(found, monkeypatch)
    assert (stage.compute.precision, stage.compute.compile) == ("float32", False)
    assert stage.range_learning_rate == 1e-2 and data.device == CPU


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_score_is_the_loss_of_the_stage_in_device_arithmetic(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """``(1 - w) CE(labels) + w KL(float || device)``, in float64, by hand."""
    found = bench(tiny_devices, tmp_path, (*PLAIN, f"qat.float_teacher_weight={weight}"))
    device, stage, _ = watched_fit(found, monkeypatch)
    before = copied(device)
    assert stage.validate is not None
    score = stage.validate()
    windows, normalization = found.prepared.validation, found.prepared.normalization
    assert windows is not None
    model = float_model(found)
    teacher = softmax(over_windows(windows, normalization, lambda x: module_logits(model, x)))
    student = softmax(over_log_mels(windows, DeviceListener(device, normalization).logits))
    chosen = student[np.arange(len(windows)), windows.labels]
    entropy = -np.log(chosen).mean()
    divergence = (teacher * np.log(teacher / student)).sum(axis=1).mean()
    expected = (1 - weight) * entropy + weight * divergence
    assert score.loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert score.log_loss == pytest.approx(entropy, rel=1e-12)
    assert score.accuracy == (student.argmax(axis=1) == windows.labels).mean()
    assert same(copied(device), before)


def test_without_windows_held_out_there_is_no_score(
    tiny_esc10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stage, _ = watched_fit(bench(tiny_esc10, tmp_path, SETTINGS), monkeypatch)
    assert stage.validate is None
