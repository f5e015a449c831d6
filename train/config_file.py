"""Configurations from TOML files, every key and value checked."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firmware_ref.arch import Network, preset
from firmware_ref.errors import InputError
from firmware_ref.toml import read_toml
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

CONFIG_FOLDER = Path(__file__).parent / "configs"
LONGEST_LIST = 24

RANGES: Mapping[str, tuple[float, float]] = {
    "windows_per_clip": (1, 1000),
    "train_hop_seconds": (0.01, 1.0),
    "validation_fraction": (0, 0.5),
    "epochs": (0, 100_000),
    "learning_rate": (0, 10),
    "final_learning_rate": (0, 10),
    "batch_size": (2, 65536),
    "momentum": (0, 0.999),
    "weight_decay": (0, 1),
    "mixup_alpha": (0, 100),
    "frequency_mask_bands": (0, 128),
    "time_mask_frames": (0, 44),
    "calibration_batches": (1, 100_000),
    "range_learning_rate": (0, 1),
    "frozen_range_epochs": (0, 100_000),
    "float_teacher_weight": (0, 1),
    "time_warp_frames": (0, 20),
    "pitch_shift_semitones": (-12, 12),
    "silence_probability": (0, 1),
    "pitch_shift_probability": (0, 1),
    "spectrum_correction_probability": (0, 1),
    "spectrum_correction_moments": (1, 100_000),
    "epsilon": (0, 10),
    "perturbed_weight": (0, 1),
    "device_width_divisor": (1, 64),
    "label_weight": (0, 1),
    "temperature": (0.01, 100),
    "threads": (1, 1024),
    "seed": (0, 2**32 - 1),
}


CHOICES: Mapping[str, tuple[str, ...]] = {
    "algorithm": ("sgd", "adam"),
    "keep": ("best", "last"),
    "selection": ("validation", "test"),
    "kind": ("network", "checkpoint", "table", "onnx", "module"),
    "device": ("cpu", "cuda", "auto"),
    "precision": ("float32", "bfloat16"),
}
SECTIONS = (
    *("model", "data", "augment", "cross_gradient", "distillation", "teacher"),
    *("float", "qat", "compute"),
)


def load_config(name_or_file: str, overrides: Sequence[str] = ()) -> Config:
    """Read a shipped configuration by name, or a TOML file, and apply ``section.key=value``."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = CONFIG_FOLDER / f"{name_or_file}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in CONFIG_FOLDER.glob("*.toml")))
            raise InputError(
                f"unknown config {name_or_file!r}; known: {known}; or give the path of a .toml file"
            )
    try:
        values = read_toml(path, "config")
        for override in overrides:
            _apply(values, override)
        return parse_config(values, path.stem)
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not TOML, nested too deep, or a number too long to print.
        raise InputError(f"config {str(path)!r} is not readable: {error}; mend that line") from None


def parse_config(values: Mapping[str, Any], name: str) -> Config:
    """Check a configuration given as nested mappings and freeze it."""
    unknown = sorted(set(values) - {"seed", *SECTIONS})
    if unknown:
        raise InputError(
            f"config {name}: unknown key {unknown[0]!r}; allowed: seed, {', '.join(SECTIONS)}"
        )
    qat_values = dict(_section(values, "qat", required=True))
    own = [f.name for f in dataclasses.fields(QatConfig) if f.name != "optimizer"]
    own_values = {key: qat_values.pop(key) for key in own if key in qat_values}
    optimizer = _build(OptimizerConfig, "qat", qat_values)
    teacher = _section(values, "teacher")
    return Config(
        name=name,
        network=_network(_section(values, "model", required=True)),
        float_stage=_build(OptimizerConfig, "float", _section(values, "float", required=True)),
        qat_stage=_build(QatConfig, "qat", {"optimizer": optimizer, **own_values}),
        data=_build(DataConfig, "data", _section(values, "data")),
        augment=_build(AugmentConfig, "augment", _section(values, "augment")),
        cross_gradient=_build(
            CrossGradientConfig, "cross_gradient", _section(values, "cross_gradient")
        ),
        distillation=_distillation(_section(values, "distillation")),
        teacher_stage=_build(OptimizerConfig, "teacher", teacher) if teacher else None,
        compute=_build(ComputeConfig, "compute", _section(values, "compute")),
        seed=_value("seed", int, values.get("seed", 0)),
    )


