"""Quantisation-aware training on the device graph: its operators, its scales, its rounding.

Every activation of the graph is rounded to the INT8 grid it will have on the device, every
weight to its per-channel grid; gradients pass straight through (Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref import scheme
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization
from train.model import same_padding

# NHWC axes of the graph in torch's NCHW order.
TORCH_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}
SAMPLES_PER_BATCH = 8192


class DeviceNetwork(nn.Module):
    """The device graph in torch: float, or with every tensor on its INT8 grid.

    ``constants`` are the float weights by graph name, in the graph's layout
    (`train.fold.fold`). Until `calibrate` or
    `set_quantization` gives every activation a grid, it computes in float.
    """

    def __init__(self, graph: Graph, constants: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.graph = graph
        self.constants = nn.ParameterDict(
            {_key(n): nn.Parameter(torch.from_numpy(v.copy())) for n, v in constants.items()}
        )
        # Constants that no training changes, as torch operands.
        self.given = {
            index: torch.from_numpy(scheme.dequantize(t.data, t.quantization)).permute(0, 3, 1, 2)
            for index, t in enumerate(graph.tensors)
            if t.data is not None and t.quantization is not None
        }
        self.quantization: dict[str, Quantization] = {}

    @property
    def activations(self) -> list[str]:
        """Names of the tensors that are computed, the input first."""
        outputs = [self.graph.name(operator) for operator in self.graph.operators]
        return [self.graph.tensors[self.graph.inputs[0]].name, *outputs]

    def set_quantization(self, quantization: Mapping[str, Quantization]) -> None:
        """Fix the grid of every activation."""
        assert set(quantization) == set(self.activations)
        self.quantization = dict(quantization)

    def float_constants(self) -> dict[str, np.ndarray]:
        """The weights as trained, by graph name."""
        return {_name(k): v.detach().contiguous().numpy() for k, v in self.constants.items()}

    def forward(self, x: Tensor, watch: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """(B, C, F, T) network input to (B, classes) logits; ``watch`` sees every activation."""
        names = [t.name for t in self.graph.tensors]
        values: dict[int, Tensor] = {self.graph.inputs[0]: self._on_grid(names[0], x)}
        if watch is not None:
            watch(names[0], values[self.graph.inputs[0]])
        last_use = {i: n for n, op in enumerate(self.graph.operators) for i in op.inputs}
        for number, operator in enumerate(self.graph.operators):
            output = operator.outputs[0]
            y = OPERATORS[operator.kind](self, operator, values)
            if operator.options.get("fused_activation") == "RELU":
                y = functional.relu(y)
            values[output] = self._on_grid(names[output], y)
            if watch is not None:
                watch(names[output], values[output])
            for index in operator.inputs:
                if last_use[index] == number:
                    values.pop(index, None)
        return values[self.graph.outputs[0]]

    def value(self, index: int, values: Mapping[int, Tensor]) -> Tensor:
        """An operand: an activation, a trained constant on its grid, or a given one."""
        if index in values:
            return values[index]
        if index in self.given:
            return self.given[index]
        constant = self.constants[_key(self.graph.tensors[index].name)]
        if self.quantization:
            scale = scheme.constant_scale(constant.detach().numpy())
            constant = _straight_through(constant, torch.from_numpy(scale))
        return constant.permute(0, 3, 1, 2)

    def weight_and_bias(self, operator: Operator) -> tuple[Tensor, Tensor]:
        """Weights in torch's order (O, I, height, width), on their grid, and the bias."""
        x, w, b = (self.graph.tensors[i].name for i in operator.inputs)
        weight, bias = self.constants[_key(w)], self.constants[_key(b)]
        axis = scheme.WEIGHT_AXIS[operator.kind]
        if self.quantization:
            scale = scheme.weight_scale(
                weight.detach().numpy(),
                bias.detach().numpy(),
                self.quantization[x].scale[0],
                axis,
            )
            shape = [1] * weight.ndim
            shape[axis] = len(scale)
            weight = _straight_through(weight, torch.from_numpy(scale).view(shape))
            steps = scheme.bias_scale(self.quantization[x].scale[0], scale)
            bias = _straight_through(bias, torch.from_numpy(steps), scheme.BIAS_LIMIT)
        return weight.permute(axis, 3 - axis, 1, 2), bias

    def _on_grid(self, name: str, x: Tensor) -> Tensor:
        if not self.quantization:
            return x
        q = self.quantization[name]
        return torch.fake_quantize_per_tensor_affine(
            x, q.scale[0], q.zero_point[0], scheme.INT8_MIN, scheme.INT8_MAX
        )


def _key(name: str) -> str:
    """A graph name as a torch parameter name, which may hold no dot."""
    return name.replace(".", ":")


def _name(key: str) -> str:
    return key.replace(":", ".")


def _straight_through(w: Tensor, scale: Tensor, limit: int = scheme.WEIGHT_MAX) -> Tensor:
    """``scale * round(w / scale)`` within ``limit`` steps; the gradient is that of w."""
    rounded = (w.detach() / scale).round().clamp(-limit, limit) * scale
    return w + (rounded - w.detach())


