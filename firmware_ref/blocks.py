"""The two blocks of the network in device arithmetic, each readable in one place.

`res_norm` and `bc_resblock` take and give int8 maps (N, F, T, C) and equal, bit for bit, the
flatbuffer's operators of the same names: a block holds those operators prepared, that is, their
integer constants, multipliers and zero points. Anyone who writes the blocks by hand (in C, say)
can hold each step against these.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator
from firmware_ref.ops import prepare
from firmware_ref.ops.node import Kernel


@dataclass(frozen=True, eq=False)
class ResNorm:
    """The prepared operators of a residual normalisation, by the last part of their names."""

    mean_over_channels: Kernel
    mean: Kernel
    square: Kernel
    power_over_channels: Kernel
    power: Kernel
    squared_mean: Kernel
    variance: Kernel
    rsqrt: Kernel
    gain: Kernel
    offset: Kernel
    scaled: Kernel
    difference: Kernel


def res_norm(x: np.ndarray, norm: ResNorm) -> np.ndarray:
    """Residual normalisation over time and channels, for each frequency.

    ``lambda x + (x - mean) / std``, computed as ``x (lambda + 1 / std) - mean / std`` with
    ``std^2 = E[x^2] - mean^2``. Cao et al., DCASE 2022, equations 1 to 4 (after Kim et al., DCASE
    2021). Epsilon is below the resolution of int8.
    """
    mean = norm.mean(norm.mean_over_channels(x))  # (N, F, 1, 1)
    power = norm.power(norm.power_over_channels(norm.square(x, x)))  # E[x^2]
    rsqrt = norm.rsqrt(norm.variance(power, norm.squared_mean(mean, mean)))  # 1 / std
    return norm.difference(norm.scaled(x, norm.gain(rsqrt)), norm.offset(mean, rsqrt))


@dataclass(frozen=True, eq=False)
class FrequencyPath:
    """The 3x1 depthwise convolution: one, or one a sub-band over rows of the padded map."""

    padded: Kernel | None
    rows: tuple[Kernel, ...]
    convolutions: tuple[Kernel, ...]
    concatenation: Kernel | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, F, T, C) to (N, F, T, C)."""
        if self.padded is None or self.concatenation is None:
            return self.convolutions[0](x)
        padded = self.padded(x)
        bands = zip(self.convolutions, self.rows, strict=True)
        return self.concatenation(*(convolution(rows(padded)) for convolution, rows in bands))


@dataclass(frozen=True, eq=False)
class BCResBlock:
    """The prepared operators of a BC-ResBlock, by the last part of their names.

    ``expand`` is there where the width changes; where it does not, ``frequency_conv`` holds the
    identity, ``y + x``, and ``mean_sum`` and ``mean_identity`` take it off the mean again.
    """

    expand: Kernel | None
    frequency_conv: FrequencyPath
    mean_sum: Kernel | None
    mean_identity: Kernel | None
    mean: Kernel
    temporal_conv: Kernel
    sigmoid: Kernel
    silu: Kernel
    project: Kernel
    sum: Kernel


def bc_resblock(x: np.ndarray, block: BCResBlock) -> np.ndarray:
    """Broadcasted residual block: a map ``y`` along frequency, a row ``z`` along time, their sum.

    Kim et al., "Broadcasted residual learning", Interspeech 2021, figure 2.
    """
    if block.expand:
        x = block.expand(x)  # (N, F, T, C)
    y = block.frequency_conv(x)
    if block.mean_sum and block.mean_identity:
        mean = block.mean(block.mean_sum(y), block.mean_identity(x))  # (N, 1, T, C)
    else:
        mean = block.mean(y)
    z = block.temporal_conv(mean)
    z = block.project(block.silu(z, block.sigmoid(z)))
    return block.sum(y, z)


def res_norm_of(graph: Graph, name: str) -> tuple[str, ResNorm]:
    """The normalisation called ``name`` in a graph, and the name of the tensor it reads."""
    find = _Finder(graph, name)
    x = find.first_input("mean_over_channels")
    return x, ResNorm(
        mean_over_channels=find.kernel("mean_over_channels", "CONV_2D", x),
        mean=find.kernel("mean", "CONV_2D", "mean_over_channels"),
        square=find.kernel("square", "MUL", x, x),
        power_over_channels=find.kernel("power_over_channels", "CONV_2D", "square"),
        power=find.kernel("power", "CONV_2D", "power_over_channels"),
        squared_mean=find.kernel("squared_mean", "MUL", "mean", "mean"),
        variance=find.kernel("variance", "SUB", "power", "squared_mean"),
        rsqrt=find.kernel("rsqrt", "RSQRT", "variance"),
        gain=find.kernel("gain", "ADD", "rsqrt"),
        offset=find.kernel("offset", "MUL", "mean", "rsqrt"),
        scaled=find.kernel("scaled", "MUL", x, "gain"),
        difference=find.kernel("", "SUB", "scaled", "offset"),
    )


