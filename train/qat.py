"""Quantisation-aware training on the device graph: its operators, its scales, its rounding.

Every activation of the graph is rounded to the INT8 grid it will have on the device, every
weight to its per-channel grid; gradients pass straight through (Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018), and the
ranges of activations learn with the weights (Esser et al., "Learned step size quantization",
ICLR 2020). `train.ranges` finds the grids to begin with, `train.rounding` rounds as the kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref import scheme
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization
from train import rounding
from train.model import same_padding

# NHWC axes of the graph in torch's NCHW order.
TORCH_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}
# A silent band's variance is a difference of equal numbers, and may round below zero in float.
SMALLEST_VARIANCE = 1e-5
# A learned scale outside has run away; inside, every product of scales is a finite float32.
LEARNED_SCALES = (1e-12, 1e12)
INFINITY = np.float32(np.inf)
# _inside(y, x, low, high): y where low < x < high, else 0; one pass, where a mask takes four.
_inside = torch.ops.aten.hardtanh_backward


class DeviceNetwork(nn.Module):
    """The device graph in torch: float, or with every tensor on its INT8 grid.

    ``constants`` are the float weights by graph name, in the graph's layout (`train.fold.fold`).
    Until `set_quantization` gives every activation a grid, it computes in float.
    """

    def __init__(self, graph: Graph, constants: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.graph = graph
        self.constants = nn.ParameterDict(
            {_key(n): nn.Parameter(torch.from_numpy(v.copy())) for n, v in constants.items()}
        )
        # Constants that no training changes.
        self.given = {
            t.name: torch.from_numpy(scheme.dequantize(t.data, t.quantization))
            for t in graph.tensors
            if t.data is not None and t.quantization is not None
        }
        # For each activation the one whose range it has, itself or another; learned: their scales.
        self._range_of = range_owners(graph)
        owners = sorted(set(self._range_of.values()) - fixed_ranges(graph))
        self._place = {owner: place for place, owner in enumerate(owners)}
        self.log_scale_changes = nn.Parameter(torch.zeros(len(owners)))
        self._first: dict[str, Quantization] = {}
        self._current: tuple[bytes, dict[str, Quantization]] = (b"", {})

    @property
    def activations(self) -> list[str]:
        """Names of the tensors that are computed, the input first."""
        outputs = [self.graph.name(operator) for operator in self.graph.operators]
        return [self.graph.tensors[self.graph.inputs[0]].name, *outputs]

    def set_quantization(self, quantization: Mapping[str, Quantization]) -> None:
        """Give every activation a grid; learning changes scales from here, zero points never."""
        assert not quantization or set(quantization) == set(self.activations)
        self._first = dict(quantization)
        self._current = (b"", {})
        with torch.no_grad():
            self.log_scale_changes.zero_()

    @property
    def quantization(self) -> Mapping[str, Quantization]:
        """The grid of every activation as it is now; empty while the network computes in float."""
        if not self._first:
            return {}
        changes = self.log_scale_changes.detach().cpu().numpy()
        if self._current[0] != changes.tobytes():
            with np.errstate(over="ignore"):
                factors = np.exp(changes.astype(np.float64))
            grids = {}
            for name, first in self._first.items():
                place = self._place.get(self._range_of[name])
                scale = first.scale[0] * (1.0 if place is None else float(factors[place]))
                if place is not None and not LEARNED_SCALES[0] < scale < LEARNED_SCALES[1]:
                    raise InputError(
                        f"the range of {name} diverged to a scale of {scale:.3g}; lower "
                        "qat.range_learning_rate, or calibrate on more batches"
                    )
                grids[name] = Quantization((float(np.float32(scale)),), first.zero_point)
            self._current = (changes.tobytes(), grids)
        return self._current[1]

    def float_constants(self) -> dict[str, np.ndarray]:
        """The weights as trained, by graph name."""
        return {_name(k): v.detach().contiguous().cpu().numpy() for k, v in self.constants.items()}

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
            if self.quantization:
                y = rounding.as_the_kernel(self, operator, y)
            if operator.options.get("fused_activation") == "RELU":
                y = functional.relu(y)
            values[output] = self._on_grid(names[output], y)
            if watch is not None:
                watch(names[output], values[output])
            for index in operator.inputs:
                if last_use[index] == number:
                    values.pop(index, None)
        return values[self.graph.outputs[0]]

    def scale_of(self, index: int) -> float:
        """Scale of an activation or of a given constant, by tensor."""
        tensor = self.graph.tensors[index]
        found = tensor.quantization or self.quantization[tensor.name]
        return found.scale[0]

    def weight_scales(self, operator: Operator) -> np.ndarray:
        """Scales (O,) float32 of a convolution's weights, as they are now."""
        x, w, b = (self.graph.tensors[i] for i in operator.inputs)
        if w.quantization is not None:
            return np.array(w.quantization.scale, np.float32)
        weight, bias = (self.constants[_key(t.name)].detach().cpu().numpy() for t in (w, b))
        axis = scheme.WEIGHT_AXIS[operator.kind]
        return scheme.weight_scale(weight, bias, self.quantization[x.name].scale[0], axis)

    def weight_and_bias(self, operator: Operator) -> tuple[Tensor, Tensor]:
        """Weights in torch's order (O, I, height, width), on their grid, and the bias."""
        x, w, b = (self.graph.tensors[i].name for i in operator.inputs)
        axis = scheme.WEIGHT_AXIS[operator.kind]
        if w in self.given:
            weight = self.given_constant(w)
            channels = self.graph.tensors[operator.outputs[0]].shape[3]
            return weight.permute(axis, 3 - axis, 1, 2), weight.new_zeros(channels)
        weight, bias = self.constants[_key(w)], self.constants[_key(b)]
        if self.quantization:
            scale = self.weight_scales(operator)
            shape = [1] * weight.ndim
            shape[axis] = len(scale)
            weight = _straight_through(
                weight, torch.from_numpy(scale).to(weight.device).view(shape)
            )
            steps = scheme.bias_scale(self.quantization[x].scale[0], scale)
            # In float64, as the rule: in float32 a step next to a half may fall on either side.
            exact = _straight_through(
                bias.double(), torch.from_numpy(steps).to(bias.device).double(), scheme.BIAS_LIMIT
            )
            bias = exact.float()
        return weight.permute(axis, 3 - axis, 1, 2), bias

    def given_constant(self, name: str) -> Tensor:
        """A constant that no training changes, where the network computes."""
        return self.given[name].to(self.log_scale_changes.device)

    def integers(self, operator: Operator, place: int) -> np.ndarray:
        """A constant operand of whole numbers: axes, paddings, a place in a map."""
        data = self.graph.tensors[operator.inputs[place]].data
        assert data is not None
        return data

    def _on_grid(self, name: str, x: Tensor) -> Tensor:
        if not self.quantization:
            return x
        q = self.quantization[name]
        place = self._place.get(self._range_of[name])
        if not torch.is_grad_enabled():
            return _fake_quantize(x, q.scale[0], q.zero_point[0])
        if place is None:
            return torch.fake_quantize_per_tensor_affine(
                x, q.scale[0], q.zero_point[0], scheme.INT8_MIN, scheme.INT8_MAX
            )
        grid: Tensor = _LearnedGrid.apply(
            x, self.log_scale_changes[place], q.scale[0], q.zero_point[0]
        )
        return grid


