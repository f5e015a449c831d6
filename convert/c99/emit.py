"""The C text of each step: its constants, and one function with its number and layer's name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.c99 import numbers
from convert.c99.plan import Plan, depth, place
from convert.c99.steps import (
    Convolution,
    FrequencyConvolution,
    MaxPool,
    MeanPool,
    Normalization,
    Residual,
    Step,
    TemporalConvolution,
)
from firmware_ref.graph import Graph, Operator
from firmware_ref.ops.node import Node

LINE_CHARACTERS = 96


@dataclass(frozen=True)
class Function:
    """A step in C: the ``text`` of its constants and function, the ``call``, and what it leaves.

    ``output`` is the tensor that lies in memory afterwards; ``fused`` names the layers that the
    function computes besides, in no memory of their own.
    """

    name: str
    text: str
    call: str
    output: int
    fused: tuple[str, ...] = ()


def function(graph: Graph, plan: Plan, number: int, step: Step) -> Function:
    """The function of a step; ``number`` is its place."""
    return _EMIT[type(step)](graph, plan, number, step)


def identifier(number: int, layer: str) -> str:
    """A layer's name as one of C: what is no letter or digit becomes an underscore.

    Its number keeps it apart from any other layer's constants, from keywords and from our names.
    """
    return f"layer{number}_{re.sub('[^A-Za-z0-9]', '_', layer)}"


def _convolution(graph: Graph, plan: Plan, number: int, step: Convolution) -> Function:
    operator = step.operator
    window = place(graph, operator)
    source, result = (graph.tensors[i].shape for i in (operator.inputs[0], operator.outputs[0]))
    found = numbers.channels(graph, operator)
    filled = np.zeros((len(found.weights), depth(graph, operator)), np.int8)
    filled[:, : found.weights.shape[1]] = found.weights
    name = identifier(number, graph.name(operator))
    requantization, out = _channels(name, found)
    layer = {
        **dict(zip(("in_rows", "in_frames", "in_channels"), source[1:], strict=True)),
        **dict(zip(("out_rows", "out_frames", "out_channels"), result[1:], strict=True)),
        "kernel_rows": window.height.kernel,
        "kernel_frames": window.width.kernel,
        "stride_rows": window.height.stride,
        "stride_frames": window.width.stride,
        "pad_rows": window.height.before,
        "pad_frames": window.width.before,
        "depth": filled.shape[1],
        "in_zero_point": _zero_point(graph, operator, 0),
        "weights": f"{name}_weights",
        "out": out,
    }
    text = _weights(f"{name}_weights", filled) + requantization + _struct("ts_conv", name, layer)
    x, y = (plan.offsets[index] for index in (operator.inputs[0], operator.outputs[0]))
    text += _define(
        name,
        "const int8_t *x, int8_t *y, int16_t *columns",
        f"ts_convolve(&{name}_layer, x, y, columns);",
    )
    call = f"{name}(maps + {x}, maps + {y}, memory->columns.values);"
    return Function(name, text, call, operator.outputs[0])


def _frequency_convolution(
    graph: Graph, plan: Plan, number: int, step: FrequencyConvolution
) -> Function:
    name = identifier(number, graph.name(step.whole))
    _, rows, frames, channels = graph.tensors[step.whole.outputs[0]].shape
    found = [numbers.on_codes(numbers.channels(graph, band), graph, band) for band in step.bands]
    whole = dataclasses.replace(
        found[0],
        bias=np.concatenate([part.bias for part in found]),
        multiplier=np.concatenate([part.multiplier for part in found]),
        shift=np.concatenate([part.shift for part in found]),
    )
    text = _array("int8_t", f"{name}_weights", np.concatenate([part.weights for part in found]))
    requantization, out = _channels(name, whole)
    text += requantization
    difference = "0"
    if step.difference is not None:
        text += _constant("ts_sum", f"{name}_difference", numbers.addition(graph, step.difference))
        difference = f"&{name}_difference"
    layer = {
        "rows": rows,
        "frames": frames,
        "channels": channels,
        "bands": len(step.bands),
        "in_zero_point": _zero_point(graph, step.bands[0], 0),
        "weights": f"{name}_weights",
        "out": out,
        "difference": difference,
    }
    text += _struct("ts_frequency_conv", name, layer)
    text += _define(
        name, "int8_t *map, int8_t *means", f"ts_convolve_rows(&{name}_layer, map, means);"
    )
    map_at, means = (plan.offsets[op.outputs[0]] for op in (step.whole, step.mean_output))
    call = f"{name}(maps + {map_at}, maps + {means});"
    fused = [step.mean, step.mean_identity, step.difference]
    names = tuple(graph.name(operator) for operator in fused if operator is not None)
    return Function(name, text, call, step.whole.outputs[0], names)


def _temporal_convolution(
    graph: Graph, plan: Plan, number: int, step: TemporalConvolution
) -> Function:
    operator = step.convolution
    name = identifier(number, graph.name(operator))
    _, _, frames, channels = graph.tensors[operator.outputs[0]].shape
    found = numbers.on_codes(numbers.channels(graph, operator), graph, operator)
    activation = numbers.table(graph, [step.sigmoid, step.silu])
    requantization, out = _channels(name, found)
    layer = {
        "frames": frames,
        "channels": channels,
        "in_zero_point": _zero_point(graph, operator, 0),
        "weights": f"{name}_weights",
        "out": out,
        "activation": f"{name}_silu",
    }
    text = _array("int8_t", f"{name}_weights", found.weights)
    text += requantization + _array("int8_t", f"{name}_silu", activation)
    text += _struct("ts_temporal_conv", name, layer)
    text += _define(name, "int8_t *row", f"ts_convolve_frames(&{name}_layer, row);")
    call = f"{name}(maps + {plan.offsets[step.silu.outputs[0]]});"
    names = (graph.name(step.sigmoid), graph.name(step.silu))
    return Function(name, text, call, step.silu.outputs[0], names)


def _residual(graph: Graph, plan: Plan, number: int, step: Residual) -> Function:
    operator = step.operator
    name = identifier(number, graph.name(operator))
    _, rows, frames, channels = graph.tensors[operator.outputs[0]].shape
    found = numbers.addition(graph, operator)
    map_place = 0 if step.map_first else 1
    layer = {
        "rows": rows,
        "row_bytes": frames * channels,
        "map_codes": f"{name}_codes",
        "row": _plain(found.second if step.map_first else found.first),
        "out": _plain(found.out),
    }
    codes = numbers.operand_codes(graph, operator, map_place) << (1 + max(found.out.shift, 0))
    text = _array("int32_t", f"{name}_codes", codes)
    text += _struct("ts_residual", name, layer)
    text += _define(name, "int8_t *map, const int8_t *row", f"ts_add_row(&{name}_layer, map, row);")
    map_at, row = (
        plan.offsets[index] for index in (operator.outputs[0], operator.inputs[1 - map_place])
    )
    call = f"{name}(maps + {map_at}, maps + {row});"
    return Function(name, text, call, operator.outputs[0])


def _normalization(graph: Graph, plan: Plan, number: int, step: Normalization) -> Function:
    name = identifier(number, graph.name(step.difference))
    _, rows, frames, channels = graph.tensors[step.difference.outputs[0]].shape
    tables = {
        "square": numbers.table(graph, [step.square]),
        "squared_mean": numbers.table(graph, [step.squared_mean]),
        "rsqrt": numbers.rsqrt_table(graph, step.rsqrt),
        "gain": numbers.table(graph, [step.rsqrt, step.gain]),
    }
    layer: dict[str, Any] = {"rows": rows, "frames": frames, "channels": channels}
    layer |= {key: f"{name}_{key}" for key in tables}
    layer |= {
        "x_zero_point": _zero_point(graph, step.row_mean, 0),
        "square_zero_point": _zero_point(graph, step.row_power, 0),
        "row_mean_zero_point": _zero_point(graph, step.mean, 0),
        "row_power_zero_point": _zero_point(graph, step.power, 0),
    }
    means = {"row_mean": step.row_mean, "mean": step.mean}
    means |= {"row_power": step.row_power, "power": step.power}
    for key, operator in means.items():
        weight, rescale = numbers.one_channel(graph, operator)
        layer |= {f"{key}_weight": weight, key: _plain(rescale)}
    layer |= {
        "variance": _plain(numbers.addition(graph, step.variance)),
        "offset": _plain(numbers.product(graph, step.offset)),
        "scaled": _plain(numbers.product(graph, step.scaled)),
        "out": _plain(numbers.addition(graph, step.difference)),
    }
    text = "".join(_array("int8_t", f"{name}_{key}", codes) for key, codes in tables.items())
    text += _struct("ts_res_norm", name, layer)
    text += _define(name, "int8_t *map, int8_t *table", f"ts_normalize(&{name}_layer, map, table);")
    at = plan.offsets[step.difference.outputs[0]]
    call = f"{name}(maps + {at}, maps + {plan.table});"
    fused = tuple(graph.name(getattr(step, item.name)) for item in dataclasses.fields(step)[:-1])
    return Function(name, text, call, step.difference.outputs[0], fused)


def _max_pool(graph: Graph, plan: Plan, number: int, step: MaxPool) -> Function:
    name = identifier(number, graph.name(step.operator))
    _, rows, frames, channels = graph.tensors[step.operator.inputs[0]].shape
    text = _define(name, "int8_t *map", f"ts_max_pool(map, {rows}, {frames}, {channels});")
    call = f"{name}(maps + {plan.offsets[step.operator.outputs[0]]});"
    return Function(name, text, call, step.operator.outputs[0])


def _mean_pool(graph: Graph, plan: Plan, number: int, step: MeanPool) -> Function:
    operator = step.operator
    name = identifier(number, graph.name(operator))
    _, rows, frames, channels = graph.tensors[operator.inputs[0]].shape
    body = f"ts_mean_pool(map, {rows * frames}, {channels}, means);"
    text = _define(name, "const int8_t *map, int8_t *means", body)
    map_at, means = (plan.offsets[index] for index in (operator.inputs[0], operator.outputs[0]))
    call = f"{name}(maps + {map_at}, maps + {means});"
    return Function(name, text, call, operator.outputs[0])


_EMIT: Mapping[type, Callable[[Graph, Plan, int, Any], Function]] = {
    Convolution: _convolution,
    FrequencyConvolution: _frequency_convolution,
    TemporalConvolution: _temporal_convolution,
    Residual: _residual,
    Normalization: _normalization,
    MaxPool: _max_pool,
    MeanPool: _mean_pool,
}


def _zero_point(graph: Graph, operator: Operator, position: int) -> int:
    return Node(operator, graph).activation(position)[1].zero_point


def _plain(values: Any) -> dict[str, Any]:
    """A dataclass of `numbers`, whose fields are those of the struct, as nested mappings."""
    return dataclasses.asdict(values)


def _channels(name: str, found: numbers.Channels) -> tuple[str, dict[str, Any]]:
    """Arrays of bias, multiplier and shift, and the struct that points to them."""
    text = _array("int32_t", f"{name}_bias", found.bias)
    text += _array("int32_t", f"{name}_multiplier", found.multiplier)
    text += _array("int8_t", f"{name}_shift", found.shift)
    pointers = {key: f"{name}_{key}" for key in ("bias", "multiplier", "shift")}
    clamp = {"zero_point": found.zero_point, "low": found.low}
    return text, {**pointers, **clamp}


def _array(kind: str, name: str, values: np.ndarray) -> str:
    flat = values.reshape(-1).tolist()
    lines = _filled(f"{_literal(value)}," for value in flat)
    return f"static const {kind} {name}[{len(flat)}] = {{\n{lines}\n}};\n"


def _weights(name: str, rows: np.ndarray) -> str:
    """Weights in groups of four, whose order is the processor's."""
    groups = rows.reshape(-1, 4).tolist()
    lines = _filled(f"TS_W4({', '.join(map(str, group))})," for group in groups)
    return f"static const int8_t {name}[{rows.size}] TS_ALIGNED = {{\n{lines}\n}};\n"


def _filled(items: Iterable[str]) -> str:
    """Items in lines as long as may be."""
    lines, line = [], "   "
    for item in items:
        if len(line) + 1 + len(item) > LINE_CHARACTERS:
            lines.append(line)
            line = "   "
        line += f" {item}"
    return "\n".join([*lines, line])


def _literal(value: int) -> str:
    # -2147483648 in C is the negation of a number that an int does not hold.
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def _constant(kind: str, name: str, values: Any) -> str:
    return f"static const {kind} {name} = {_braced(_plain(values), 0)};\n"


def _struct(kind: str, name: str, values: Mapping[str, Any]) -> str:
    return f"static const {kind} {name}_layer = {_braced(values, 0)};\n"


def _braced(values: Mapping[str, Any], depth_: int) -> str:
    inner = "    " * (depth_ + 1)
    lines = [
        f"{inner}.{key} = {_braced(v, depth_ + 1) if isinstance(v, Mapping) else v},"
        for key, v in values.items()
    ]
    return "{\n" + "\n".join(lines) + "\n" + "    " * depth_ + "}"


def _define(name: str, arguments: str, body: str) -> str:
    return f"static void {name}({arguments}) {{\n    {body}\n}}\n"
