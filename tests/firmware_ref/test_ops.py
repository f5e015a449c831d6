"""Every operator against both oracles, on random shapes, scales and zero points at the ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from firmware_ref.ops import PREPARE, prepare
from firmware_ref.oracle import ORACLES, session
from firmware_ref.run import Interpreter
from firmware_ref.verify import verify
from tests.firmware_ref.build import Model, random_int8

Case = tuple[Model, int, int]
GRAPHS_EACH = 40


class Draw:
    """Random parts of a graph."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def whole(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def scale(self, low: float = -8, high: float = -1) -> float:
        """A float32 scale between two powers of two."""
        return float(np.float32(2.0 ** self.rng.uniform(low, high)))

    def zero(self) -> int:
        """A zero point, often at an end."""
        return int(self.rng.choice([-128, 127, 0, self.rng.integers(-128, 128)]))

    def activation(self) -> int:
        """NONE, RELU, RELU_N1_TO_1 or RELU6."""
        return self.whole(0, 3)

    def weights(self, model: Model, shape: tuple[int, ...], axis: int) -> tuple[int, list[float]]:
        """Weights on one scale or one a channel."""
        count = shape[axis] if self.rng.random() < 0.7 else 1
        scales = [self.scale(-10, -5) for _ in range(count)]
        data = self.rng.integers(-127, 128, shape)
        return model.tensor("w", shape, scales, 0, data, axis=axis), scales

    def bias(
        self, model: Model, channels: int, scales: list[float], optional: bool = True
    ) -> list[int]:
        """An int32 bias, or none."""
        if optional and self.rng.random() < 0.2:
            return []
        data = self.rng.integers(-5000, 5000, channels)
        return [model.tensor("b", (channels,), scales, 0, data, "int32")]


def output_size(size: int, extent: int, stride: int, padding: int) -> int:
    """TensorFlow's rule for SAME (0) and VALID (1)."""
    return -(-size // stride) if padding == 0 else (size - extent) // stride + 1


def conv_2d(draw: Draw) -> Case:
    model = Model()
    padding, channels, out = draw.whole(0, 1), draw.whole(1, 5), draw.whole(1, 6)
    kernel = [draw.whole(1, 3) for _ in "hw"]
    stride, dilation = [draw.whole(1, 3) for _ in "hw"], [draw.whole(1, 2) for _ in "hw"]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw.whole(e, 11) for e in extent]
    place = [output_size(n, e, s, padding) for n, e, s in zip(size, extent, stride, strict=True)]
    source = draw.scale()
    x = model.tensor("x", (1, *size, channels), source, draw.zero())
    w, scales = draw.weights(model, (out, *kernel, channels), 0)
    # tflite-runtime insists on a bias here.
    b = draw.bias(model, out, [source * s for s in scales], optional=False)
    y = model.tensor("y", (1, *place, out), draw.scale(-6, 0), draw.zero())
    model.add(
        "CONV_2D",
        [x, w, *b],
        [y],
        padding=padding,
        strideH=stride[0],
        strideW=stride[1],
        dilationHFactor=dilation[0],
        dilationWFactor=dilation[1],
        fusedActivationFunction=draw.activation(),
    )
    return model, x, y


def depthwise_conv_2d(draw: Draw) -> Case:
    model = Model()
    padding, channels, multiplier = draw.whole(0, 1), draw.whole(1, 5), draw.whole(1, 3)
    kernel, stride = [draw.whole(1, 3) for _ in "hw"], draw.whole(1, 2)
    # The reference kernels dilate or stride, not both.
    dilation = [draw.whole(1, 2) for _ in "hw"] if stride == 1 else [1, 1]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw.whole(e, 11) for e in extent]
    place = [output_size(n, e, stride, padding) for n, e in zip(size, extent, strict=True)]
    source, out = draw.scale(), channels * multiplier
    x = model.tensor("x", (1, *size, channels), source, draw.zero())
    w, scales = draw.weights(model, (1, *kernel, out), 3)
    b = draw.bias(model, out, [source * s for s in scales])
    y = model.tensor("y", (1, *place, out), draw.scale(-6, 0), draw.zero())
    model.add(
        "DEPTHWISE_CONV_2D",
        [x, w, *b],
        [y],
        padding=padding,
        strideH=stride,
        strideW=stride,
        depthMultiplier=multiplier,
        dilationHFactor=dilation[0],
        dilationWFactor=dilation[1],
        fusedActivationFunction=draw.activation(),
    )
    return model, x, y