def _fake_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """The bits of `torch.fake_quantize_per_tensor_affine`, without its mask: no gradient.

    Vectorised on a CPU, where that takes four times as long; not a number stays one.
    """
    steps = (x * float(1 / np.float32(scale))).round_()
    return steps.clamp_(scheme.INT8_MIN - zero_point, scheme.INT8_MAX - zero_point).mul_(scale)


class _LearnedGrid(torch.autograd.Function):
    """Rounding to a grid whose scale has a gradient: Esser et al., ICLR 2020, equations 3 and 5."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, log_change: Tensor, scale: float, zero_point: int
    ) -> Tensor:
        rounded = _fake_quantize(x, scale, zero_point)
        context.save_for_backward(x, rounded)
        low = np.float32(scale * (scheme.INT8_MIN - 0.5 - zero_point))
        high = np.float32(scale * (scheme.INT8_MAX + 0.5 - zero_point))
        # The ends are inside, and `_inside` leaves its bounds out.
        context.bounds = float(np.nextafter(low, -INFINITY)), float(np.nextafter(high, INFINITY))
        return rounded

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Inside the range x learns, and the scale from the rounding; outside the scale alone."""
        x, rounded = context.saved_tensors
        # d(rounded) / d(log scale): rounded - x inside, the end of the range outside.
        of_scale = _inside(x, x, *context.bounds)
        torch.sub(rounded, of_scale, out=of_scale).mul_(gradient)
        return _inside(gradient, x, *context.bounds), of_scale.sum(), None, None


