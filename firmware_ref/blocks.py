"""The two blocks of the network in device arithmetic, each readable in one place.

`res_norm` and `bc_resblock` take and give int8 maps (N, F, T, C) and equal, bit for bit, the
flatbuffer's operators of the same names: a block holds those operators prepared, that is, their
integer constants, multipliers and zero points. Anyone who writes the blocks by hand (in C, say)
can hold each step against these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator
from firmware_ref.ops import prepare
from firmware_ref.ops.node import Kernel


@dataclass(frozen=True, eq=False)
class ResNorm:
    """The prepared operators of a residual normalisation, by the last part of their names."""

    mean: Kernel
    centered: Kernel
    square: Kernel
    variance: Kernel
    rsqrt: Kernel
    gain: Kernel
    scaled: Kernel
    offset: Kernel
    sum: Kernel


def res_norm(x: np.ndarray, norm: ResNorm) -> np.ndarray:
    """Residual normalisation over time and channels, for each frequency.

    ``lambda x + (x - mean) / std``, computed as ``(x - mean) (lambda + 1 / std) + lambda mean``.
    Cao et al., DCASE 2022, equations 1 to 4 (after Kim et al., DCASE 2021).
    Epsilon is below the resolution of int8.
    """
    mean = norm.mean(x)  # (N, F, 1, 1)
    centered = norm.centered(x, mean)  # (N, F, T, C)
    variance = norm.variance(norm.square(centered, centered))  # (N, F, 1, 1)
    gain = norm.gain(norm.rsqrt(variance))  # lambda + 1 / std
    return norm.sum(norm.scaled(centered, gain), norm.offset(mean))


@dataclass(frozen=True, eq=False)
class BCResBlock:
    """The prepared operators of a BC-ResBlock, by the last part of their names.

    ``expand`` is there where the width changes, ``broadcast_sum`` where it does not; ``ssn_scale``
    and ``sub_spectral_norm`` where the frequency bands have norms of their own.
    """

    expand: Kernel | None
    frequency_conv: Kernel
    ssn_scale: Kernel | None
    sub_spectral_norm: Kernel | None
    mean: Kernel
    temporal_conv: Kernel
    sigmoid: Kernel
    silu: Kernel
    project: Kernel
    broadcast_sum: Kernel | None
    sum: Kernel


def bc_resblock(x: np.ndarray, block: BCResBlock) -> np.ndarray:
    """Broadcasted residual block: a map ``y`` along frequency, a row ``z`` along time, their sum.

    Kim et al., "Broadcasted residual learning", Interspeech 2021, figure 2.
    """
    if block.expand:
        x = block.expand(x)  # (N, F, T, C)
    y = block.frequency_conv(x)
    if block.ssn_scale and block.sub_spectral_norm:
        y = block.sub_spectral_norm(block.ssn_scale(y))
    z = block.temporal_conv(block.mean(y))  # (N, 1, T, C)
    z = block.project(block.silu(z, block.sigmoid(z)))
    if block.broadcast_sum:
        return block.sum(block.broadcast_sum(y, z), x)
    return block.sum(y, z)


def res_norm_of(graph: Graph, name: str) -> tuple[str, ResNorm]:
    """The normalisation called ``name`` in a graph, and the name of the tensor it reads."""
    find = _Finder(graph, name)
    x = find.first_input("mean")
    return x, ResNorm(
        mean=find.kernel("mean", "MEAN", x),
        centered=find.kernel("centered", "SUB", x, "mean"),
        square=find.kernel("square", "MUL", "centered", "centered"),
        variance=find.kernel("variance", "MEAN", "square"),
        rsqrt=find.kernel("rsqrt", "RSQRT", "variance"),
        gain=find.kernel("gain", "ADD", "rsqrt"),
        scaled=find.kernel("scaled", "MUL", "centered", "gain"),
        offset=find.kernel("offset", "MUL", "mean"),
        sum=find.kernel("", "ADD", "scaled", "offset"),
    )


def bc_resblock_of(graph: Graph, name: str) -> tuple[str, BCResBlock]:
    """The block called ``name`` in a graph, and the name of the tensor it reads."""
    find = _Finder(graph, name)
    expands, banded = find.has("expand"), find.has("ssn_scale")
    x = find.first_input("expand" if expands else "frequency_conv")
    wide = "expand" if expands else x
    y = "sub_spectral_norm" if banded else "frequency_conv"
    return x, BCResBlock(
        expand=find.kernel("expand", "CONV_2D", x) if expands else None,
        frequency_conv=find.kernel("frequency_conv", "DEPTHWISE_CONV_2D", wide),
        ssn_scale=find.kernel("ssn_scale", "MUL", "frequency_conv") if banded else None,
        sub_spectral_norm=(
            find.kernel("sub_spectral_norm", "ADD", "ssn_scale") if banded else None
        ),
        mean=find.kernel("mean", "MEAN", y),
        temporal_conv=find.kernel("temporal_conv", "DEPTHWISE_CONV_2D", "mean"),
        sigmoid=find.kernel("sigmoid", "LOGISTIC", "temporal_conv"),
        silu=find.kernel("silu", "MUL", "temporal_conv", "sigmoid"),
        project=find.kernel("project", "CONV_2D", "silu"),
        broadcast_sum=None if expands else find.kernel("broadcast_sum", "ADD", y, "project"),
        sum=(
            find.kernel("sum", "ADD", y, "project")
            if expands
            else find.kernel("sum", "ADD", "broadcast_sum", x)
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