def fully_connected(draw: Draw) -> Case:
    model = Model()
    length, out, source = draw.whole(1, 300), draw.whole(1, 20), draw.scale()
    x = model.tensor("x", (1, length), source, draw.zero())
    w, scales = draw.weights(model, (out, length), 0)
    b = draw.bias(model, out, [source * s for s in scales])
    y = model.tensor("y", (1, out), draw.scale(-4, 1), draw.zero())
    # This operator marks a bias that is left out; convolutions drop it.
    model.add(
        "FULLY_CONNECTED", [x, w, *(b or [-1])], [y], fusedActivationFunction=draw.activation()
    )
    return model, x, y


OPERANDS = [
    ((1, 4, 5, 3), (1, 4, 5, 3)),
    ((1, 4, 5, 3), (1, 1, 5, 3)),
    ((1, 4, 5, 3), (1, 4, 1, 1)),
    ((1, 4, 1, 3), (1, 1, 5, 1)),
    ((1, 4, 5, 3), (1, 1, 1, 1)),
]


def binary(kind: str) -> Callable[[Draw], Case]:
    """An operator on two maps: a constant and a map, or two maps made from one."""

    def case(draw: Draw) -> Case:
        model = Model()
        shapes = list(OPERANDS[draw.whole(0, len(OPERANDS) - 1)])
        draw.rng.shuffle(shapes)
        full = np.broadcast_shapes(*shapes)
        options = {"fusedActivationFunction": draw.activation()} if kind in "ADD SUB MUL" else {}
        x = model.tensor("x", full, draw.scale(), draw.zero())
        constant = draw.whole(0, 3)
        operands = []
        for position, shape in enumerate(shapes):
            name = f"operand{position}"
            if constant == position and shapes[1 - position] == full:
                data = random_int8(draw.rng, shape)
                operands.append(model.tensor(name, shape, draw.scale(), draw.zero(), data))
                continue
            made = model.tensor(name, shape, draw.scale(), draw.zero())
            axes = [i for i, size in enumerate(shape) if size != full[i]]
            if axes:
                model.add("MEAN", [x, model.integers("axes", axes)], [made], keepDims=True)
            else:
                model.add("QUANTIZE", [x], [made])
            operands.append(made)
        y = model.tensor("y", full, draw.scale(-7, 0), draw.zero())
        model.add(kind, operands, [y], **options)
        return model, x, y

    return case


def mean(draw: Draw) -> Case:
    model = Model()
    shape = (1, draw.whole(2, 30), draw.whole(2, 30), draw.whole(2, 30))
    axes = sorted(draw.rng.choice([1, 2, 3], draw.whole(1, 2), replace=False).tolist())
    keep = bool(draw.whole(0, 1))
    out = [1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes]
    stored = [axis - 4 if draw.whole(0, 1) else axis for axis in axes]
    x = model.tensor("x", shape, draw.scale(), draw.zero())
    y = model.tensor("y", out, draw.scale(), draw.zero())
    model.add("MEAN", [x, model.integers("axes", stored)], [y], keepDims=keep)
    return model, x, y


