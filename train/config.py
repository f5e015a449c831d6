"""Training configuration: frozen dataclasses read from TOML, every key checked."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware_ref.arch import Network, preset
from firmware_ref.errors import InputError, read_bytes

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class DataConfig:
    """Which recordings, and how they are cut into one-second windows.

    Training draws ``windows_per_clip`` random windows a clip and epoch from those that start
    every ``train_hop_seconds``; evaluation uses every window of the deployed cut. The QAT stage
    chooses the epoch of least loss on ``validation_fraction`` of the training clips, split by
    source; 0 holds nothing out and keeps the last epoch.
    """

    dataset: str = "esc10"
    windows_per_clip: int = 5
    train_hop_seconds: float = 0.25
    validation_fraction: float = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD or Adam; the rate falls along a cosine to ``final_learning_rate`` between restarts.

    ``momentum`` is SGD's.
    """

    epochs: int
    learning_rate: float
    algorithm: str = "sgd"
    restart_epochs: tuple[int, ...] = ()
    final_learning_rate: float = 1e-5
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True)
class AugmentConfig:
    """Mix-up and SpecAugment masks, the latter in bands and frames (exclusive maxima)."""

    mixup_alpha: float = 0.4
    frequency_mask_bands: int = 13
    time_mask_frames: int = 5


@dataclass(frozen=True)
class QatConfig:
    """Quantisation-aware training after the float stage.

    Activation ranges are measured on ``calibration_batches`` augmentation-free training batches,
    then learned at ``range_learning_rate``; 0 fixes them. ``float_teacher_weight`` is the share of
    the loss that compares with the float network's output, the rest being that of the labels.
    """

    optimizer: OptimizerConfig
    calibration_batches: int = 16
    range_learning_rate: float = 1e-2
    float_teacher_weight: float = 1.0


@dataclass(frozen=True)
class Config:
    """Everything one run depends on, apart from where the recordings are."""

    name: str
    network: Network
    float_stage: OptimizerConfig
    qat_stage: QatConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


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
    "float_teacher_weight": (0, 1),
    "seed": (0, 2**32 - 1),
}


CHOICES: Mapping[str, tuple[str, ...]] = {"algorithm": ("sgd", "adam")}


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
        values = tomllib.loads(read_bytes(path, 2**20, "config").decode("utf-8"))
        for override in overrides:
            _apply(values, override)
        return parse_config(values, path.stem)
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not TOML, nested too deep, or a number too long to print.
        raise InputError(f"config {str(path)!r} is not readable: {error}; mend that line") from None


def parse_config(values: Mapping[str, Any], name: str) -> Config:
    """Check a configuration given as nested mappings and freeze it."""
    values = dict(values)
    network = _network(_section(values, "model", required=True))
    float_values = _section(values, "float", required=True)
    qat_values = dict(_section(values, "qat", required=True))
    own = [f.name for f in dataclasses.fields(QatConfig) if f.name != "optimizer"]
    own_values = {key: qat_values.pop(key) for key in own if key in qat_values}
    optimizer = _build(OptimizerConfig, "qat", qat_values)
    qat = _build(QatConfig, "qat", {"optimizer": optimizer, **own_values})
    config = Config(
        name=name,
        network=network,
        float_stage=_build(OptimizerConfig, "float", float_values),
        qat_stage=qat,
        data=_build(DataConfig, "data", _section(values, "data")),
        augment=_build(AugmentConfig, "augment", _section(values, "augment")),
        seed=_value("seed", int, values.pop("seed", 0)),
    )
    if values:
        raise InputError(
            f"config {name}: unknown key {sorted(values)[0]!r}; "
            "allowed: seed, model, data, augment, float, qat"
        )
    return config


def _section(values: dict[str, Any], name: str, required: bool = False) -> Mapping[str, Any]:
    section = values.pop(name, None)
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
    if kind == "OptimizerConfig":
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
