"""From the network to the device graph: which TFLite operators compute it, under which names.

The graph is a plan: constants have shapes but no data yet, activations no scales yet. QAT learns
on it, the converter holds the exported graph against it, the budget counts it. A layer's output
tensor has the layer's name; constants are ``<layer>/weight`` and ``<layer>/bias``.

Batch norm is folded into the convolution before it. Maps are (N, F, T, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firmware_ref.arch import Network
from firmware_ref.graph import Graph, Operator, Quantization, Tensor
from firmware_ref.scheme import WEIGHT_MAX

FREQUENCY, TIME, CHANNEL = 1, 2, 3
INPUT_NAME, OUTPUT_NAME = "input", "logits"

Shape = tuple[int, ...]


def lower(network: Network) -> Graph:
    """The device graph of ``network``: INT8 in, INT8 logits (1, classes) out."""
    plan = _Plan()
    x = plan.input((1, network.input_bands, network.input_frames, network.input_channels))
    if network.res_norm and network.first_res_norm == "input":
        x = _res_norm(plan, network, x, "input_norm")
    x = plan.conv("stem.conv", x, network.stem_channels, (5, 5), stride=2, activation="RELU")
    if network.res_norm and network.first_res_norm == "stem":
        x = _res_norm(plan, network, x, "stem.res_norm")
    for number, (width, blocks) in enumerate(zip(network.widths, network.blocks, strict=True), 1):
        for block in range(1, blocks + 1):
            x = _bc_resblock(plan, network, x, width, f"stage{number}.block{block}")
        if number in network.pool_after:
            x = plan.max_pool(f"stage{number}.pool", x)
        if network.res_norm:
            x = _res_norm(plan, network, x, f"stage{number}.res_norm")
    if network.head_channels is not None:
        x = plan.conv("head.conv", x, network.head_channels, (1, 1), activation="RELU")
        x = plan.average_pool("head.pool", x, plan.extent(x))
        x = plan.conv("classifier", x, network.classes, (1, 1))
    else:
        x = plan.conv("classifier", x, network.classes, (1, 1))
        x = plan.average_pool("head.pool", x, plan.extent(x))
    return plan.finish(plan.flatten(OUTPUT_NAME, x))


def _res_norm(plan: _Plan, network: Network, x: int, name: str) -> int:
    """``lambda x + (x - mean) / std`` as ``x (lambda + 1 / std) - mean / std``.

    The statistics are computed on F values: convolutions of constant weights give the means of
    ``x`` and ``x^2``, and ``E[x^2] - mean^2`` is the variance. Two full-size products and one
    full-size difference remain. Epsilon is absent: INT8 cannot hold it
    beside the variance, and RSQRT of a variance that rounds to zero gives the top of its output
    range, which bounds the gain as epsilon would.
    """
    weight = plan.scalar("res_norm.lambda", network.res_norm_lambda)
    mean = _mean_over_time_and_channels(plan, x, f"{name}.mean")  # (1, F, 1, 1)
    square = plan.binary("MUL", f"{name}.square", x, x)
    power = _mean_over_time_and_channels(plan, square, f"{name}.power")
    squared_mean = plan.binary("MUL", f"{name}.squared_mean", mean, mean)
    variance = plan.binary("SUB", f"{name}.variance", power, squared_mean)
    rsqrt = plan.unary("RSQRT", f"{name}.rsqrt", variance)
    gain = plan.binary("ADD", f"{name}.gain", rsqrt, weight)
    offset = plan.binary("MUL", f"{name}.offset", mean, rsqrt)
    scaled = plan.binary("MUL", f"{name}.scaled", x, gain)
    return plan.binary("SUB", name, scaled, offset)


def _mean_over_time_and_channels(plan: _Plan, x: int, name: str) -> int:
    """(1, F, T, C) to (1, F, 1, 1): convolutions of weights 1 / C, then of weights 1 / T."""
    _, _, frames, channels = plan.shape(x)
    weight = plan.given(f"mean_of_{channels}_channels/weight", (1, 1, 1, channels), 1 / channels)
    row = plan.conv(f"{name}_over_channels", x, 1, (1, 1), weight=weight)
    weight = plan.given(f"mean_of_{frames}_frames/weight", (1, 1, frames, 1), 1 / frames)
    return plan.conv(name, row, 1, (1, frames), weight=weight)


def _bc_resblock(plan: _Plan, network: Network, x: int, width: int, name: str) -> int:
    """Broadcasted residual block (Kim et al., Interspeech 2021, figure 2).

    Where the width stays, the identity is one more on the centre tap of the frequency
    convolution: ``y + x``. The mean of ``y`` is then that of the sum less that of ``x``.
    """
    identity = plan.channels(x) == width
    if not identity:
        x = plan.conv(f"{name}.expand", x, width, (1, 1), activation="RELU")
    y = _frequency_path(plan, x, f"{name}.frequency_conv", network.ssn_bands)
    column = (plan.shape(x)[FREQUENCY], 1)
    if identity:
        mean_sum = plan.average_pool(f"{name}.mean_sum", y, column)
        mean_identity = plan.average_pool(f"{name}.mean_identity", x, column)
        z = plan.binary("SUB", f"{name}.mean", mean_sum, mean_identity)
    else:
        z = plan.average_pool(f"{name}.mean", y, column)
    z = plan.depthwise(f"{name}.temporal_conv", z, (1, 3))
    z = plan.binary("MUL", f"{name}.silu", z, plan.unary("LOGISTIC", f"{name}.sigmoid", z))
    z = plan.conv(f"{name}.project", z, width, (1, 1))
    return plan.binary("ADD", f"{name}.sum", y, z, activation="RELU")


def _frequency_path(plan: _Plan, x: int, name: str, bands: int) -> int:
    """The 3x1 depthwise convolution with its SubSpectralNorm folded into weights and bias.

    With more than one sub-band each has weights of its own, over its rows and one more on either
    side: a row of padding, slices, convolutions without padding, and a concatenation.
    """
    if bands == 1:
        return plan.depthwise(name, x, (3, 1))
    padded = plan.pad_frequency(f"{name}.padded", x, 1)
    rows = plan.shape(x)[FREQUENCY] // bands
    parts = [
        plan.depthwise(
            f"{name}.band{band + 1}",
            plan.slice_frequency(f"{name}.rows{band + 1}", padded, band * rows, rows + 2),
            (3, 1),
            padding="VALID",
        )
        for band in range(bands)
    ]
    return plan.concatenate_frequency(name, parts)


@dataclass
class _Plan:
    """Grows the graph operator by operator; methods return the index of the new tensor."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def shape(self, index: int) -> Shape:
        return self.tensors[index].shape

    def extent(self, index: int) -> tuple[int, int]:
        """Bands and frames of a map."""
        _, bands, frames, _ = self.tensors[index].shape
        return bands, frames

    def channels(self, index: int) -> int:
        return self.tensors[index].shape[CHANNEL]

    def input(self, shape: Shape) -> int:
        return self._tensor(Tensor(INPUT_NAME, shape, "int8"))

    def constant(self, name: str, shape: Shape, dtype: str = "int8") -> int:
        return self._tensor(Tensor(name, shape, dtype))

    def given(self, name: str, shape: Shape, value: float) -> int:
        """A constant known before training, shared by its users: 127 steps of value / 127."""
        for index, tensor in enumerate(self.tensors):
            if tensor.name == name:
                return index
        quantization = Quantization((float(np.float32(value / WEIGHT_MAX)),), (0,))
        data = np.full(shape, WEIGHT_MAX, np.int8)
        return self._tensor(Tensor(name, shape, "int8", quantization, data))

    def scalar(self, name: str, value: float) -> int:
        """A given constant for an element-wise operator."""
        return self.given(name, (1, 1, 1, 1), value)

    def integers(self, name: str, values: Sequence[int] | Sequence[Sequence[int]]) -> int:
        """Axes, a shape, paddings: int32 without a scale, shared by users of the same values."""
        data = np.array(values, np.int32)
        for index, tensor in enumerate(self.tensors):
            found = tensor.data if tensor.dtype == "int32" else None
            if found is not None and np.array_equal(found, data):
                return index
        return self._tensor(Tensor(name, data.shape, "int32", None, data))

    def conv(
        self,
        name: str,
        x: int,
        channels: int,
        kernel: tuple[int, int],
        stride: int = 1,
        activation: str = "NONE",
        weight: int | None = None,
    ) -> int:
        """A trained convolution with SAME padding; or, without padding or bias, a given weight."""
        if weight is None:
            weight = self.constant(f"{name}/weight", (channels, *kernel, self.channels(x)))
            bias = self.constant(f"{name}/bias", (channels,), "int32")
            padding = "SAME"
        else:
            # tflite-runtime runs no convolution without a bias.
            bias = self.integers(f"zeros_{channels}/bias", [0] * channels)
            padding = "VALID"
        options = {**_conv_options(stride, activation), "padding": padding}
        out = (1, *self._extent(x, kernel, stride, padding), channels)
        return self._operator("CONV_2D", name, (x, weight, bias), out, options)

    def _extent(
        self, x: int, kernel: tuple[int, int], stride: int, padding: str
    ) -> tuple[int, ...]:
        """Bands and frames of a convolution's output."""
        lost = kernel if padding == "VALID" else (1, 1)
        sizes = zip(self.extent(x), lost, strict=True)
        return tuple(-(-(size - taps + 1) // stride) for size, taps in sizes)

    def depthwise(self, name: str, x: int, kernel: tuple[int, int], padding: str = "SAME") -> int:
        weight = self.constant(f"{name}/weight", (1, *kernel, self.channels(x)))
        bias = self.constant(f"{name}/bias", (self.channels(x),), "int32")
        options = {**_conv_options(1, "NONE"), "depth_multiplier": 1, "padding": padding}
        out = (1, *self._extent(x, kernel, 1, padding), self.channels(x))
        return self._operator("DEPTHWISE_CONV_2D", name, (x, weight, bias), out, options)

    def average_pool(self, name: str, x: int, window: tuple[int, int]) -> int:
        return self._pool("AVERAGE_POOL_2D", name, x, window)

    def pad_frequency(self, name: str, x: int, rows: int) -> int:
        _, bands, frames, channels = self.shape(x)
        table = self.integers(f"{name}/paddings", [[0, 0], [rows, rows], [0, 0], [0, 0]])
        out = (1, bands + 2 * rows, frames, channels)
        return self._operator("PAD", name, (x, table), out, {})

    def slice_frequency(self, name: str, x: int, first: int, rows: int) -> int:
        _, _, frames, channels = self.shape(x)
        out = (1, rows, frames, channels)
        begin = self.integers(f"{name}/begin", (0, first, 0, 0))
        size = self.integers(f"{name}/size", out)
        return self._operator("SLICE", name, (x, begin, size), out, {})

    def concatenate_frequency(self, name: str, parts: Sequence[int]) -> int:
        shapes = [self.shape(part) for part in parts]
        out = (1, sum(shape[FREQUENCY] for shape in shapes), *shapes[0][2:])
        options = {"axis": FREQUENCY, "fused_activation": "NONE"}
        return self._operator("CONCATENATION", name, tuple(parts), out, options)

    def binary(self, kind: str, name: str, a: int, b: int, activation: str = "NONE") -> int:
        out = tuple(np.broadcast_shapes(self.shape(a), self.shape(b)))
        return self._operator(kind, name, (a, b), out, {"fused_activation": activation})

    def unary(self, kind: str, name: str, x: int) -> int:
        return self._operator(kind, name, (x,), self.shape(x), {})

    def max_pool(self, name: str, x: int) -> int:
        return self._pool("MAX_POOL_2D", name, x, (2, 2))

    def _pool(self, kind: str, name: str, x: int, window: tuple[int, int]) -> int:
        """Windows side by side; a rest at the end is left out."""
        _, bands, frames, channels = self.shape(x)
        options = {
            "padding": "VALID",
            "stride_h": window[0],
            "stride_w": window[1],
            "filter_height": window[0],
            "filter_width": window[1],
            "fused_activation": "NONE",
        }
        out = (1, bands // window[0], frames // window[1], channels)
        return self._operator(kind, name, (x,), out, options)

    def flatten(self, name: str, x: int) -> int:
        out = (1, self.channels(x))
        shape = self.integers(f"{name}/shape", out)
        return self._operator("RESHAPE", name, (x, shape), out, {"new_shape": out})

    def finish(self, output: int) -> Graph:
        return Graph(tuple(self.tensors), tuple(self.operators), (0,), (output,))

    def _tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _operator(
        self, kind: str, name: str, inputs: Shape, shape: Shape, options: dict[str, Any]
    ) -> int:
        output = self._tensor(Tensor(name, shape, "int8"))
        self.operators.append(Operator(kind, inputs, (output,), options))
        return output


def _conv_options(stride: int, activation: str) -> dict[str, Any]:
    return {
        "stride_h": stride,
        "stride_w": stride,
        "dilation_h_factor": 1,
        "dilation_w_factor": 1,
        "fused_activation": activation,
    }