def unary(kind: str, scale: tuple[float, float]) -> Callable[[Draw], Case]:
    """An operator on one value at a time."""

    def case(draw: Draw) -> Case:
        model = Model()
        fixed = kind in ("LOGISTIC", "SOFTMAX")
        zero = -128 if kind == "RSQRT" else draw.zero()
        shape = (1, draw.whole(1, 4), draw.whole(1, 64))
        x = model.tensor("x", shape, draw.scale(*scale), zero)
        quantised = (1 / 256, -128) if fixed else (draw.scale(-8, 3), draw.zero())
        y = model.tensor("y", shape, *quantised)
        model.add(kind, [x], [y], **({"beta": 1.0} if kind == "SOFTMAX" else {}))
        return model, x, y

    return case


def pool(kind: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        model = Model()
        padding = draw.whole(0, 1)
        size = [draw.whole(2, 11) for _ in "hw"]
        kernel = [draw.whole(1, min(n, 5)) for n in size]
        stride = [draw.whole(1, 3) for _ in "hw"]
        place = [
            output_size(n, e, s, padding) for n, e, s in zip(size, kernel, stride, strict=True)
        ]
        quantised = (draw.scale(), draw.zero())
        x = model.tensor("x", (1, *size, 3), *quantised)
        y = model.tensor("y", (1, *place, 3), *quantised)
        model.add(
            kind,
            [x],
            [y],
            padding=padding,
            strideH=stride[0],
            strideW=stride[1],
            filterHeight=kernel[0],
            filterWidth=kernel[1],
            fusedActivationFunction=draw.activation(),
        )
        return model, x, y

    return case


def pad(draw: Draw) -> Case:
    model, shape = Model(), (1, 3, 4, 2)
    amounts = [[0, 0], *draw.rng.integers(0, 3, (3, 2)).tolist()]
    quantised = (draw.scale(), draw.zero())
    x = model.tensor("x", shape, *quantised)
    out = [size + sum(amount) for size, amount in zip(shape, amounts, strict=True)]
    y = model.tensor("y", out, *quantised)
    model.add("PAD", [x, model.integers("paddings", amounts)], [y])
    return model, x, y


def transpose(draw: Draw) -> Case:
    model, shape = Model(), (1, 3, 4, 2)
    order = [0, *draw.rng.permutation([1, 2, 3]).tolist()]
    quantised = (draw.scale(), draw.zero())
    x = model.tensor("x", shape, *quantised)
    y = model.tensor("y", [shape[i] for i in order], *quantised)
    model.add("TRANSPOSE", [x, model.integers("permutation", order)], [y])
    return model, x, y


def reshape(draw: Draw) -> Case:
    model = Model()
    quantised = (draw.scale(), draw.zero())
    x = model.tensor("x", (1, 3, 4, 2), *quantised)
    y = model.tensor("y", (1, 6, 4), *quantised)
    model.add("RESHAPE", [x, model.integers("shape", [1, -1, 4])], [y], newShape=[1, 6, 4])
    return model, x, y


CASES: dict[str, Callable[[Draw], Case]] = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "ADD": binary("ADD"),
    "SUB": binary("SUB"),
    "MUL": binary("MUL"),
    "SQUARED_DIFFERENCE": binary("SQUARED_DIFFERENCE"),
    "MEAN": mean,
    "RSQRT": unary("RSQRT", (-20, 2)),
    # Beyond these scales tflite-runtime and TFLM differ from each other: see ops/logistic.py.
    "LOGISTIC": unary("LOGISTIC", (-6.9, 0.9)),
    "QUANTIZE": unary("QUANTIZE", (-8, 3)),
    "SOFTMAX": unary("SOFTMAX", (-9, 3)),
    "AVERAGE_POOL_2D": pool("AVERAGE_POOL_2D"),
    "MAX_POOL_2D": pool("MAX_POOL_2D"),
    "PAD": pad,
    "TRANSPOSE": transpose,
    "RESHAPE": reshape,
}


