"""Configurations: shipped ones load, everything wrong is refused by name."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budgets.check import enforce_network
from firmware_ref.arch import preset
from firmware_ref.errors import InputError
from train.config import (
    AugmentConfig,
    ComputeConfig,
    Config,
    CrossGradientConfig,
    DataConfig,
    DistillationConfig,
    OptimizerConfig,
    QatConfig,
    TeacherConfig,
)
from train.config_file import CHOICES, CONFIG_FOLDER, RANGES, SECTIONS, load_config, parse_config

SHIPPED = sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))
STAGE = {"epochs": 3, "learning_rate": 0.1}


def values(**sections: Any) -> dict[str, Any]:
    return {"model": {"preset": "qti-c40"}, "float": dict(STAGE), "qat": dict(STAGE), **sections}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_loads_and_fits_the_limits(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert load_config(str(CONFIG_FOLDER / f"{name}.toml")) == config
    enforce_network(config.network)


def test_esc10_is_the_preset_and_the_recipe() -> None:
    config = load_config("esc10")
    assert config.network == replace(preset("report-125k"), first_res_norm="stem")
    assert config.float_stage.learning_rate == 0.1
    assert config.float_stage.final_learning_rate == 1e-5
    assert config.float_stage.momentum == 0.9
    assert config.float_stage.restart_epochs == (4, 8, 16, 32, 64)
    assert config.float_stage.algorithm == "sgd"
    assert config.augment.mixup_alpha == 0.4
    assert config.augment.frequency_mask_bands == 13
    assert config.qat_stage.optimizer.algorithm == "adam"
    assert config.qat_stage.range_learning_rate == 1e-2
    assert config.qat_stage.float_teacher_weight == 1.0
    assert config.data.validation_fraction == 0.1


def test_defaults_and_given_values() -> None:
    config = parse_config(values(seed=5, augment={"mixup_alpha": 0}), "mine")
    assert (config.name, config.seed) == ("mine", 5)
    assert config.augment.mixup_alpha == 0.0 and isinstance(config.augment.mixup_alpha, float)
    assert config.augment.frequency_mask_bands == 13
    assert config.float_stage.epochs == 3 and config.float_stage.batch_size == 64
    assert config.qat_stage.optimizer == config.float_stage
    assert config.float_stage.algorithm == "sgd"
    assert config.qat_stage.calibration_batches == 16
    assert config.qat_stage.range_learning_rate == 1e-2
    assert config.qat_stage.float_teacher_weight == 1.0
    assert config.data.validation_fraction == 0.1
    assert config.network == preset("qti-c40")


def test_both_sections_choose_their_optimiser() -> None:
    config = parse_config(
        values(
            float={**STAGE, "algorithm": "adam"},
            qat={**STAGE, "range_learning_rate": 0, "float_teacher_weight": 0.5},
        ),
        "mine",
    )
    assert config.float_stage.algorithm == "adam"
    assert config.qat_stage.optimizer.algorithm == "sgd"
    assert config.qat_stage.range_learning_rate == 0.0
    assert config.qat_stage.float_teacher_weight == 0.5


def test_a_preset_can_be_changed_and_a_network_spelled_out() -> None:
    changed = parse_config(values(model={"preset": "qti-c40", "classes": 3}), "mine").network
    assert changed.classes == 3 and changed.widths == preset("qti-c40").widths
    model = {"stem_channels": 8, "widths": [8], "blocks": [1], "pool_after": []}
    assert parse_config(values(model=model), "mine").network.name == "custom"


def test_teachers_are_tables() -> None:
    teachers = [{"kind": "network", "source": "qti-c80"}, {"kind": "table", "source": "t.npz"}]
    distillation = {"label_weight": 0, "temperature": 4, "teachers": teachers}
    config = parse_config(values(distillation=distillation, teacher=dict(STAGE)), "mine")
    assert config.distillation.label_weight == 0.0 and config.distillation.temperature == 4.0
    assert config.distillation.teachers == (
        TeacherConfig("network", "qti-c80"),
        TeacherConfig("table", "t.npz"),
    )
    assert config.teacher_stage == config.float_stage


def test_every_section_is_read() -> None:
    sections: dict[str, dict[str, Any]] = {
        "data": {"dataset": "tau2022", "selection": "test"},
        "augment": {"pitch_shift_semitones": [-1, 1.5], "pitch_shift_probability": 1},
        "cross_gradient": {"epsilon": 1, "perturbed_weight": 0.25, "device_width_divisor": 2},
        "compute": {"device": "auto", "precision": "bfloat16", "compile": True, "threads": 8},
    }
    config = parse_config(values(**sections), "mine")
    assert config.augment.pitch_shift_semitones == (-1.0, 1.5)
    for section, given in sections.items():
        found = vars(getattr(config, section))
        for key, value in given.items():
            assert found[key] == (tuple(value) if isinstance(value, list) else value)
    fields = {field.name for field in dataclasses.fields(Config)} - {"name", "seed"}
    names = {"network": "model", "float_stage": "float", "qat_stage": "qat"}
    names |= {"teacher_stage": "teacher"}
    assert {names.get(field, field) for field in fields} == set(SECTIONS)


def test_every_number_has_its_range_and_every_word_its_choices() -> None:
    """A key of a section that neither table knows would be a bug on its first use."""
    sections = (
        *(AugmentConfig, ComputeConfig, CrossGradientConfig, DataConfig, DistillationConfig),
        *(OptimizerConfig, QatConfig, TeacherConfig),
    )
    numbers, words = set(), set()
    for section in sections:
        for field in dataclasses.fields(section):
            if str(field.type) in ("int", "float", "tuple[float, ...]"):
                numbers.add(field.name)
            if field.type == "str":
                words.add(field.name)
    assert numbers | {"seed"} == set(RANGES)
    free = {"dataset", "source", "weights", "spectrum_correction_file"}
    assert words - free == set(CHOICES)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (values(speed=3), "unknown key 'speed'; allowed: seed, model, data, augment, cross_gradient"),
    (values(data={"hop": 3}), "unknown config key data.hop; allowed: dataset, windows_per_clip"),
    (values(model={"preset": "qti-c40", "depth": 3}), "unknown network key 'depth'; allowed"),
    (values(model={"preset": "nonet"}), "unknown preset 'nonet'; known: report-125k"),
    (values(model={"preset": 3}), "model.preset=3 must be the name"),
    (values(model={"stem_channels": 8, "widths": [8]}), "network key 'blocks' is missing"),
    (values(model={"preset": "qti-c40", "ssn_bands": 7}), "ssn_bands=7 does not divide the 64"),
    (values(model={"preset": "qti-c40", "widths": "8"}), "widths='8' must be a list"),
    (values(model={"preset": "qti-c40", "dropout": float("nan")}), "dropout=nan"),
    (values(float={"epochs": 3}), "config key float.learning_rate is missing"),
    (values(qat={"learning_rate": 0.1}), "config key qat.epochs is missing"),
    (values(float=[1]), r"section \[float\] is missing or not a table"),
    (values(augment=3), r"section \[augment\] is missing or not a table"),
    (values(seed=-1), "config seed=-1 must be an integer from 0 to"),
    (values(seed=1.0), "config seed=1.0 must be an integer"),
    (values(seed=True), "config seed=True must be an integer"),
    (values(float={**STAGE, "epochs": 1.5}), "float.epochs=1.5 must be an integer from 0"),
    (values(float={**STAGE, "epochs": -1}), "float.epochs=-1 must be an integer from 0 to 100000"),
    (values(float={**STAGE, "learning_rate": "0.1"}), "float.learning_rate='0.1' must be a number"),
    (
        values(float={**STAGE, "learning_rate": 11}),
        "learning_rate=11 must be a number from 0",
    ),
    (values(float={**STAGE, "learning_rate": float("nan")}), "float.learning_rate=nan must be"),
    (values(float={**STAGE, "learning_rate": float("inf")}), "float.learning_rate=inf must be"),
    (values(float={**STAGE, "learning_rate": 10**400}), "float.learning_rate=1000"),
    (values(seed=10**400), "config seed=1000"),
    (
        values(float={**STAGE, "momentum": 1.0}),
        "momentum=1.0 must be a number from 0 to 0.99",
    ),
    (values(float={**STAGE, "batch_size": 1}), "float.batch_size=1 must be an integer from 2"),
    (values(float={**STAGE, "restart_epochs": 4}), "restart_epochs=4 must be a list of positive"),
    (values(float={**STAGE, "restart_epochs": [0]}), r"restart_epochs=\[0\] must be a list of pos"),
    (values(float={**STAGE, "restart_epochs": [4, 2]}), r"restart_epochs=\[4, 2\] must increase"),
    (values(float={**STAGE, "restart_epochs": [2, 2]}), r"restart_epochs=\[2, 2\] must increase"),
    (values(data={"train_hop_seconds": 0}), "data.train_hop_seconds=0 must be a number from 0.01"),
    (values(data={"dataset": 1}), "data.dataset=1 must be a string"),
    (values(augment={"time_mask_frames": 45}), "augment.time_mask_frames=45 must be an integer"),
    (values(qat={**STAGE, "calibration_batches": 0}), "qat.calibration_batches=0 must be an int"),
    (values(float={**STAGE, "algorithm": "adamw"}), "float.algorithm='adamw'; allowed: sgd, adam"),
    (values(qat={**STAGE, "algorithm": "SGD"}), "qat.algorithm='SGD'; allowed: sgd, adam"),
    (values(qat={**STAGE, "algorithm": 1}), "qat.algorithm=1 must be a string"),
    (
        values(qat={**STAGE, "range_learning_rate": 2}),
        "qat.range_learning_rate=2 must be a number from 0 to 1",
    ),
    (
        values(qat={**STAGE, "float_teacher_weight": -0.1}),
        "qat.float_teacher_weight=-0.1 must be a number from 0 to 1",
    ),
    (
        values(float={**STAGE, "range_learning_rate": 0.1}),
        "unknown config key float.range_learning_rate",
    ),
    (
        values(data={"validation_fraction": 0.6}),
        "data.validation_fraction=0.6 must be a number from 0 to 0.5",
    ),
    (values(qat={**STAGE, "optimizer": {}}), "unknown config key qat.optimizer"),
    (values(float={**STAGE, "epochs": {}}), r"float.epochs=\{\} must be an integer"),
    (values(float={**STAGE, "keep": "first"}), "float.keep='first'; allowed: best, last"),
    (values(data={"selection": "train"}), "data.selection='train'; allowed: validation, test"),
    (values(compute={"device": "tpu"}), "compute.device='tpu'; allowed: cpu, cuda, auto"),
    (values(compute={"precision": "int8"}), "precision='int8'; allowed: float32, bfloat16"),
    (values(compute={"compile": 1}), "compute.compile=1 must be true or false"),
    (values(compute={"threads": 0}), "compute.threads=0 must be an integer from 1 to 1024"),
    (values(cross_gradient={"epsilon": -1}), "epsilon=-1 must be a number from 0 to 10"),
    (values(cross_gradient={"alpha": 1}), "unknown config key cross_gradient.alpha; allowed: eps"),
    (values(augment={"pitch_shift_semitones": 2}), "semitones=2 must be a list of at most 24"),
    (values(augment={"pitch_shift_semitones": [13]}), "semitones=13 must be a number from -12"),
    (values(augment={"pitch_shift_semitones": [1] * 25}), "must be a list of at most 24"),
    (
        values(augment={"pitch_shift_probability": 0.6, "spectrum_correction_probability": 0.6}),
        r"are 1\.2 together; at most 1",
    ),
    (values(distillation={"teachers": "qti-c80"}), "teachers='qti-c80' must be tables, as in"),
    (values(distillation={"teachers": [3]}), r"teachers=\[3\] must be tables"),
    (values(distillation={"temperature": 0}), "temperature=0 must be a number from 0.01 to 100"),
    (
        values(distillation={"teachers": [{"kind": "network"}]}),
        "distillation.teachers.source is missing",
    ),
    (
        values(distillation={"teachers": [{"kind": "oracle", "source": "x"}]}),
        "teachers.kind='oracle'; allowed: network, checkpoint, table, onnx, module",
    ),
    (
        values(distillation={"teachers": [{"kind": "network", "source": "x", "size": 1}]}),
        "unknown config key distillation.teachers.size; allowed: kind, source, weights",
    ),
    (
        values(distillation={"teachers": [{"kind": "network", "source": "qti-c80"}]}),
        r"section \[teacher\] is missing",
    ),
    (values(teacher={"epochs": 3}), "config key teacher.learning_rate is missing"),
    (values(teacher=3), r"section \[teacher\] is missing or not a table"),
]


@pytest.mark.parametrize(("mapping", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_what_is_wrong_is_refused_by_name(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(mapping, "mine")


@pytest.mark.parametrize("section", ["model", "float", "qat"])
def test_a_missing_section_is_named(section: str) -> None:
    mapping = values()
    del mapping[section]
    with pytest.raises(InputError, match=rf"section \[{section}\] is missing.*add \[{section}\]"):
        parse_config(mapping, "mine")


# Files


@pytest.mark.parametrize(
    "content",
    [
        b"[model",
        b"\xff\xfe\x00",
        b"seed = 1\nseed = 2",
        b"a = " + b"[" * 100_000,
        b"seed = " + b"9" * 5000,
        b"seed = 0x" + b"f" * 5000,
        b'[model]\npreset = "qti-c40"\nwidths = [0x' + b"f" * 5000 + b"]",
        b"seed = nan",
        b"",
    ],
    ids=lambda b: repr(b[:12]),
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="config"):
        load_config(str(path))


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    generator = random.Random(0)
    path = tmp_path / "mine.toml"
    shipped = (CONFIG_FOLDER / "esc10.toml").read_bytes()
    for _ in range(200):
        content = bytearray(shipped)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            assert isinstance(load_config(str(path)), Config)
        except InputError as error:
            assert str(error)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown config 'nosuch'; known: .*esc10"):
        load_config("nosuch")
    with pytest.raises(InputError, match=r"mine.toml' cannot be read"):
        load_config(str(tmp_path / "mine.toml"))
