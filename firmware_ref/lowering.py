"""From the network to the device graph: which TFLite operators compute it, under which names.

The graph is a plan: constants have shapes but no data yet, activations no scales yet. QAT learns
on it, the converter holds the exported graph against it, the budget counts it. A layer's output
tensor has the layer's name; constants are ``<layer>/weight`` and ``<layer>/bias``.

Batch norm is folded into the convolution before it. Maps are (N, F, T, C).
"""

from __future__ import annotations

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
        x = plan.mean("head.pool", x, (FREQUENCY, TIME))
        x = plan.conv("classifier", x, network.classes, (1, 1))
    else:
        x = plan.conv("classifier", x, network.classes, (1, 1))
        x = plan.mean("head.pool", x, (FREQUENCY, TIME))
    return plan.finish(plan.flatten(OUTPUT_NAME, x))


def _res_norm(plan: _Plan, network: Network, x: int, name: str) -> int:
    """``lambda x + (x - mean) / std`` as ``(x - mean) (lambda + 1 / std) + lambda mean``.

    Two full-size products and sums fewer than the equation as written. Epsilon is absent: INT8
    cannot hold it beside the variance, and RSQRT of a variance that rounds to zero gives the
    top of its output range, which bounds the gain as epsilon would.
    """
    weight = plan.scalar("res_norm.lambda", network.res_norm_lambda)
    mean = plan.mean(f"{name}.mean", x, (TIME, CHANNEL))  # (1, F, 1, 1)
    centered = plan.binary("SUB", f"{name}.centered", x, mean)
    square = plan.binary("MUL", f"{name}.square", centered, centered)
    variance = plan.mean(f"{name}.variance", square, (TIME, CHANNEL))
    rsqrt = plan.unary("RSQRT", f"{name}.rsqrt", variance)
    gain = plan.binary("ADD", f"{name}.gain", rsqrt, weight)
    scaled = plan.binary("MUL", f"{name}.scaled", centered, gain)
    offset = plan.binary("MUL", f"{name}.offset", mean, weight)
    return plan.binary("ADD", name, scaled, offset)


def _bc_resblock(plan: _Plan, network: Network, x: int, width: int, name: str) -> int:
    """Broadcasted residual block (Kim et al., Interspeech 2021, figure 2)."""
    identity = plan.channels(x) == width
    if not identity:
        x = plan.conv(f"{name}.expand", x, width, (1, 1), activation="RELU")
    y = plan.depthwise(f"{name}.frequency_conv", x, (3, 1))
    if network.ssn_bands > 1:
        bands = plan.shape(y)[FREQUENCY]
        scale = plan.constant(f"{name}.ssn_scale/weight", (1, bands, 1, width))
        y = plan.binary("MUL", f"{name}.ssn_scale", y, scale)
        offset = plan.constant(f"{name}.sub_spectral_norm/bias", (1, bands, 1, width))
        y = plan.binary("ADD", f"{name}.sub_spectral_norm", y, offset)
    z = plan.mean(f"{name}.mean", y, (FREQUENCY,))
    z = plan.depthwise(f"{name}.temporal_conv", z, (1, 3))
    z = plan.binary("MUL", f"{name}.silu", z, plan.unary("LOGISTIC", f"{name}.sigmoid", z))
    z = plan.conv(f"{name}.project", z, width, (1, 1))
    if not identity:
        return plan.binary("ADD", f"{name}.sum", y, z, activation="RELU")
    y = plan.binary("ADD", f"{name}.broadcast_sum", y, z)
    return plan.binary("ADD", f"{name}.sum", y, x, activation="RELU")


@dataclass
class _Plan:
    """Grows the graph operator by operator; methods return the index of the new tensor."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def shape(self, index: int) -> Shape:
        return self.tensors[index].shape

    def channels(self, index: int) -> int:
        return self.tensors[index].shape[CHANNEL]

    def input(self, shape: Shape) -> int:
        return self._tensor(Tensor(INPUT_NAME, shape, "int8"))

    def constant(self, name: str, shape: Shape, dtype: str = "int8") -> int:
        return self._tensor(Tensor(name, shape, dtype))

    def scalar(self, name: str, value: float) -> int:
        """A constant known before training, shared by its users: 127 steps of value / 127."""
        for index, tensor in enumerate(self.tensors):
            if tensor.name == name:
                return index
        quantization = Quantization((float(np.float32(value / WEIGHT_MAX)),), (0,))
        data = np.full((1, 1, 1, 1), WEIGHT_MAX, np.int8)
        return self._tensor(Tensor(name, (1, 1, 1, 1), "int8", quantization, data))

    def conv(
        self,
        name: str,
        x: int,
        channels: int,
        kernel: tuple[int, int],
        stride: int = 1,
        activation: str = "NONE",
    ) -> int:
        weight = self.constant(f"{name}/weight", (channels, *kernel, self.channels(x)))
        bias = self.constant(f"{name}/bias", (channels,), "int32")
        _, bands, frames, _ = self.shape(x)
        out = (1, -(-bands // stride), -(-frames // stride), channels)
        options = _conv_options(stride, activation)
        return self._operator("CONV_2D", name, (x, weight, bias), out, options)

    def depthwise(self, name: str, x: int, kernel: tuple[int, int]) -> int:
        weight = self.constant(f"{name}/weight", (1, *kernel, self.channels(x)))
        bias = self.constant(f"{name}/bias", (self.channels(x),), "int32")
        options = {**_conv_options(1, "NONE"), "depth_multiplier": 1}
        return self._operator("DEPTHWISE_CONV_2D", name, (x, weight, bias), self.shape(x), options)

    def mean(self, name: str, x: int, axes: tuple[int, ...]) -> int:
        data = np.array(axes, np.int32)
        table = self._tensor(Tensor(f"{name}/axes", data.shape, "int32", None, data))
        out = tuple(1 if axis in axes else size for axis, size in enumerate(self.shape(x)))
        return self._operator("MEAN", name, (x, table), out, {"keep_dims": True})

    def binary(self, kind: str, name: str, a: int, b: int, activation: str = "NONE") -> int:
        out = tuple(np.broadcast_shapes(self.shape(a), self.shape(b)))
        return self._operator(kind, name, (a, b), out, {"fused_activation": activation})

    def unary(self, kind: str, name: str, x: int) -> int:
        return self._operator(kind, name, (x,), self.shape(x), {})

    def max_pool(self, name: str, x: int) -> int:
        _, bands, frames, channels = self.shape(x)
        options = {
            "padding": "VALID",
            "stride_h": 2,
            "stride_w": 2,
            "filter_height": 2,
            "filter_width": 2,
            "fused_activation": "NONE",
        }
        out = (1, bands // 2, frames // 2, channels)
        return self._operator("MAX_POOL_2D", name, (x,), out, options)

    def flatten(self, name: str, x: int) -> int:
        out = (1, self.channels(x))
        data = np.array(out, np.int32)
        shape = self._tensor(Tensor(f"{name}/shape", data.shape, "int32", None, data))
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
        "padding": "SAME",
        "stride_h": stride,
        "stride_w": stride,
        "dilation_h_factor": 1,
        "dilation_w_factor": 1,
        "fused_activation": activation,
    }