@pytest.mark.parametrize("kind", CASES)
def test_equals_both_oracles(kind: str) -> None:
    draw = Draw(sum(map(ord, kind)))
    for _ in range(GRAPHS_EACH):
        model, x, y = CASES[kind](draw)
        data = model.pack([x], [y])
        graph = parse(data)
        inputs = random_int8(draw.rng, (2, *graph.tensors[x].shape[1:]))
        report = verify(graph, data, inputs, list(ORACLES.values()))
        assert report.ok, report


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(PREPARE)


def table_of(
    kind: str, scale: float, zero: int, out: tuple[float, int]
) -> tuple[bytes, np.ndarray]:
    """A model of one operator on all 256 int8 values, and those values."""
    model = Model()
    x = model.tensor("x", (1, 256), scale, zero)
    y = model.tensor("y", (1, 256), *out)
    model.add(kind, [x], [y])
    return model.pack([x], [y]), np.arange(-128, 128, dtype=np.int8)[None]


@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-7, 2.0, 4.0, 9.5])
def test_logistic_is_tflm_where_the_oracles_differ(scale: float) -> None:
    """At ties and on coarse scales tflite-runtime rounds a float table; the device does not."""
    data, inputs = table_of("LOGISTIC", scale, 0, (1 / 256, -128))
    report = verify(parse(data), data, inputs, list(ORACLES.values()))
    by_name = {result.name: result.mismatches for result in report.oracles}
    assert by_name["tflite-micro"] == 0
    assert 0 < by_name["tflite-runtime"] < 4


def test_every_int8_value_of_rsqrt() -> None:
    rng = np.random.default_rng(5)
    for exponent in range(-24, 5):
        scales = (2.0**exponent, float(np.float32(2.0 ** rng.uniform(-8, 6))))
        data, inputs = table_of("RSQRT", scales[0], -128, (scales[1], int(rng.integers(-128, 128))))
        assert verify(parse(data), data, inputs, list(ORACLES.values())).ok


def test_rsqrt_refuses_a_negative_number_as_the_oracles_do() -> None:
    data, inputs = table_of("RSQRT", 0.5, 0, (0.25, -128))
    with pytest.raises(InputError, match=r"'y': input -128 is below its zero point 0"):
        Interpreter(parse(data)).run(inputs)
    assert Interpreter(parse(data)).run(np.abs(inputs.clip(-127)))[0, 128] == 127
    for oracle in ORACLES.values():
        with pytest.raises(InputError, match="refuses"):
            session(oracle, data, parse(data))(inputs)


def one(kind: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], **options: object) -> Model:
    """One operator on an activation and (from the second shape on) int8 constants."""
    model = Model()
    inputs = [model.tensor("x", shapes[0], 0.5, 0)]
    for shape in shapes[1:]:
        inputs.append(model.tensor("c", shape, 0.5, 0, np.ones(shape)))
    output = model.tensor("layer", out, 0.5, 0)
    model.add(kind, inputs, [output], **options)
    return model


def refused(model: Model, message: str) -> None:
    """The graph is read; its operator is refused by an error that names the layer."""
    graph = parse(model.pack([0], model.operators[-1].outputs))
    with pytest.raises(InputError, match=message) as caught:
        prepare(graph.operators[-1], graph)
    assert "'layer'" in str(caught.value)


CONV = {"strideH": 1, "strideW": 1}
POOL = {**CONV, "filterHeight": 2, "filterWidth": 2}


