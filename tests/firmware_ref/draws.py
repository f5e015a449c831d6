"""Models of one operator as hypothesis draws them: every kind, with what it allows at its ends."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from firmware_ref.ops.softmax import MAX_CLASSES
from tests.firmware_ref.build import Model
from tests.firmware_ref.parts import Case, Draw, Shape


def output_size(size: int, extent: int, stride: int, padding: int) -> int:
    """TensorFlow's rule for SAME (0) and VALID (1)."""
    return -(-size // stride) if padding == 0 else (size - extent) // stride + 1


def place(draw: Draw, dilated: bool) -> tuple[dict[str, int], list[int], list[int], list[int]]:
    """Options of a window, its kernel, and sizes of the input and the output."""
    padding = draw.whole(0, 1)
    kernel, stride = [draw.whole(1, 5) for _ in "hw"], [draw.whole(1, 3) for _ in "hw"]
    dilation = [draw.whole(1, 2) if dilated else 1 for _ in "hw"]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    # Only padding makes room for a window larger than its map.
    size = [draw.whole(1 if padding == 0 else e, e + 4) for e in extent]
    out = [output_size(n, e, s, padding) for n, e, s in zip(size, extent, stride, strict=True)]
    options = {"padding": padding, "fusedActivationFunction": draw.activation()}
    options |= {"strideH": stride[0], "strideW": stride[1]}
    if dilated:
        options |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    else:
        options |= {"filterHeight": kernel[0], "filterWidth": kernel[1]}
    return options, kernel, size, out


def conv_2d(draw: Draw) -> Case:
    model, (options, kernel, size, out) = Model(), place(draw, dilated=True)
    channels, filters = draw.whole(1, 5), draw.whole(1, 6)
    x = model.tensor("x", (1, *size, channels), *draw.grid())
    w = draw.weights(model, (filters, *kernel, channels), 0)
    # tflite-runtime insists on a bias here.
    b = draw.bias(model, filters)
    y = model.tensor("y", (1, *out, filters), *draw.grid(-12, 1))
    model.add("CONV_2D", [x, w, *b], [y], **options)
    return model, x, y


def depthwise_conv_2d(draw: Draw) -> Case:
    model, (options, kernel, size, out) = Model(), place(draw, dilated=True)
    channels, multiplier = draw.whole(1, 5), draw.whole(1, 2)
    filters = channels * multiplier
    x = model.tensor("x", (1, *size, channels), *draw.grid())
    w = draw.weights(model, (1, *kernel, filters), 3)
    b = draw.bias(model, filters) if draw.flag() else []
    y = model.tensor("y", (1, *out, filters), *draw.grid(-12, 1))
    model.add("DEPTHWISE_CONV_2D", [x, w, *b], [y], depthMultiplier=multiplier, **options)
    return model, x, y


def fully_connected(draw: Draw) -> Case:
    """One scale for all weights is a power of two: with others tflite-runtime multiplies
    ``s_in * s_w`` in float32 and TFLM in double."""
    model, keep = Model(), draw.flag()
    shape, out = draw.shape(size=8), draw.whole(1, 20)
    shape = draw.one_of([shape, (1, draw.whole(1, 300))])
    length = shape[-1] if keep else math.prod(shape)
    x = model.tensor("x", shape, *draw.grid())
    # Of several rows tflite-runtime computes one where there is a scale a channel.
    w = draw.weights(model, (out, length), 0, one_scale=keep and len(shape) > 2)
    # This operator marks a bias that is left out; convolutions drop it.
    b = draw.bias(model, out) if draw.flag() else [-1]
    if b != [-1]:
        # Under one scale for all weights tflite-runtime holds the bias's scale against theirs.
        source, weights = (model.tensors[index].quantization for index in (x, w))
        quantization = copy.copy(weights)
        quantization.scale = source.scale * weights.scale
        model.tensors[b[0]].quantization = quantization
    y = model.tensor("y", (*shape[:-1], out) if keep else (1, out), *draw.grid(-12, 1))
    options = {"fusedActivationFunction": draw.activation(), "keepNumDims": keep}
    model.add("FULLY_CONNECTED", [x, w, *b], [y], **options)
    return model, x, y


# Both looked up and computed: with few elements, with more than a table of one operand has, and
# with enough for one of both.
FULL_SHAPES = [(1, 4, 5, 3), (1, 7), (1, 3, 2), (1, 7, 9, 5), (1, 16, 17, 16)]


def binary(kind: str) -> Callable[[Draw], Case]:
    """An operator on two maps made from one, on one and a constant, or on a map and itself."""

    def case(draw: Draw) -> Case:
        model, full = Model(), draw.one_of(FULL_SHAPES)
        options = {} if kind == "SQUARED_DIFFERENCE" else {"fusedActivationFunction": 0}
        options = {name: draw.activation() for name in options}
        # tflite-runtime multiplies MUL's scales in float32 and TFLM in double: equal where the
        # product is exact.
        grid = draw.short_grid if kind == "MUL" else draw.grid
        x = model.tensor("x", full, *grid())
        form = draw.one_of(["itself", "constant", "scalar", "row", "two", "crossed"])
        if form == "itself":
            inputs = [x, x]
        elif form in ("constant", "scalar", "row"):
            other = tuple(draw.one_of([1, size]) for size in full)
            shape = {"constant": other, "scalar": draw.one_of([(1,), (1,) * len(full)])}
            shape |= {"row": full[-1:]}
            data = draw.steps(shape[form], 127)
            inputs = [x, model.tensor("constant", shape[form], *grid(), data)]
        else:
            kept = [draw.flag() for _ in full[1:]]
            other = [not keep for keep in kept] if form == "crossed" else [True] * len(kept)
            inputs = [_part_of(model, draw, x, full, sides, grid()) for sides in (kept, other)]
        if draw.flag():
            inputs.reverse()
        shapes = [model.tensors[index].shape for index in inputs]
        scale, zero = draw.grid(-9, 1)
        scale = 2.0 ** round(math.log2(scale)) if kind == "MUL" else scale
        y = model.tensor("y", np.broadcast_shapes(*map(tuple, shapes)), scale, zero)
        model.add(kind, inputs, [y], **options)
        return model, x, y

    return case


def _part_of(
    model: Model,
    draw: Draw,
    x: int,
    full: Shape,
    kept: Sequence[bool],
    grid: tuple[float, int],
) -> int:
    """The map on another grid, cut to one element on the axes that are not kept."""
    size = [1, *(n if keep else 1 for n, keep in zip(full[1:], kept, strict=True))]
    begin = [0, *(draw.whole(0, n - m) for n, m in zip(full[1:], size[1:], strict=True))]
    tensor = model.tensors[x]
    source = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    cut = model.tensor("cut", size, *source)
    model.add("SLICE", [x, model.integers("begin", begin), model.integers("size", size)], [cut])
    made = model.tensor("made", size, *grid)
    model.add("QUANTIZE", [cut], [made])
    return made


def mean(draw: Draw) -> Case:
    model = Model()
    shape = (1, draw.whole(1, 30), draw.whole(1, 30), draw.whole(1, 30))
    axes = draw.one_of([[1], [2], [3], [1, 2], [1, 3], [2, 3], [3, 1]])
    keep = draw.flag()
    out = [1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes]
    stored = [axis - 4 if draw.flag() else axis for axis in axes]
    x = model.tensor("x", shape, *draw.grid())
    y = model.tensor("y", out, *draw.grid())
    model.add("MEAN", [x, model.integers("axes", stored)], [y], keepDims=keep)
    return model, x, y


def unary(kind: str, low: float, high: float) -> Callable[[Draw], Case]:
    """An operator on one value at a time."""

    def case(draw: Draw) -> Case:
        model, shape = Model(), draw.shape(size=16)
        if kind == "SOFTMAX" and draw.flag():
            shape = (*shape[:-1], draw.one_of([MAX_CLASSES, draw.whole(1, MAX_CLASSES)]))
        x = model.tensor("x", shape, *draw.grid(low, high))
        fixed = kind in ("LOGISTIC", "SOFTMAX")
        y = model.tensor("y", shape, *((1 / 256, -128) if fixed else draw.grid(-8, 3)))
        options = {"beta": draw.one_of([1.0, 0.5, 2.0])} if kind == "SOFTMAX" else {}
        model.add(kind, [x], [y], **options)
        return model, x, y

    return case


def pool(kind: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        model, (options, _, size, out) = Model(), place(draw, dilated=False)
        channels, grid = draw.whole(1, 4), draw.grid()
        x = model.tensor("x", (1, *size, channels), *grid)
        y = model.tensor("y", (1, *out, channels), *grid)
        model.add(kind, [x], [y], **options)
        return model, x, y

    return case


def moved(kind: str) -> Callable[[Draw], Case]:
    """An operator that moves integers as they are, by one constant or two."""

    def case(draw: Draw) -> Case:
        model, shape, grid = Model(), draw.shape(), draw.grid()
        x = model.tensor("x", shape, *grid)
        constants, out = MOVES[kind](draw, shape)
        y = model.tensor("y", out, *grid)
        # RESHAPE may keep the shape in its options instead.
        inside = kind == "RESHAPE" and draw.flag()
        options = {"newShape": constants[0]} if inside else {}
        inputs = [] if inside else [model.integers("c", values) for values in constants]
        model.add(kind, [x, *inputs], [y], **options)
        return model, x, y

    return case


def _pad(draw: Draw, shape: Shape) -> tuple[list[Any], list[int]]:
    amounts = [[0, 0], *([draw.whole(0, 2), draw.whole(0, 2)] for _ in shape[1:])]
    return [amounts], [size + sum(both) for size, both in zip(shape, amounts, strict=True)]


def _slice(draw: Draw, shape: Shape) -> tuple[list[Any], list[int]]:
    begin = [draw.whole(0, size - 1) for size in shape]
    out = [draw.whole(1, n - first) for n, first in zip(shape, begin, strict=True)]
    whole = [first + n == size for size, first, n in zip(shape, begin, out, strict=True)]
    rest = [-1 if last and draw.flag() else n for n, last in zip(out, whole, strict=True)]
    return [begin, rest], out


def _transpose(draw: Draw, shape: Shape) -> tuple[list[Any], list[int]]:
    order = [0, *draw.one_of([*_permutations(range(1, len(shape)))])]
    return [order], [shape[axis] for axis in order]


def _permutations(axes: range) -> Sequence[tuple[int, ...]]:
    return list(itertools.permutations(axes))


def _reshape(draw: Draw, shape: Shape) -> tuple[list[Any], list[int]]:
    count = math.prod(shape)
    first = draw.one_of([n for n in range(1, count + 1) if count % n == 0])
    out = [1, first, count // first]
    left_out = draw.whole(0, 3)
    return [[-1 if axis == left_out else size for axis, size in enumerate(out)]], out


MOVES: Mapping[str, Callable[[Draw, Shape], tuple[list[Any], list[int]]]] = {
    "PAD": _pad,
    "SLICE": _slice,
    "TRANSPOSE": _transpose,
    "RESHAPE": _reshape,
}


def concatenation(draw: Draw) -> Case:
    """A map and slices of it, end to end along any axis but the first."""
    model, shape, grid = Model(), draw.shape(), draw.grid()
    axis = draw.whole(1, len(shape) - 1)
    x = model.tensor("x", shape, *grid)
    parts = []
    for number in range(draw.whole(1, 4)):
        if draw.flag():
            parts.append(x)
            continue
        begin, size = [0] * len(shape), list(shape)
        begin[axis] = draw.whole(0, shape[axis] - 1)
        size[axis] = draw.whole(1, shape[axis] - begin[axis])
        parts.append(model.tensor(f"part{number}", size, *grid))
        constants = [model.integers("begin", begin), model.integers("size", size)]
        model.add("SLICE", [x, *constants], [parts[-1]])
    out = list(shape)
    out[axis] = sum(model.tensors[part].shape[axis] for part in parts)
    y = model.tensor("y", out, *grid)
    stored = axis - len(shape) if draw.flag() else axis
    model.add("CONCATENATION", parts, [y], axis=stored)
    return model, x, y


CASES: Mapping[str, Callable[[Draw], Case]] = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "FULLY_CONNECTED": fully_connected,
    **{kind: binary(kind) for kind in ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE")},
    "MEAN": mean,
    "RSQRT": unary("RSQRT", -20, 2),
    # Outside of these scales tflite-runtime and TFLM differ from each other: see ops/logistic.py.
    "LOGISTIC": unary("LOGISTIC", -6.9, 0.9),
    "QUANTIZE": unary("QUANTIZE", -8, 3),
    "SOFTMAX": unary("SOFTMAX", -9, 3),
    **{kind: pool(kind) for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D")},
    **{kind: moved(kind) for kind in MOVES},
    "CONCATENATION": concatenation,
}
