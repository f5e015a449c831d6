"""What several keys of a configuration together make wrong, and its form for JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from firmware_ref.arch import preset
from firmware_ref.errors import InputError
from train.config import (
    AugmentConfig,
    Config,
    CrossGradientConfig,
    DataConfig,
    DistillationConfig,
    OptimizerConfig,
    QatConfig,
    TeacherConfig,
)
from train.config_file import load_config

STAGE = OptimizerConfig(epochs=3, learning_rate=0.1)


def config(**changes: Any) -> Config:
    return Config("mine", preset("qti-c40"), STAGE, QatConfig(STAGE), **changes)


def test_a_configuration_is_plain_json() -> None:
    text = json.dumps(load_config("esc10-devices").to_dict(), allow_nan=False)
    values = json.loads(text)
    assert values["float_stage"]["epochs"] == 128
    assert values["qat_stage"]["optimizer"]["algorithm"] == "adam"
    assert values["distillation"]["teachers"] == [
        {"kind": "network", "source": "qti-c80", "weights": ""}
    ]


def test_what_needs_to_be_asked_for_is_off() -> None:
    """Techniques that need several devices or a teacher, and selection on the test split."""
    found = config()
    assert found.cross_gradient.epsilon == 0 and found.distillation.teachers == ()
    assert found.augment.pitch_shift_probability == 0
    assert found.augment.spectrum_correction_probability == 0
    assert found.augment.time_warp_frames == 0
    assert found.data == DataConfig() and found.data.selection == "validation"
    assert found.compute.device == "cpu" and found.float_stage.keep == "best"


@pytest.mark.parametrize(("pitch", "spectrum"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_shares_of_all_windows_are_accepted(pitch: float, spectrum: float) -> None:
    augment = AugmentConfig(pitch_shift_probability=pitch, spectrum_correction_probability=spectrum)
    assert config(augment=augment).augment == augment


def test_more_than_all_windows_are_refused() -> None:
    augment = AugmentConfig(pitch_shift_probability=0.75, spectrum_correction_probability=0.5)
    with pytest.raises(InputError, match=r"are 1\.25 together; at most 1, a window being heard"):
        config(augment=augment)


def test_shifts_by_nothing_are_refused() -> None:
    none = AugmentConfig(pitch_shift_semitones=())
    assert config(augment=none).augment == none, "while it is off"
    augment = dataclasses.replace(none, pitch_shift_probability=0.1)
    with pytest.raises(InputError, match=r"pitch_shift_semitones=\[\] leaves no shift; name some"):
        config(augment=augment)


@pytest.mark.parametrize("kind", ["network", "module"])
def test_a_teacher_that_is_trained_needs_its_section(kind: str) -> None:
    taught = DistillationConfig(teachers=(TeacherConfig("table", "t"), TeacherConfig(kind, "x")))
    with pytest.raises(InputError, match=r"section \[teacher\] is missing; say how teachers are"):
        config(distillation=taught)
    found = config(distillation=taught, teacher_stage=STAGE)
    assert found.trains_teachers


@pytest.mark.parametrize("kind", ["checkpoint", "table", "onnx"])
def test_a_teacher_that_is_read_needs_none(kind: str) -> None:
    found = config(distillation=DistillationConfig(teachers=(TeacherConfig(kind, "x"),)))
    assert found.teacher_stage is None and not found.trains_teachers


def test_cross_gradient_shares_are_as_in_the_paper() -> None:
    assert CrossGradientConfig().perturbed_weight == 0.5
