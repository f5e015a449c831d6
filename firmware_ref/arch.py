"""The network as data: presets, and every layer with its name, shape, parameters and MACs.

Everything else that needs to know the network (the torch modules, the budgets, the lowering to
device operators) reads it from here. Shapes are (channels, frequency bands, time frames) of one
example; a layer's name is its path in the torch module.

Structure: BC-ResNet-ASC (Kim et al., "Residual normalization ... with efficient design", DCASE
2021) as modified by Cao et al., "Low-complexity acoustic scene classification using broadcasted
ResNet and data augmentation", DCASE 2022, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firmware_ref.errors import InputError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """One member of the BC-ResNet-Mod family; `layers` expands it.

    ``widths`` and ``blocks`` give one value a stage; ``pool_after`` holds the numbers (1-based) of
    the stages that end in a 2x2 max-pool. ``first_res_norm`` is ``"input"`` or ``"stem"``.
    ``res_norm_epsilon`` and ``dropout`` belong to float training: INT8 cannot hold the one beside
    the variance (`lowering`), and the other is off on the device.
    """

    name: str
    stem_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    pool_after: tuple[int, ...] = (1, 2)
    ssn_bands: int = 1
    conv_bias: bool = False
    stem_norm: bool = True
    head_channels: int | None = 256
    head_norm: bool = False
    res_norm: bool = True
    first_res_norm: str = "input"
    res_norm_lambda: float = 0.1
    res_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    classes: int = 10
    input_channels: int = 3
    input_bands: int = 128
    input_frames: int = 44

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(self.name, field.name, getattr(self, field.name))
        if not self.widths or len(self.widths) != len(self.blocks):
            raise InputError(
                f"network {self.name}: widths={self.widths} and blocks={self.blocks} must name "
                "the same number of stages, at least one"
            )
        sizes = [self.stem_channels, self.classes, self.input_bands, self.input_frames]
        sizes += [*self.widths, *self.blocks, self.ssn_bands]
        sizes += [] if self.head_channels is None else [self.head_channels]
        if not all(1 <= size <= 1024 for size in sizes):
            raise InputError(
                f"network {self.name}: every width, block count, band and size must be "
                f"between 1 and 1024; got {sizes}"
            )
        if self.input_channels not in (1, 3):
            raise InputError(
                f"network {self.name}: input_channels={self.input_channels}; allowed are 1 "
                "(log-mel) and 3 (log-mel, delta, delta-delta)"
            )
        if self.first_res_norm not in ("input", "stem"):
            raise InputError(
                f"network {self.name}: first_res_norm={self.first_res_norm!r}; "
                "allowed are 'input' and 'stem'"
            )
        if not set(self.pool_after) <= set(range(1, len(self.widths) + 1)):
            raise InputError(
                f"network {self.name}: pool_after={self.pool_after}; "
                f"stages are numbered 1 to {len(self.widths)}"
            )
        if not (0 <= self.dropout < 1 and 0 < self.res_norm_lambda <= 10):
            raise InputError(
                f"network {self.name}: dropout={self.dropout} must be in [0, 1) and "
                f"res_norm_lambda={self.res_norm_lambda} in (0, 10]"
            )
        if not 0 < self.res_norm_epsilon < 1:
            raise InputError(
                f"network {self.name}: res_norm_epsilon={self.res_norm_epsilon} must be in (0, 1)"
            )
        for stage, (_, bands, frames) in self.stage_inputs().items():
            if bands < 1 or frames < 1:
                raise InputError(f"network {self.name}: {stage} has no input left; pool less")
            if bands % self.ssn_bands:
                raise InputError(
                    f"network {self.name}: ssn_bands={self.ssn_bands} does not divide the "
                    f"{bands} frequency bands of {stage}; choose a divisor"
                )
        if len(self.widths) in self.pool_after and min(bands, frames) < 2:
            raise InputError(f"network {self.name}: the last max-pool leaves nothing; pool less")

    def stage_inputs(self) -> dict[str, Shape]:
        """Shape of the map each stage receives, by stage name."""
        bands, frames = _halved(self.input_bands), _halved(self.input_frames)
        channels, shapes = self.stem_channels, {}
        for number, width in enumerate(self.widths, start=1):
            shapes[f"stage{number}"] = (channels, bands, frames)
            channels = width
            if number in self.pool_after:
                bands, frames = bands // 2, frames // 2
        return shapes

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Network:
        """Build from a mapping (TOML, JSON); unknown or missing keys are refused by name."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown network key {unknown[0]!r}; allowed: {', '.join(known)}")
        required = {n for n, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise InputError(
                f"network key {missing[0]!r} is missing; give all of {sorted(required)}"
            )
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**frozen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }


def _check_type(network: object, name: str, value: object) -> None:
    """Refuse a value of the wrong type before it is compared with anything."""
    integers = {"stem_channels", "ssn_bands", "classes"}
    integers |= {"input_channels", "input_bands", "input_frames"}
    if name in integers or (name == "head_channels" and value is not None):
        good, allowed = type(value) is int, "an integer"
    elif name in {"widths", "blocks", "pool_after"}:
        good = isinstance(value, tuple) and len(value) <= 16 and all(type(v) is int for v in value)
        allowed = "a list of at most 16 integers"
    elif name in {"name", "first_res_norm"}:
        good = isinstance(value, str) and value.isprintable() and len(value) <= 64
        allowed = "a string of at most 64 printable characters"
    elif name in {"res_norm_lambda", "res_norm_epsilon", "dropout"}:
        good, allowed = isinstance(value, float | int) and not isinstance(value, bool), "a number"
    elif name == "head_channels":
        return
    else:
        good, allowed = isinstance(value, bool), "true or false"
    if not good:
        raise InputError(f"network {network}: {name}={value!r} must be {allowed}")