def bc_resblock_of(graph: Graph, name: str) -> tuple[str, BCResBlock]:
    """The block called ``name`` in a graph, and the name of the tensor it reads."""
    find = _Finder(graph, name)
    expands = find.has("expand")
    y = "frequency_conv"
    x = find.first_input("expand" if expands else "mean_identity")
    wide = "expand" if expands else x
    return x, BCResBlock(
        expand=find.kernel("expand", "CONV_2D", x) if expands else None,
        frequency_conv=_frequency_path_of(find, wide),
        mean_sum=None if expands else find.kernel("mean_sum", "AVERAGE_POOL_2D", y),
        mean_identity=None if expands else find.kernel("mean_identity", "AVERAGE_POOL_2D", x),
        mean=(
            find.kernel("mean", "AVERAGE_POOL_2D", y)
            if expands
            else find.kernel("mean", "SUB", "mean_sum", "mean_identity")
        ),
        temporal_conv=find.kernel("temporal_conv", "DEPTHWISE_CONV_2D", "mean"),
        sigmoid=find.kernel("sigmoid", "LOGISTIC", "temporal_conv"),
        silu=find.kernel("silu", "MUL", "temporal_conv", "sigmoid"),
        project=find.kernel("project", "CONV_2D", "silu"),
        sum=find.kernel("sum", "ADD", y, "project"),
    )


def _frequency_path_of(find: _Finder, source: str) -> FrequencyPath:
    if not find.has("frequency_conv.padded"):
        one = find.kernel("frequency_conv", "DEPTHWISE_CONV_2D", source)
        return FrequencyPath(None, (), (one,), None)
    bands = list(takewhile(lambda band: find.has(f"frequency_conv.band{band}"), count(1)))
    return FrequencyPath(
        padded=find.kernel("frequency_conv.padded", "PAD", source),
        rows=tuple(
            find.kernel(f"frequency_conv.rows{band}", "SLICE", "frequency_conv.padded")
            for band in bands
        ),
        convolutions=tuple(
            find.kernel(
                f"frequency_conv.band{band}", "DEPTHWISE_CONV_2D", f"frequency_conv.rows{band}"
            )
            for band in bands
        ),
        concatenation=find.kernel(
            "frequency_conv", "CONCATENATION", *(f"frequency_conv.band{band}" for band in bands)
        ),
    )


class _Finder:
    """Finds the operators of one block by name and holds their inputs against the plan."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self._operators = {graph.name(operator): operator for operator in graph.operators}

    def has(self, part: str) -> bool:
        return self._full(part) in self._operators

    def first_input(self, part: str) -> str:
        """The name of the first tensor that an operator reads."""
        return self._graph.tensors[self._operator(part).inputs[0]].name

    def kernel(self, part: str, kind: str, *inputs: str) -> Kernel:
        """The prepared operator; it takes ``inputs`` (parts or whole names) in this order.

        A converter may swap the operands of ADD and MUL, so their order in the file is undone.
        """
        operator = self._operator(part)
        varying = [i for i in operator.inputs if i != -1 and self._graph.tensors[i].data is None]
        found = [self._graph.tensors[index].name for index in varying]
        wanted = [self._full(name) if self.has(name) else name for name in inputs]
        kernel = prepare(operator, self._graph)
        if operator.kind == kind and found == wanted:
            return kernel
        if operator.kind == kind and found == wanted[::-1] and kind in ("ADD", "MUL"):
            return lambda first, second: kernel(second, first)
        raise InputError(
            f"{self._full(part)!r} is {operator.kind} of {found}; "
            f"the block needs {kind} of {wanted}"
        )

    def _full(self, part: str) -> str:
        return f"{self._name}.{part}" if part else self._name

    def _operator(self, part: str) -> Operator:
        if not self.has(part):
            raise InputError(f"graph has no operator {self._full(part)!r}; check the block's name")
        return self._operators[self._full(part)]