@pytest.mark.parametrize(
    ("kind", "shapes", "out", "options", "message"),
    [
        ("CONV_2D", [(1, 4, 4, 2), (3, 1, 1, 5)], (1, 4, 4, 3), CONV, "filter has shape"),
        ("CONV_2D", [(1, 4, 4, 2), (3, 1, 1, 2)], (1, 4, 5, 3), CONV, "output has shape"),
        ("CONV_2D", [(1, 4, 4, 2), (3, 1, 1, 2)], (1, 4, 4, 3), {}, "stride_h=0"),
        ("CONV_2D", [(1, 4, 2), (3, 1, 1, 2)], (1, 4, 3), CONV, "input has shape"),
        ("CONV_2D", [(1, 4, 4, 2)], (1, 4, 4, 2), CONV, "inputs=1"),
        ("CONV_2D", [(1, 4, 4, 2), (3, 1, 1, 2), (3,)], (1, 4, 4, 3), CONV, "bias has dtype=int8"),
        ("CONV_2D", [(2, 4, 4, 2), (3, 1, 1, 2)], (2, 4, 4, 3), CONV, "batch must be 1"),
        (
            "CONV_2D",
            [(1, 2, 2, 2), (3, 5, 5, 2)],
            (1, 1, 1, 3),
            {**CONV, "padding": 1},
            "does not fit",
        ),
        (
            "CONV_2D",
            [(1, 4, 4, 2), (3, 1, 1, 2)],
            (1, 4, 4, 3),
            {**CONV, "fusedActivationFunction": 4},
            "fused activation=TANH",
        ),
        (
            "DEPTHWISE_CONV_2D",
            [(1, 4, 4, 2), (1, 1, 1, 4)],
            (1, 4, 4, 4),
            {**CONV, "depthMultiplier": 1},
            "depth_multiplier=1",
        ),
        (
            "DEPTHWISE_CONV_2D",
            [(1, 4, 4, 2), (1, 1, 1, 3)],
            (1, 4, 4, 3),
            {**CONV, "depthMultiplier": 1},
            "filter has shape",
        ),
        ("FULLY_CONNECTED", [(1, 6), (4, 5)], (1, 4), {}, "weights have shape"),
        ("FULLY_CONNECTED", [(1, 6), (4, 3)], (2, 4), {}, "2 rows"),
        ("FULLY_CONNECTED", [(1, 6), (4, 6)], (1, 4), {"weightsFormat": 1}, "weights_format=1"),
        ("ADD", [(1, 4, 3), (1, 5, 3)], (1, 4, 3), {}, "do not broadcast"),
        ("ADD", [(1, 4, 3), (2, 4, 3)], (2, 4, 3), {}, "batch must be 1"),
        ("MUL", [(1, 4, 3), (1, 4, 3)], (1, 4, 1), {}, "output has shape"),
        ("MEAN", [(1, 4, 3), (1,)], (1, 3), {}, "dtype=int8"),
        ("RSQRT", [(1, 4)], (1, 5), {}, "output has shape"),
        ("LOGISTIC", [(1, 4)], (1, 4), {}, "the kernels allow"),
        ("SOFTMAX", [(1, 4)], (1, 4), {"beta": 1.0}, "the kernels allow"),
        ("AVERAGE_POOL_2D", [(1, 4, 4, 2)], (1, 4, 4, 2), CONV, "filter_height=0"),
        ("MAX_POOL_2D", [(1, 4, 4, 2)], (1, 4, 4, 3), POOL, "output has shape"),
        ("RESHAPE", [(1, 4)], (1, 2, 2), {"newShape": [1, 2, 3]}, "does not hold"),
        ("RESHAPE", [(1, 4)], (1, 2, 2), {}, "does not hold"),
    ],
)
def test_refuses_by_layer(
    kind: str,
    shapes: list[tuple[int, ...]],
    out: tuple[int, ...],
    options: dict[str, object],
    message: str,
) -> None:
    refused(one(kind, shapes, out, **options), message)