def range_owners(graph: Graph) -> dict[str, str]:
    """For each activation, the one whose range the INT8 rules give it: often itself."""
    first = graph.tensors[graph.inputs[0]].name
    owners = {first: first}
    for operator in graph.operators:
        name = graph.name(operator)
        sources = [graph.tensors[index].name for index in operator.inputs]
        if operator.kind == "CONCATENATION":
            owners[name] = name
            owners |= dict.fromkeys(sources, name)  # the whole has seen every part
        elif operator.kind in scheme.SAME_SCALE:
            owners[name] = owners[sources[0]]
        else:
            owners[name] = name
    return owners


def fixed_ranges(graph: Graph) -> set[str]:
    """Activations whose range the INT8 rules fix."""
    return {graph.name(operator) for operator in graph.operators if operator.kind == "LOGISTIC"}


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
    rows, columns = (0, 0), (0, 0)
    if operator.options["padding"] == "SAME":
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
        a, b = (
            values[i] if i in values else network.given_constant(network.graph.tensors[i].name)
            for i in operator.inputs
        )
        return f(a, b)

    return kernel


def _rsqrt(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    """On the grid, zero gives the top of the output range, as the integer kernel does."""
    x = values[operator.inputs[0]]
    if torch.onnx.is_in_onnx_export():
        return torch.rsqrt(x)
    if not network.quantization:
        return torch.rsqrt(x.clamp_min(SMALLEST_VARIANCE))
    output = network.quantization[network.graph.name(operator)]
    top = output.scale[0] * (scheme.INT8_MAX - output.zero_point[0])
    smallest = network.quantization[network.graph.tensors[operator.inputs[0]].name].scale[0] / 2
    return torch.where(x < smallest, top, torch.rsqrt(x.clamp_min(smallest)))


def _pool(f: Callable[..., Tensor]) -> Kernel:
    def kernel(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
        options = operator.options
        window = options["filter_height"], options["filter_width"]
        return f(values[operator.inputs[0]], window, (options["stride_h"], options["stride_w"]))

    return kernel


def _pad(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    _, rows, columns, _ = network.integers(operator, 1).tolist()
    return functional.pad(values[operator.inputs[0]], (*columns, *rows))


def _slice(network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]) -> Tensor:
    """A run of bands, all frames and channels."""
    first, size = (int(network.integers(operator, place)[1]) for place in (1, 2))
    return values[operator.inputs[0]][:, :, first : first + size]


def _concatenate(
    network: DeviceNetwork, operator: Operator, values: Mapping[int, Tensor]
) -> Tensor:
    axis = TORCH_AXIS[operator.options["axis"]]
    return torch.cat([values[index] for index in operator.inputs], dim=axis)


Kernel = Callable[[DeviceNetwork, Operator, Mapping[int, Tensor]], Tensor]

OPERATORS: Mapping[str, Kernel] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "ADD": _binary(torch.add),
    "SUB": _binary(torch.sub),
    "MUL": _binary(torch.mul),
    "RSQRT": _rsqrt,
    "LOGISTIC": lambda n, op, values: torch.sigmoid(values[op.inputs[0]]),
    "AVERAGE_POOL_2D": _pool(functional.avg_pool2d),
    "MAX_POOL_2D": _pool(functional.max_pool2d),
    "PAD": _pad,
    "SLICE": _slice,
    "CONCATENATION": _concatenate,
    "RESHAPE": lambda n, op, values: values[op.inputs[0]].flatten(1),
}
