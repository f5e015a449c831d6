"""The network as the generated C computes it: operators of the flatbuffer, fused into steps."""

from __future__ import annotations

from dataclasses import dataclass

from firmware_ref.graph import Operator


@dataclass(frozen=True)
class Convolution:
    """CONV_2D from one map to another."""

    operator: Operator


@dataclass(frozen=True)
class Normalization:
    """ResNorm in place: the twelve operators of `firmware_ref.lowering`, by what they compute."""

    row_mean: Operator
    mean: Operator
    square: Operator
    row_power: Operator
    power: Operator
    squared_mean: Operator
    variance: Operator
    rsqrt: Operator
    gain: Operator
    offset: Operator
    scaled: Operator
    difference: Operator

    @property
    def last(self) -> Operator:
        """The operator whose output the step leaves in memory."""
        return self.difference


@dataclass(frozen=True)
class FrequencyConvolution:
    """The 3x1 convolution of a block in place, in bands of rows, and the mean over frequency.

    ``whole`` gives the map: the convolution itself, or the concatenation of its bands. With
    ``difference`` the mean is that of the map less that of the input, ``mean_identity``.
    """

    bands: tuple[Operator, ...]
    whole: Operator
    mean: Operator
    mean_identity: Operator | None
    difference: Operator | None

    @property
    def mean_output(self) -> Operator:
        """The operator that gives the mean as the block goes on with it."""
        return self.difference or self.mean


@dataclass(frozen=True)
class TemporalConvolution:
    """The 1x3 convolution of a block's mean, with SiLU, in place."""

    convolution: Operator
    sigmoid: Operator
    silu: Operator


@dataclass(frozen=True)
class Residual:
    """A block's row added to every row of its map, in place."""

    operator: Operator
    map_first: bool


@dataclass(frozen=True)
class MaxPool:
    """2x2 max-pool in place."""

    operator: Operator


@dataclass(frozen=True)
class MeanPool:
    """The mean over all positions of a map."""

    operator: Operator


Step = (
    Convolution
    | Normalization
    | FrequencyConvolution
    | TemporalConvolution
    | Residual
    | MaxPool
    | MeanPool
)
