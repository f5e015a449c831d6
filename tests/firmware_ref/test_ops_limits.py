"""Numbers and sizes that every operator refuses: absurd scales, and what would take too long."""

from __future__ import annotations

import time

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from firmware_ref.ops import prepare
from tests.firmware_ref.build import Model
from tests.firmware_ref.test_ops_refusals import CONV, one, refused


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        ("ADD", (2.0**19, 1.0)),
        ("SUB", (2.0**20, 1.0)),
        ("SQUARED_DIFFERENCE", (1.0, 2.0**-12)),
        ("SQUARED_DIFFERENCE", (1.0, 2.0**-14)),
    ],
)
def test_refuses_what_the_kernels_abort_on(kind: str, scales: tuple[float, float]) -> None:
    """QuantizeMultiplierSmallerThanOneExp kills the process at 1 and above."""
    model = Model()
    x = model.tensor("x", (1, 4), scales[0], 0)
    c = model.tensor("c", (1, 4), 1.0, 0, np.ones(4))
    y = model.tensor("layer", (1, 4), scales[1], 0)
    model.add(kind, [x, c], [y])
    refused(model, "the kernels allow less than 1")


def test_refuses_more_classes_than_the_kernels_can_shift() -> None:
    model = Model()
    x = model.tensor("x", (1, 512), 0.5, 0)
    y = model.tensor("layer", (1, 512), 1 / 256, -128)
    model.add("SOFTMAX", [x], [y], beta=1.0)
    refused(model, "C up to 511")


def test_refuses_a_sum_that_could_overflow() -> None:
    model = Model()
    x = model.tensor("x", (1, 4), 0.5, 0)
    w = model.tensor("w", (1, 4), 0.5, 0, np.full((1, 4), 127))
    b = model.tensor("b", (1,), 0.25, 0, np.array([2**31 - 1]), "int32")
    y = model.tensor("layer", (1, 1), 0.5, 0)
    model.add("FULLY_CONNECTED", [x, w, b], [y])
    refused(model, "int32 sum can reach")


@pytest.mark.parametrize("operators", [1, 64])
def test_refuses_weights_too_large_to_be_repeated(operators: int) -> None:
    """Depthwise weights are repeated along a row; the operators of a graph share the room."""
    frames, taps = (2**14, 2**13) if operators == 1 else (2**10, 2**12)
    model = Model()
    x = model.tensor("x", (1, 1, frames, 1), 0.5, 0)
    w = model.tensor("c", (1, 1, taps, 1), 0.5, 0, np.ones(taps))
    for number in range(operators):
        y = model.tensor(f"{number or 'layer'}", (1, 1, frames, 1), 0.5, 0)
        model.add("DEPTHWISE_CONV_2D", [x, w], [y], **CONV, depthMultiplier=1, dilationWFactor=1)
    graph = parse(model.pack([x], [y]))
    with pytest.raises(InputError, match=r"'layer': input .* are too large to run"):
        prepare(graph.operators[0], graph)


def test_a_deep_network_may_pool_a_whole_map() -> None:
    """2,000 operators: none has a part of the taps that would do."""
    model = Model()
    first = before = model.tensor("x", (1, 64, 64, 1), 0.5, 0)
    options = {"strideH": 1, "strideW": 1, "padding": 1}
    for number in range(1999):
        after = model.tensor(f"{number}", (1, 64, 64, 1), 0.5, 0)
        model.add("MAX_POOL_2D", [before], [after], **options, filterHeight=1, filterWidth=1)
        before = after
    y = model.tensor("layer", (1, 1, 1, 1), 0.5, 0)
    model.add("MAX_POOL_2D", [before], [y], **options, filterHeight=64, filterWidth=64)
    graph = parse(model.pack([first], [y]))
    prepare(graph.operators[-1], graph)


@pytest.mark.parametrize(
    ("kind", "size", "kernel", "stride", "channels"),
    [
        ("MAX_POOL_2D", (1, 1), (600, 600), 1, 1),  # taps
        ("AVERAGE_POOL_2D", (1, 1), (65536, 65536), 1, 1),
        ("AVERAGE_POOL_2D", (2**12, 1), (1, 2**16), 2**12, 1),  # padding
        ("MAX_POOL_2D", (2**9, 2**9), (30, 30), 1, 1),  # inputs under all taps
        ("DEPTHWISE_CONV_2D", (2**10, 2**10), (1, 1), 2**16, 2**10),  # channels repeated
        ("CONV_2D", (2**9, 2**9), (1, 512), 1, 1),
    ],
)
def test_refuses_windows_too_large_to_run(
    kind: str, size: tuple[int, int], kernel: tuple[int, int], stride: int, channels: int
) -> None:
    """A file that asks for them can be small."""
    out = tuple(-(-n // stride) for n in size)
    shapes, options = [(1, *size, 1)], {"strideH": stride, "strideW": stride}
    if kind.endswith("POOL_2D"):
        options |= {"filterHeight": kernel[0], "filterWidth": kernel[1]}
    else:
        shapes.append((1, *kernel, channels))
    if kind == "DEPTHWISE_CONV_2D":
        options["depthMultiplier"] = channels
    model = one(kind, shapes, (1, *out, channels), **options)
    graph = parse(model.pack([0], [len(shapes)]))
    started = time.process_time()
    with pytest.raises(InputError, match=r"'layer': input .* are too large to run: .* give a sma"):
        prepare(graph.operators[0], graph)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("kind", "scales", "message"),
    [
        ("QUANTIZE", (1e30, 1e-30), "multiplier of 1e"),
        ("RSQRT", (1e-45, 1e-45), "too small"),
        ("RSQRT", (1e-45, 1e-20), "multiplier of"),
        ("RSQRT", (2.0**14, 2.0**6), "is 8192; allowed is up to 4,096"),
        ("RSQRT", (2.0**24, 1.01), "allowed is up to 4,096"),
        ("RSQRT", (2.0**60, 2.0**3), "allowed is up to 4,096"),
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