@dataclass(frozen=True)
class Layer:
    """One layer as trained, batch norm apart from its convolution.

    ``kind`` is one of ``conv``, ``batch_norm``, ``sub_spectral_norm``, ``res_norm``,
    ``max_pool``, ``mean`` and ``add``; weights and biases are counted apart, and a norm's
    running statistics are no parameters. Multiply-accumulates are those of convolutions.
    """

    name: str
    kind: str
    output_shape: Shape
    weights: int = 0
    biases: int = 0
    multiply_accumulates: int = 0

    @property
    def parameters(self) -> int:
        """Trainable parameters, weights and biases."""
        return self.weights + self.biases


def layers(network: Network) -> tuple[Layer, ...]:
    """Every layer of ``network`` in order of execution; names are paths in `train.model`."""
    table: list[Layer] = []
    norms = _ResNorms(network, table)

    shape: Shape = (network.input_channels, network.input_bands, network.input_frames)
    norms.add("input_norm", shape, wanted=network.first_res_norm == "input")
    halved = (network.stem_channels, _halved(shape[1]), _halved(shape[2]))
    table.append(_conv("stem.conv", shape[0], halved, (5, 5), network.conv_bias))
    shape = halved
    if network.stem_norm:
        table.append(_norm("stem.norm", shape))
    norms.add("stem.res_norm", shape, wanted=network.first_res_norm == "stem")

    for number, (width, blocks) in enumerate(zip(network.widths, network.blocks, strict=True), 1):
        for block in range(1, blocks + 1):
            shape = _block(f"stage{number}.block{block}", network, shape, width, table)
        if number in network.pool_after:
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
            table.append(Layer(f"stage{number}.pool", "max_pool", shape))
        norms.add(f"stage{number}.res_norm", shape)

    if network.head_channels is not None:
        shape = (network.head_channels, *shape[1:])
        table.append(_conv("head.conv", network.widths[-1], shape, (1, 1), network.conv_bias))
        if network.head_norm:
            table.append(_norm("head.norm", shape))
        table.append(Layer("head.pool", "mean", (shape[0], 1, 1)))
        table.append(_conv("classifier", shape[0], (network.classes, 1, 1), (1, 1), True))
    else:
        shape_out = (network.classes, *shape[1:])
        table.append(_conv("classifier", shape[0], shape_out, (1, 1), True))
        table.append(Layer("head.pool", "mean", (network.classes, 1, 1)))
    return tuple(table)


class _ResNorms:
    """Appends residual normalisations where the network has them."""

    def __init__(self, network: Network, table: list[Layer]) -> None:
        self._on, self._table = network.res_norm, table

    def add(self, name: str, shape: Shape, wanted: bool = True) -> None:
        if self._on and wanted:
            self._table.append(Layer(name, "res_norm", shape))


def _block(name: str, network: Network, shape: Shape, width: int, table: list[Layer]) -> Shape:
    """One BC-ResBlock: two-dimensional frequency path, one-dimensional temporal path."""
    channels, bands, frames = shape
    bias, out = network.conv_bias, (width, bands, frames)
    if channels != width:
        table.append(_conv(f"{name}.expand", channels, out, (1, 1), bias))
        table.append(_norm(f"{name}.expand_norm", out))
    table.append(_conv(f"{name}.frequency_conv", width, out, (3, 1), bias, groups=width))
    table.append(_norm(f"{name}.sub_spectral_norm", out, network.ssn_bands, "sub_spectral_norm"))
    row = (width, 1, frames)
    table.append(Layer(f"{name}.mean", "mean", row))
    table.append(_conv(f"{name}.temporal_conv", width, row, (1, 3), bias, groups=width))
    table.append(_norm(f"{name}.temporal_norm", row))
    table.append(_conv(f"{name}.project", width, row, (1, 1), bias))
    table.append(Layer(f"{name}.sum", "add", out))
    return out


def _conv(
    name: str, channels_in: int, out: Shape, kernel: tuple[int, int], bias: bool, groups: int = 1
) -> Layer:
    weights = out[0] * (channels_in // groups) * kernel[0] * kernel[1]
    positions = out[1] * out[2]
    return Layer(name, "conv", out, weights, out[0] if bias else 0, weights * positions)


def _norm(name: str, shape: Shape, bands: int = 1, kind: str = "batch_norm") -> Layer:
    return Layer(name, kind, shape, weights=shape[0] * bands, biases=shape[0] * bands)


def _halved(size: int) -> int:
    """Output size of a stride-2 convolution with SAME padding."""
    return (size + 1) // 2


PRESETS: Mapping[str, Network] = {
    network.name: network
    for network in (
        Network(
            name="report-125k",
            stem_channels=40,
            widths=(40, 40, 64, 128),
            blocks=(2, 1, 3, 3),
            conv_bias=True,
        ),
        Network(
            name="qti-c40",
            stem_channels=40,
            widths=(40, 60, 80, 100),
            blocks=(2, 2, 2, 3),
            ssn_bands=4,
            head_norm=True,
        ),
        Network(
            name="qti-c80",
            stem_channels=160,
            widths=(80, 120, 160, 200),
            blocks=(2, 2, 2, 3),
            ssn_bands=4,
            stem_norm=False,
            head_channels=None,
            input_channels=1,
        ),
    )
}


def preset(name: str) -> Network:
    """The preset of that name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
