"""Models of one INT8 operator of each kind, and what it computes in real numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgets import rules
from tests.firmware_ref.build import Model, fb

SHAPE = (1, 4, 6, 2)
GRID = (1 / 16, 3)  # of the input; other activations have OUT
OUT = (1 / 8, -5)
UNIT = (1 / 256, -128)

Reals = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One operator on a map of ``SHAPE``, and what it computes in real numbers.

    ``before`` and ``after`` are constants beside the map: integers, or real numbers as int8.
    """

    reals: Reals
    out: tuple[float, int] | None = OUT
    options: Any = None
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()
    outputs: int = 1


def options(name: str, **values: Any) -> Any:
    """An options table of the schema's generated code, by the name of its union."""
    table = getattr(fb, f"{name}T")()
    for key, value in values.items():
        assert hasattr(table, key), key
        setattr(table, key, value)
    return table


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


ROW = np.linspace(0.25, 3, 12).reshape(1, 1, 6, 2)  # a constant that broadcasts over bands
WEIGHTS = np.linspace(-1, 1, 6).reshape(3, 2)
WINDOW = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2, "padding": 1}
STEPS = {"strideH": 1, "strideW": 1, "padding": 1}


def windows(x: np.ndarray) -> np.ndarray:
    """Values of each 2x2 window, along the last axis."""
    return x.reshape(1, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 2, 4)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def padded(value: float) -> Reals:
    return lambda x: np.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)], constant_values=value)


