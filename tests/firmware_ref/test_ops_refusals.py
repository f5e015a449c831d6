"""What every operator refuses: an error that names the layer, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from firmware_ref.ops import prepare
from tests.firmware_ref.build import Model


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
        ("FULLY_CONNECTED", [(1, 2, 6), (4, 3)], (1, 2, 4), {"keepNumDims": True}, "last axis"),
        ("FULLY_CONNECTED", [(1, 2, 3), (4, 6)], (1, 2, 4), {"keepNumDims": True}, "last axis"),
        ("MUL", [(1, 2, 2, 2, 3), (3,)], (1, 2, 2, 2, 3), {}, "at most 4 sizes"),
        ("ADD", [(1, 2, 2, 3), (1, 1, 1, 1, 3)], (1, 1, 2, 2, 3), {}, "at most 4 sizes"),
        ("RESHAPE", [(1, 4)], (1, 1, 2, 2, 1), {"newShape": [1, 1, 2, 2, 1]}, "at most 4 sizes"),
        ("LOGISTIC", [(1, 1, 1, 1, 2)], (1, 1, 1, 1, 2), {}, "at most 4 sizes"),
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
        ("RESHAPE", [[1, 12]], (1, 12), r"shape=\(1, 2\); allowed are .* of rank 1"),
        ("RESHAPE", 12, (12,), r"shape=\(\); allowed are .* of rank 1"),
        ("TRANSPOSE", [[0, 2, 1]], (1, 3, 4), r"shape=\(1, 3\); allowed are .* of rank 1"),
        ("MEAN", [[1, 2]], (1,), r"shape=\(1, 2\); allowed are .* of rank 0 or 1"),
        ("PAD", [0, 0, 1, 0, 0, 0], (1, 5, 3), r"shape=\(6,\); allowed are .* of rank 2"),
        ("PAD", [[0, 0, 1], [0, 0, 0]], (1, 5, 3), r"of shape=\(2, 3\); allowed are two numbers"),
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


def test_an_axis_may_be_a_scalar() -> None:
    model = Model()
    x = model.tensor("x", (1, 4, 3), 0.5, 0)
    y = model.tensor("layer", (1, 3), 0.5, 0)
    model.add("MEAN", [x, model.integers("c", 1)], [y])
    graph = parse(model.pack([x], [y]))
    assert prepare(graph.operators[0], graph)(np.ones((2, 4, 3), np.int8)).tolist() == [[1] * 3] * 2


@pytest.mark.parametrize(
    ("begin", "size", "out", "message"),
    [
        ([[0, 1, 0]], [[1, 2, 3]], (1, 2, 3), "of rank 1"),
        ([0, 0], [1, 4], (1, 4, 3), "needs 3 of each"),
        ([0, -1, 0], [1, 2, 3], (1, 2, 3), "leave the input"),
        ([0, 3, 0], [1, 2, 3], (1, 2, 3), "leave the input"),
        ([0, 4, 0], [1, -1, 3], (1, 1, 3), "leave the input"),
        ([0, 1, 0], [1, 0, 3], (1, 1, 3), "leave the input"),
        ([0, 1, 0], [1, -2, 3], (1, 1, 3), "leave the input"),
        ([1, 0, 0], [-1, 4, 3], (1, 4, 3), "leave the input"),
        ([0, 1, 0], [1, -1, 3], (1, 2, 3), "output has shape"),
    ],
)
def test_refuses_slices(
    begin: list[int], size: list[int], out: tuple[int, ...], message: str
) -> None:
    model = Model()
    x = model.tensor("x", (1, 4, 3), 0.5, 0)
    y = model.tensor("layer", out, 0.5, 0)
    model.add("SLICE", [x, model.integers("begin", begin), model.integers("size", size)], [y])
    refused(model, message)


@pytest.mark.parametrize(
    ("shapes", "out", "options", "message"),
    [
        ([(1, 4, 3)], (1, 4, 3), {"axis": 0}, "but the batch"),
        ([(1, 4, 3)], (1, 4, 3), {"axis": -3}, "but the batch"),
        ([(1, 4, 3), (1, 4, 3)], (2, 4, 3), {"axis": 0}, "batch must be 1"),
        ([(1, 4, 3), (1, 4, 3)], (1, 8, 3), {"axis": 3}, "axis=3"),
        ([(1, 4, 3), (1, 4, 3)], (1, 8, 3), {"axis": -4}, "axis=-4"),
        ([(1, 4, 3), (1, 4, 2)], (1, 8, 3), {"axis": 1}, "do not fit together"),
        ([(1, 4, 3), (1, 4)], (1, 8, 3), {"axis": 1}, "do not fit together"),
        ([(1, 4, 3), (1, 4, 3)], (1, 7, 3), {"axis": 1}, "output has shape"),
        ([(1, 4), (1, 4)], (1, 8), {"axis": 1, "fusedActivationFunction": 1}, "activation=RELU"),
        ([], (1, 8), {"axis": 1}, "inputs=0"),
    ],
)
def test_refuses_concatenations(
    shapes: list[tuple[int, ...]], out: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    model = Model()
    model.tensor("x", (1, 4), 0.5, 0)
    parts = []
    for number, shape in enumerate(shapes):
        parts.append(model.tensor(f"part{number}", shape, 0.5, 0))
        model.add("RESHAPE", [0], [parts[-1]], newShape=list(shape))
    y = model.tensor("layer", out, 0.5, 0)
    model.add("CONCATENATION", parts, [y], **options)
    refused(model, message)


def test_refuses_parts_on_another_grid_or_constant() -> None:
    for scale, data, message in ((0.25, None, "needs them equal"), (0.5, np.ones((1, 4)), "vary")):
        model = Model()
        x = model.tensor("x", (1, 4), 0.5, 0)
        other = model.tensor("other", (1, 4), scale, 0, data)
        if data is None:
            model.add("QUANTIZE", [x], [other])
        y = model.tensor("layer", (1, 8), 0.5, 0)
        model.add("CONCATENATION", [x, other], [y], axis=1)
        refused(model, message)


@pytest.mark.parametrize("shape", [(1, 5, 6), (1, 1, 6)])
def test_refuses_rows_with_a_scale_a_channel(shape: tuple[int, ...]) -> None:
    """tflite-runtime takes the output's first two sizes for the rows and the channels."""
    model = Model()
    x = model.tensor("x", shape, 0.5, 0)
    w = model.tensor("w", (4, 6), [0.5, 0.25, 0.5, 0.5], 0, np.ones((4, 6)))
    y = model.tensor("layer", (*shape[:-1], 4), 0.5, 0)
    model.add("FULLY_CONNECTED", [x, w, -1], [y], keepNumDims=True)
    refused(model, "tflite-runtime computes \\(1, 4\\) only")


def test_refuses_a_depthwise_bias_listed_as_absent() -> None:
    """TFLM reads it and dies; without a third input it runs."""
    model = one("DEPTHWISE_CONV_2D", [(1, 4, 4, 2), (1, 1, 1, 2)], (1, 4, 4, 2), **CONV)
    model.operators[-1].builtinOptions.depthMultiplier = 1
    graph = parse(model.pack([0], model.operators[-1].outputs))
    prepare(graph.operators[0], graph)
    model.operators[-1].inputs.append(-1)
    refused(model, "bias is listed as -1")


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