def _distillation(values: Mapping[str, Any]) -> DistillationConfig:
    teachers = values.get("teachers", [])
    tables = isinstance(teachers, list) and all(isinstance(t, Mapping) for t in teachers)
    if not tables:
        raise InputError(
            f"config distillation.teachers={teachers!r} must be tables, as in "
            '[[distillation.teachers]] kind = "network" source = "qti-c80"'
        )
    built = tuple(_build(TeacherConfig, "distillation.teachers", t) for t in teachers)
    config: DistillationConfig = _build(
        DistillationConfig, "distillation", {**values, "teachers": built}
    )
    return config


def _section(values: Mapping[str, Any], name: str, required: bool = False) -> Mapping[str, Any]:
    section = values.get(name)
    if section is None and not required:
        return {}
    if not isinstance(section, Mapping):
        raise InputError(f"config section [{name}] is missing or not a table; add [{name}]")
    return section


def _network(values: Mapping[str, Any]) -> Network:
    """A preset by name, changed by any further keys, or a network spelled out."""
    values = dict(values)
    if "preset" not in values:
        return Network.from_dict({"name": "custom", **values})
    name = values.pop("preset")
    if not isinstance(name, str):
        raise InputError(f"model.preset={name!r} must be the name of a preset")
    return Network.from_dict({**preset(name).to_dict(), **values})


def _build(cls: type[Any], section: str, values: Mapping[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"unknown config key {section}.{unknown[0]}; allowed: {', '.join(fields)}")
    missing = [n for n, f in fields.items() if n not in values and _is_required(f)]
    if missing:
        raise InputError(f"config key {section}.{missing[0]} is missing; give it a value")
    checked = {n: _value(f"{section}.{n}", fields[n].type, v) for n, v in values.items()}
    return cls(**checked)


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _value(key: str, kind: Any, value: Any) -> Any:
    """Check one value against its declared type and range."""
    kind = getattr(kind, "__name__", kind)
    if kind in ("OptimizerConfig", "tuple[TeacherConfig, ...]"):
        return value
    if kind == "tuple[float, ...]":
        if not isinstance(value, list) or len(value) > LONGEST_LIST:
            raise InputError(f"config {key}={value!r} must be a list of at most {LONGEST_LIST}")
        return tuple(_number(key, "float", v) for v in value)
    if kind == "bool":
        if type(value) is not bool:
            raise InputError(f"config {key}={value!r} must be true or false")
        return value
    if kind == "tuple[int, ...]":
        if not isinstance(value, list) or not all(type(v) is int and v > 0 for v in value):
            raise InputError(f"config {key}={value!r} must be a list of positive integers")
        if value != sorted(set(value)):
            raise InputError(f"config {key}={value!r} must increase; sort it")
        return tuple(value)
    if kind == "str":
        if not isinstance(value, str):
            raise InputError(f"config {key}={value!r} must be a string")
        allowed = CHOICES.get(key.rpartition(".")[2])
        if allowed and value not in allowed:
            raise InputError(f"config {key}={value!r}; allowed: {', '.join(allowed)}")
        return value
    return _number(key, kind, value)


def _number(key: str, kind: str, value: Any) -> Any:
    """A number within its range."""
    number = type(value) is int or (kind == "float" and type(value) is float)
    low, high = RANGES[key.rpartition(".")[2]]
    if not number or not low <= value <= high:
        article = "an integer" if kind == "int" else "a number"
        raise InputError(f"config {key}={value!r} must be {article} from {low:g} to {high:g}")
    return float(value) if kind == "float" else value


def _apply(values: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value``; the value is TOML, or a bare string."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > 2:
        raise InputError(f"--set {override!r} must read section.key=value, as in float.epochs=8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override!r}: {key} is not a section")
    table[keys[-1]] = value