def _conv(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    x = values[operator.inputs[0]]
    weight, bias = network.weight_and_bias(operator)
    stride = operator.options["stride_h"], operator.options["stride_w"]
    _, bands, frames, channels = network.graph.tensors[operator.inputs[0]].shape
    _, height, width, _ = network.graph.tensors[operator.inputs[1]].shape
    rows = same_padding(bands, height, stride[0])
    columns = same_padding(frames, width, stride[1])
    groups = channels if operator.kind == "DEPTHWISE_CONV_2D" else 1
    if rows[0] == rows[1] and columns[0] == columns[1]:
        padding = rows[0], columns[0]
        return functional.conv2d(x, weight, bias, stride, padding, groups=groups)
    return functional.conv2d(
        functional.pad(x, (*columns, *rows)), weight, bias, stride, groups=groups
    )


def _binary(f: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    def kernel(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
        a, b = (network.value(index, values) for index in operator.inputs)
        return f(a, b)

    return kernel


def _mean(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    axes = network.graph.tensors[operator.inputs[1]].data
    assert axes is not None
    return values[operator.inputs[0]].mean([TORCH_AXIS[int(a)] for a in axes], keepdim=True)


def _rsqrt(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    """On the grid, zero gives the top of the output range, as the integer kernel does."""
    x = values[operator.inputs[0]]
    if not network.quantization:
        return torch.rsqrt(x)
    output = network.quantization[network.graph.name(operator)]
    top = output.scale[0] * (scheme.INT8_MAX - output.zero_point[0])
    smallest = network.quantization[network.graph.tensors[operator.inputs[0]].name].scale[0] / 2
    return torch.where(x < smallest, top, torch.rsqrt(x.clamp_min(smallest)))


def _max_pool(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    return functional.max_pool2d(
        values[operator.inputs[0]],
        (operator.options["filter_height"], operator.options["filter_width"]),
        (operator.options["stride_h"], operator.options["stride_w"]),
    )


Kernel = Callable[[DeviceNetwork, Operator, Mapping[int, Tensor]], Tensor]

OPERATORS: Mapping[str, Kernel] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "ADD": _binary(torch.add),
    "SUB": _binary(torch.sub),
    "MUL": _binary(torch.mul),
    "MEAN": _mean,
    "RSQRT": _rsqrt,
    "LOGISTIC": lambda n, op, values: torch.sigmoid(values[op.inputs[0]]),
    "MAX_POOL_2D": _max_pool,
    "RESHAPE": lambda n, op, values: values[op.inputs[0]].flatten(1),
}


def calibrate(network: DeviceNetwork, batches: Iterable[Tensor], seed: int) -> None:
    """Give every activation its grid: the range of least squared rounding error on ``batches``.

    Batches are (B, C, F, T) training input without augmentation. Where the rules tie a tensor to
    its input (pooling, reshaping) or fix it (LOGISTIC), the rule wins.
    """
    generator = torch.Generator().manual_seed(seed)
    samples: dict[str, list[np.ndarray]] = {}

    def watch(name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        if len(flat) > SAMPLES_PER_BATCH:
            flat = flat[torch.randint(len(flat), (SAMPLES_PER_BATCH,), generator=generator)]
        samples.setdefault(name, []).append(flat.numpy().copy())

    network.quantization = {}
    network.eval()
    with torch.no_grad():
        for batch in batches:
            network(batch, watch)
    ranges: dict[str, Quantization] = {}
    for name, parts in samples.items():
        sample = np.concatenate(parts)
        if not np.isfinite(sample).any():
            raise InputError(f"calibration: {name} is finite in no example; train for longer")
        ranges[name] = least_error(sample)
    network.set_quantization(under_rules(network.graph, ranges))


def under_rules(graph: Graph, ranges: Mapping[str, Quantization]) -> dict[str, Quantization]:
    """``ranges`` with the ones that the INT8 rules tie to another, or fix, as they must be."""
    ruled = dict(ranges)
    for operator in graph.operators:
        name = graph.name(operator)
        if operator.kind in scheme.SAME_SCALE:
            ruled[name] = ruled[graph.tensors[operator.inputs[0]].name]
        elif operator.kind == "LOGISTIC":
            ruled[name] = scheme.LOGISTIC_OUTPUT
    return ruled


def least_error(x: np.ndarray, candidates: int = 40) -> Quantization:
    """The quantisation of least mean squared error among shrunken ranges of ``x``."""
    x = x[np.isfinite(x)]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    best, best_error = scheme.activation_quantization(low, high), np.inf
    for shrink in np.linspace(1.0, 0.2, candidates):
        q = scheme.activation_quantization(low * shrink, high * shrink)
        error = float(np.square(scheme.dequantize(scheme.quantize(x, q), q) - x).mean())
        if error < best_error:
            best, best_error = q, error
    return best