@pytest.mark.parametrize(
    ("kind", "values", "out", "message"),
    [
        ("MEAN", [0, 1], (4,), "not the batch"),
        ("MEAN", [3], (1, 4, 3), "allowed are -3 to 2"),
        ("PAD", [[1, 0], [0, 0], [0, 0]], (2, 4, 3), "none for the batch"),
        ("PAD", [[0, 0], [-1, 0], [0, 0]], (1, 3, 3), "from 0"),
        ("PAD", [[0, 0], [1, 0]], (1, 5, 3), "two numbers"),
        ("TRANSPOSE", [1, 0, 2], (4, 1, 3), "0 first"),
        ("TRANSPOSE", [0, 1, 1], (1, 4, 4), "0 first"),
        ("RESHAPE", [-1, -1], (1, 12), "does not hold"),
        ("RESHAPE", [0, 5], (1, 12), "does not hold"),
    ],
)
def test_refuses_constants_by_layer(
    kind: str, values: list[int], out: tuple[int, ...], message: str
) -> None:
    model = Model()
    x = model.tensor("x", (1, 4, 3), 0.5, 0)
    y = model.tensor("layer", out, 0.5, 0)
    model.add(kind, [x, model.integers("c", values)], [y])
    refused(model, message)


def test_refuses_what_the_kernels_abort_on() -> None:
    """QuantizeMultiplierSmallerThanOneExp kills the process at 1 and above."""
    model = Model()
    x = model.tensor("x", (1, 4), 2.0**20, 0)
    c = model.tensor("c", (1, 4), 1.0, 0, np.ones(4))
    y = model.tensor("layer", (1, 4), 1.0, 0)
    model.add("ADD", [x, c], [y])
    refused(model, "over 2\\^19 times")


def test_refuses_a_sum_that_could_overflow() -> None:
    model = Model()
    x = model.tensor("x", (1, 4), 0.5, 0)
    w = model.tensor("w", (1, 4), 0.5, 0, np.full((1, 4), 127))
    b = model.tensor("b", (1,), 0.25, 0, np.array([2**31 - 1]), "int32")
    y = model.tensor("layer", (1, 1), 0.5, 0)
    model.add("FULLY_CONNECTED", [x, w, b], [y])
    refused(model, "int32 sum can reach")


def test_refuses_two_constants_and_changed_scales() -> None:
    model = Model()
    model.tensor("x", (1, 4), 0.5, 0)
    c = model.tensor("c", (1, 4), 0.5, 0, np.ones(4))
    y = model.tensor("layer", (1, 4), 0.5, 0)
    model.add("ADD", [c, c], [y])
    refused(model, "both inputs are constants")
    model = Model()
    x = model.tensor("x", (1, 4), 0.5, 0)
    y = model.tensor("layer", (1, 4), 0.25, 0)
    model.add("RESHAPE", [x, model.integers("shape", [1, 4])], [y])
    refused(model, "needs them equal")


@pytest.mark.parametrize(
    ("kind", "scales", "message"),
    [
        ("QUANTIZE", (1e30, 1e-30), "multiplier of 1e"),
        ("RSQRT", (1e-45, 1e-45), "too small"),
        ("RSQRT", (1e-45, 1e-20), "multiplier of"),
        ("LOGISTIC", (16.0, 1 / 256), "input scale=16"),
        ("LOGISTIC", (1e-9, 1 / 256), "input scale=9"),
        ("SOFTMAX", (1e-9, 1 / 256), "must be over 2"),
    ],
)
def test_absurd_scales_are_refused(kind: str, scales: tuple[float, float], message: str) -> None:
    model = Model()
    x = model.tensor("x", (1, 4), scales[0], -128)
    y = model.tensor("layer", (1, 4), scales[1], -128)
    model.add(kind, [x], [y], **({"beta": 1.0} if kind == "SOFTMAX" else {}))
    refused(model, message)


@pytest.mark.parametrize("scale", [1e-38, 3e38])
def test_a_clamp_on_an_absurd_scale(scale: float) -> None:
    model = Model()
    x = model.tensor("x", (1, 4), scale, 0)
    y = model.tensor("layer", (1, 4), scale, 0)
    model.add("MUL", [x, x], [y], fusedActivationFunction=3)
    refused(model, "multiplier of" if scale > 1 else "too small for its activation")
