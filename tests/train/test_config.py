"""What several keys of a configuration together make wrong, and its form for JSON."""

from __future__ import annotations

import dataclasses
import json
import re
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


# Rates that would rise, or teach nothing

TAUGHT = DistillationConfig(teachers=(TeacherConfig("network", "x"),))


def staged(section: str, stage: OptimizerConfig, **changes: Any) -> Config:
    """A configuration with one stage of this kind, the others as they should be."""
    stages = {"float": STAGE, "qat": STAGE, "teacher": STAGE, section: stage}
    network, qat = preset("qti-c40"), QatConfig(stages["qat"])
    return Config("mine", network, stages["float"], qat, teacher_stage=stages["teacher"], **changes)


@pytest.mark.parametrize("section", ["float", "qat", "teacher"])
@pytest.mark.parametrize(
    ("rate", "last", "message"),
    [
        (0.0, 0.0, "{0}.learning_rate=0 trains nothing; set it above 0, or {0}.epochs=0"),
        (0.0, 1e-5, "{0}.learning_rate=0 trains nothing; set it above 0, or {0}.epochs=0"),
        (
            1e-6,
            1e-5,
            "{0}.final_learning_rate=1e-05 is above {0}.learning_rate=1e-06, the rate would rise; "
            "set {0}.final_learning_rate=1e-06 or less",
        ),
    ],
)
def test_a_rate_that_rises_or_is_nothing_is_refused(
    section: str, rate: float, last: float, message: str
) -> None:
    stage = OptimizerConfig(epochs=3, learning_rate=rate, final_learning_rate=last)
    with pytest.raises(InputError, match=re.escape(message.format(section))):
        staged(section, stage, distillation=TAUGHT)
    # Without an epoch there is no rate.
    staged(section, dataclasses.replace(stage, epochs=0), distillation=TAUGHT)


def test_a_constant_rate_and_a_section_that_is_not_used_are_accepted() -> None:
    constant = OptimizerConfig(epochs=3, learning_rate=1e-6, final_learning_rate=1e-6)
    assert staged("qat", constant).qat_stage.optimizer == constant
    found = staged("teacher", OptimizerConfig(epochs=3, learning_rate=0.0))
    assert found.stages == {"float": STAGE, "qat": STAGE}
    assert list(staged("qat", STAGE, distillation=TAUGHT).stages) == ["teacher", "float", "qat"]