PADDINGS = ints([0, 0], [1, 1], [0, 0], [0, 0])
CASES: Mapping[str, Case] = {
    "ADD": Case(lambda x: x + ROW, options=options("AddOptions"), after=(ROW,)),
    "AVERAGE_POOL_2D": Case(
        lambda x: windows(x).mean(-1), GRID, options("Pool2DOptions", **WINDOW)
    ),
    "BROADCAST_TO": Case(
        lambda x: np.broadcast_to(x, (3, *SHAPE[1:])), GRID, after=(ints(3, *SHAPE[1:]),)
    ),
    "CONCATENATION": Case(
        lambda x: np.concatenate([x, np.full(SHAPE, 2.0)], 1),
        GRID,
        options("ConcatenationOptions", axis=1),
        after=(np.full(SHAPE, 2.0),),
    ),
    "CONV_2D": Case(
        lambda x: x @ WEIGHTS.T,
        options=options("Conv2DOptions", **STEPS),
        after=(WEIGHTS.reshape(3, 1, 1, 2), ints(0, 0, 0)),
    ),
    "DEPTHWISE_CONV_2D": Case(
        lambda x: x * WEIGHTS[0],
        options=options("DepthwiseConv2DOptions", **STEPS, depthMultiplier=1),
        after=(WEIGHTS[0].reshape(1, 1, 1, 2), ints(0, 0)),
    ),
    "DEQUANTIZE": Case(lambda x: x, None),
    "DIV": Case(lambda x: x / ROW, options=options("DivOptions"), after=(ROW,)),
    "EXPAND_DIMS": Case(lambda x: x[:, None], GRID, after=(ints(1),)),
    "FULLY_CONNECTED": Case(
        lambda x: x.reshape(-1, 2) @ WEIGHTS.T,
        options=options("FullyConnectedOptions"),
        after=(WEIGHTS, ints(0, 0, 0)),
    ),
    "GATHER": Case(
        lambda x: x[:, [2, 0, 3]], GRID, options("GatherOptions", axis=1), after=(ints(2, 0, 3),)
    ),
    "HARD_SWISH": Case(lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "LEAKY_RELU": Case(
        lambda x: np.where(x < 0, x / 4, x), options=options("LeakyReluOptions", alpha=0.25)
    ),
    "LOGISTIC": Case(sigmoid, UNIT),
    "MAXIMUM": Case(
        lambda x: np.maximum(x, ROW), GRID, options("MaximumMinimumOptions"), after=(ROW,)
    ),
    "MAX_POOL_2D": Case(lambda x: windows(x).max(-1), GRID, options("Pool2DOptions", **WINDOW)),
    "MEAN": Case(
        lambda x: x.mean(2, keepdims=True),
        options=options("ReducerOptions", keepDims=True),
        after=(ints(2),),
    ),
    "MINIMUM": Case(
        lambda x: np.minimum(x, ROW), GRID, options("MaximumMinimumOptions"), after=(ROW,)
    ),
    "MUL": Case(lambda x: x * ROW, options=options("MulOptions"), after=(ROW,)),
    "PACK": Case(
        lambda x: np.stack([x, np.full(SHAPE, 2.0)]),
        GRID,
        options("PackOptions", valuesCount=2, axis=0),
        after=(np.full(SHAPE, 2.0),),
    ),
    "PAD": Case(padded(0), GRID, options("PadOptions"), after=(PADDINGS,)),
    "PADV2": Case(padded(2), GRID, options("PadV2Options"), after=(PADDINGS, np.full(1, 2.0))),
    "PRELU": Case(
        lambda x: np.where(x < 0, x * WEIGHTS[2], x), after=(WEIGHTS[2].reshape(1, 1, 2),)
    ),
    "QUANTIZE": Case(lambda x: x),
    "RELU": Case(lambda x: np.maximum(x, 0)),
    "RELU6": Case(lambda x: np.clip(x, 0, 6), GRID),
    "RESHAPE": Case(
        lambda x: x.reshape(1, 48), GRID, options("ReshapeOptions"), after=(ints(1, 48),)
    ),
    "RESIZE_NEAREST_NEIGHBOR": Case(
        lambda x: x.repeat(2, 1).repeat(3, 2),
        GRID,
        options("ResizeNearestNeighborOptions"),
        after=(ints(8, 18),),
    ),
    "RSQRT": Case(lambda x: 1 / np.sqrt(x), (1 / 32, -128)),
    "SLICE": Case(lambda x: x[:, 1:3], GRID, after=(ints(0, 1, 0, 0), ints(1, 2, 6, 2))),
    "SOFTMAX": Case(softmax, UNIT, options("SoftmaxOptions", beta=1.0)),
    "SPLIT": Case(
        lambda x: x[:, :2], GRID, options("SplitOptions", numSplits=2), before=(ints(1),), outputs=2
    ),
    "SPLIT_V": Case(
        lambda x: x[:, :1],
        GRID,
        options("SplitVOptions", numSplits=2),
        after=(ints(1, 3), ints(1)),
        outputs=2,
    ),
    "SQUARED_DIFFERENCE": Case(lambda x: (x - ROW) ** 2, after=(ROW,)),
    "SQUEEZE": Case(lambda x: x[0], GRID, options("SqueezeOptions", squeezeDims=[0])),
    "STRIDED_SLICE": Case(
        lambda x: x[:, ::2],
        GRID,
        options("StridedSliceOptions"),
        after=(ints(0, 0, 0, 0), ints(*SHAPE), ints(1, 2, 1, 1)),
    ),
    "SUB": Case(lambda x: x - ROW, options=options("SubOptions"), after=(ROW,)),
    "SUM": Case(
        lambda x: x.sum(3, keepdims=True),
        options=options("ReducerOptions", keepDims=True),
        after=(ints(3),),
    ),
    "TANH": Case(np.tanh, (1 / 128, 0)),
    "TRANSPOSE": Case(lambda x: x.transpose(0, 2, 1, 3), GRID, after=(ints(0, 2, 1, 3),)),
    "UNPACK": Case(lambda x: x[:, 0], GRID, options("UnpackOptions", num=4, axis=1), outputs=4),
    # No member of the lists: what a counter must not let pass as free.
    "BATCH_MATMUL": Case(lambda x: x, options=options("BatchMatMulOptions"), after=(np.eye(2),)),
    "COS": Case(np.cos),
    "CUSTOM:Magic": Case(lambda x: x),
    "EXP": Case(np.exp, options=options("ExpOptions")),
    "LOG": Case(np.log),
    "POW": Case(lambda x: x**2, options=options("PowOptions"), after=(np.full(1, 2.0),)),
    "SIN": Case(np.sin),
    "SQRT": Case(np.sqrt),
    "SQUARE": Case(np.square, options=options("SquareOptions")),
}


def model_of(kind: str) -> bytes:
    """A flatbuffer of one INT8 operator."""
    case, model = CASES[kind], Model()

    def constant(values: np.ndarray) -> int:
        if values.dtype == np.int32:
            return model.integers(f"integers{len(model.tensors)}", values)
        scale, zero = (1 / 64, 0) if kind in (*rules.WEIGHTED, "PRELU") else GRID
        steps = np.clip(np.rint(values / scale) + zero, -127, 127)
        return model.tensor(f"constant{len(model.tensors)}", values.shape, scale, zero, steps)

    x = model.tensor("x", SHAPE, *GRID)
    inputs = [*map(constant, case.before), x, *map(constant, case.after)]
    shape = case.reals(examples()).shape
    grid, dtype = (case.out, "int8") if case.out else ((), "float32")
    outputs = [
        model.tensor(f"y{number}", shape, *grid, dtype=dtype) for number in range(case.outputs)
    ]
    model.add(kind, inputs, outputs)
    if case.options is not None:
        union = type(case.options).__name__.removesuffix("T")
        model.operators[-1].builtinOptions = case.options
        model.operators[-1].builtinOptionsType = getattr(fb.BuiltinOptions, union)
    return model.pack([x], outputs)


def steps() -> np.ndarray:
    """The map as int8: real numbers from a sixteenth to 7."""
    return np.linspace(4, 115, 48).reshape(SHAPE).astype(np.int8)


def examples() -> np.ndarray:
    return GRID[0] * (steps().astype(float) - GRID[1])
