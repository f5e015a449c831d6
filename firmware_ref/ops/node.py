"""One operator while it is prepared: its tensors, checked as they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.fixedpoint import quantize_multiplier, quantize_multipliers
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.scheme import INT8_MAX, INT8_MIN

# Keeps every int32 sum over a tensor (255 an element) below 2**31.
MAX_ACTIVATION_ELEMENTS = 1 << 22
# Beyond it the kernels' broadcasts and means differ from each other, or abort.
MAX_ACTIVATION_RANK = 4

Kernel = Callable[..., np.ndarray]
"""A prepared operator: its activations, int8 (N, ...), in; its output, int8 (N, ...), out.

One that takes more elements an example than its activations have says so in ``working``.
"""


@dataclass(frozen=True)
class Affine:
    """Per-tensor quantisation of an int8 tensor, ``real = scale * (q - zero_point)``."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Node:
    """An operator with its graph. Each method returns checked data or raises `InputError`."""

    operator: Operator
    graph: Graph

    def error(self, text: str) -> InputError:
        """An error that names the operator and its layer."""
        return InputError(f"{self.operator.kind} {self.graph.name(self.operator)!r}: {text}")

    def check_inputs(self, fewest: int, most: int | None = None) -> None:
        """Refuse another number of inputs, or more than one output."""
        most = fewest if most is None else most
        inputs, outputs = len(self.operator.inputs), len(self.operator.outputs)
        if not fewest <= inputs <= most or outputs != 1:
            raise self.error(
                f"inputs={inputs} and outputs={outputs}; allowed are {fewest} to {most} inputs "
                "and 1 output"
            )

    def input(self, position: int) -> Tensor | None:
        """An input; None where it is left out."""
        indices = self.operator.inputs
        if position >= len(indices) or indices[position] == -1:
            return None
        return self.graph.tensors[indices[position]]

    def tensor(self, position: int) -> Tensor:
        """An input that must be there."""
        tensor = self.input(position)
        if tensor is None:
            raise self.error(f"input {position} is left out; it is needed")
        return tensor

    @property
    def output(self) -> Tensor:
        """The one output."""
        return self.graph.tensors[self.operator.outputs[0]]

    def affine(self, tensor: Tensor) -> Affine:
        """Quantisation of an int8 tensor with one scale; an activation is (1, ...)."""
        if tensor.dtype != "int8" or tensor.quantization is None:
            raise self.error(
                f"tensor {tensor.name!r} of dtype={tensor.dtype} is not quantised to int8; "
                "convert the model to full INT8"
            )
        if len(tensor.quantization.scale) != 1:
            raise self.error(f"tensor {tensor.name!r} has a scale a channel; one is allowed")
        if tensor.data is None:
            if not tensor.shape or tensor.shape[0] != 1:
                raise self.error(
                    f"tensor {tensor.name!r} has shape={tensor.shape}; the batch must be 1"
                )
            if len(tensor.shape) > MAX_ACTIVATION_RANK:
                raise self.error(
                    f"tensor {tensor.name!r} has shape={tensor.shape}; at most "
                    f"{MAX_ACTIVATION_RANK} sizes can be run; reshape it before"
                )
            if int(np.prod(tensor.shape)) > MAX_ACTIVATION_ELEMENTS:
                raise self.error(
                    f"tensor {tensor.name!r} has shape={tensor.shape}; at most "
                    f"{MAX_ACTIVATION_ELEMENTS:,} elements can be run"
                )
        return Affine(tensor.quantization.scale[0], tensor.quantization.zero_point[0])

    def activation(self, position: int) -> tuple[Tensor, Affine]:
        """An input that is computed or fed, not constant."""
        tensor = self.tensor(position)
        if tensor.data is not None:
            raise self.error(f"input {position} {tensor.name!r} is a constant; it must vary")
        return tensor, self.affine(tensor)

    def constant(self, position: int) -> np.ndarray:
        """A constant input."""
        tensor = self.tensor(position)
        if tensor.data is None:
            raise self.error(f"input {position} {tensor.name!r} varies; it must be a constant")
        return tensor.data

    def integers(self, position: int, *ranks: int) -> tuple[int, ...]:
        """A constant int32 input (axes, a permutation, a shape, paddings), flattened.

        It must have one of ``ranks``, 1 where none is named.
        """
        data = self.constant(position)
        ranks = ranks or (1,)
        if data.dtype != np.int32 or data.size > 64 or data.ndim not in ranks:
            allowed = " or ".join(map(str, ranks))
            raise self.error(
                f"input {position} has dtype={data.dtype} and shape={data.shape}; allowed are at "
                f"most 64 elements of int32 of rank {allowed}"
            )
        return tuple(int(value) for value in data.ravel())

    def option(self, name: str) -> Any:
        """A builtin option."""
        return self.operator.options[name]

    def positive(self, name: str) -> int:
        """An integer option of at least 1."""
        value = int(self.option(name))
        if not 1 <= value <= 1 << 16:
            raise self.error(f"{name}={value}; allowed are 1 to {1 << 16}")
        return value

    def clamp(self) -> tuple[int, int]:
        """Smallest and largest int8 output under the fused activation.

        TFLite CalculateActivationRangeQuantized: 0, 6, -1 and 1 are divided by the output's scale
        in float32 and rounded half away from zero.
        """
        activation = self.option("fused_activation")
        limits: dict[str, tuple[float | None, float | None]] = {
            "NONE": (None, None),
            "RELU": (0.0, None),
            "RELU6": (0.0, 6.0),
            "RELU_N1_TO_1": (-1.0, 1.0),
        }
        if activation not in limits:
            raise self.error(f"fused activation={activation}; allowed: {', '.join(limits)}")
        low, high = limits[activation]
        out = self.affine(self.output)
        return (
            INT8_MIN if low is None else max(INT8_MIN, self._quantize(low, out)),
            INT8_MAX if high is None else min(INT8_MAX, self._quantize(high, out)),
        )

    def _quantize(self, real: float, affine: Affine) -> int:
        steps = float(np.float32(real) / np.float32(affine.scale))
        if not abs(steps) < 2**31:
            raise self.error(f"output scale={affine.scale} is too small for its activation")
        return affine.zero_point + int(np.trunc(steps + np.copysign(0.5, steps)))

    def multiplier(self, real: float) -> tuple[int, int]:
        """`quantize_multiplier`, refused from 2**30 on, where C's ``1 << shift`` is undefined."""
        if not real < 2.0**30:
            raise self.error(f"scales give a multiplier of {real:.3g}; allowed is less than 2^30")
        return quantize_multiplier(real)

    def multiplier_below_one(self, real: float) -> tuple[int, int]:
        """`quantize_multiplier`, refused from 1 on: QuantizeMultiplierSmallerThanOneExp aborts."""
        significand, shift = quantize_multiplier(real)
        if real >= 1 or shift > 0:
            raise self.error(
                f"scales give a multiplier of {real:.6g}; the kernels allow less than 1; give the "
                "output a larger scale"
            )
        return significand, shift

    def multipliers(self, reals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`multiplier` of each: int64 arrays of significands and shifts, one entry a channel."""
        self.multiplier(float(reals.max()))
        return quantize_multipliers(reals)

    def share(self, total: int) -> int:
        """This operator's part of a cost that a graph's operators share evenly.

        A file of a few megabytes can hold thousands of operators: what one may cost depends on it.
        """
        return total // len(self.graph.operators)

    def check_output_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse an output whose shape in the file is not the one its inputs give."""
        if self.output.shape != shape:
            raise self.error(
                f"output has shape={self.output.shape} in the file; its inputs give {shape}"
            )

    def check_same_quantization(self, source: Affine) -> None:
        """Refuse an output on another scale than the values that are passed on to it."""
        out = self.affine(self.output)
        if out != source:
            raise self.error(
                f"output has scale={out.scale} and zero_point={out.zero_point}, input "
                f"{source.scale} and {source.zero_point}; this operator needs them equal"
            )
