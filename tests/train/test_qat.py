"""Fake quantisation against the INT8 rules, and against the integer interpreter itself."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from firmware_ref import scheme
from firmware_ref.arch import Network
from firmware_ref.graph import Graph, Operator, Quantization
from firmware_ref.quantize import quantize_graph
from firmware_ref.run import Interpreter
from tests.train.devices import activations, inputs
from train.model import BCResNetMod
from train.qat import DeviceNetwork
from train.ranges import calibrate

Build = Callable[..., BCResNetMod]
Device = Callable[[BCResNetMod], DeviceNetwork]


def convolutions(device: DeviceNetwork) -> list[Operator]:
    return [o for o in device.graph.operators if o.kind in scheme.WEIGHT_AXIS]


# Activations


def test_every_activation_lies_on_its_grid(quantized: DeviceNetwork) -> None:
    seen = activations(quantized, inputs(4, 3))
    assert list(seen) == quantized.activations
    for name, value in seen.items():
        q = quantized.quantization[name]
        again = scheme.dequantize(scheme.quantize(value, q), q)
        np.testing.assert_array_equal(again, value, err_msg=name)
        low, high = (q.scale[0] * (end - q.zero_point[0]) for end in (-128, 127))
        assert value.min() >= low - 1e-6 and value.max() <= high + 1e-6


def test_the_grid_test_sees_a_value_off_the_grid() -> None:
    q = Quantization((0.5,), (0,))
    value = np.array([1.0, 1.25], np.float32)
    again = scheme.dequantize(scheme.quantize(value, q), q)
    assert np.array_equal(again == value, [True, False])


def test_every_activation_needs_a_grid(quantized: DeviceNetwork) -> None:
    grids = dict(quantized.quantization)
    grids.pop("logits")
    with pytest.raises(AssertionError):
        quantized.set_quantization(grids)


# Weights


def test_weights_lie_on_the_grid_of_the_scheme(quantized: DeviceNetwork) -> None:
    constants = quantized.float_constants()
    for operator in convolutions(quantized):
        axis = scheme.WEIGHT_AXIS[operator.kind]
        x, w, b = (quantized.graph.tensors[i].name for i in operator.inputs)
        if w not in constants:
            continue
        source = quantized.quantization[x].scale[0]
        scale = scheme.weight_scale(constants[w], constants[b], source, axis)
        np.testing.assert_array_equal(quantized.weight_scales(operator), scale)
        codes = scheme.quantize_weight(constants[w], scale, axis)
        along = scale.reshape([-1 if a == axis else 1 for a in range(4)])
        expected = codes.astype(np.float32) * along
        with torch.no_grad():
            weight, bias = quantized.weight_and_bias(operator)
        order = (0, 3, 1, 2) if axis == 0 else (3, 0, 1, 2)
        # w + (rounded - w) may differ from rounded by float32 rounding, far below a step.
        error = np.abs(weight.numpy() - expected.transpose(order))
        assert (error <= 1e-4 * along.transpose(order)).all(), w
        steps = scheme.bias_scale(source, scale)
        expected = scheme.quantize_bias(constants[b], steps) * steps.astype(np.float64)
        # float32 holds a large bias to 2^-24 of itself, which may be more than a step.
        slack = np.maximum(1e-4 * steps, np.abs(expected) * 2.0**-22)
        assert (np.abs(bias.numpy() - expected) <= slack).all(), b


def test_given_weights_are_127_steps_and_no_parameters(quantized: DeviceNetwork) -> None:
    """Those that make a mean: one over the number of channels or frames each."""
    constants, checked = quantized.float_constants(), set()
    for operator in convolutions(quantized):
        _, w, b = (quantized.graph.tensors[i] for i in operator.inputs)
        if w.name in constants:
            continue
        size = max(w.shape)
        assert w.shape in ((1, 1, 1, size), (1, 1, size, 1))
        weight, bias = quantized.weight_and_bias(operator)
        assert not weight.requires_grad and not bias.requires_grad and not bias.any()
        assert b.name not in constants
        # In torch's order the channels come second.
        assert weight.shape == ((1, size, 1, 1) if w.shape[3] == size else (1, 1, 1, size))
        step = np.float32(1 / size / 127)
        np.testing.assert_array_equal(weight.numpy(), np.float32(127) * step)
        np.testing.assert_array_equal(quantized.weight_scales(operator), [step])
        checked.add(size)
    # Channels and frames at the input and after both stages.
    assert checked == {3, 20, 8, 5, 12}


def test_gradients_pass_straight_through(quantized: DeviceNetwork) -> None:
    quantized.train()
    loss = functional.cross_entropy(quantized(inputs(8, 4)), torch.arange(8) % 3)
    loss.backward()
    for name, parameter in quantized.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_gradient_of_a_rounded_weight_is_that_of_the_weight(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    """One convolution: d/dw of a sum over its output is the same with and without rounding."""
    device = folded(trained(tiny_network))
    calibrate(device, [inputs(4, 1)], seed=0)
    (operator,) = [o for o in device.graph.operators if device.graph.name(o) == "classifier"]
    x = torch.ones(1, 16, 1, 1)
    weight, _ = device.weight_and_bias(operator)
    functional.conv2d(x, weight).sum().backward()
    gradient = device.constants["classifier/weight"].grad
    assert gradient is not None and torch.equal(gradient, torch.ones_like(gradient))


# Single operators


def reference(operator: Operator, graph: Graph, values: dict[str, np.ndarray]) -> np.ndarray:
    """One operator in NumPy, on maps (N, C, F, T)."""
    x = values[graph.tensors[operator.inputs[0]].name]
    options = operator.options
    if operator.kind == "AVERAGE_POOL_2D":
        assert options["padding"] == "VALID"
        height, width = options["filter_height"], options["filter_width"]
        count, channels, bands, frames = x.shape
        assert (bands % height, frames % width) == (0, 0)
        blocks = x.reshape(count, channels, bands // height, height, frames // width, width)
        return blocks.mean(axis=(3, 5), dtype=np.float64)
    if operator.kind == "PAD":
        table = graph.tensors[operator.inputs[1]].data
        assert table is not None
        batch, rows, columns, channels = table.tolist()
        return np.pad(x, (batch, channels, rows, columns))
    if operator.kind == "SLICE":
        begin, size = (graph.tensors[i].data for i in operator.inputs[1:])
        assert begin is not None and size is not None
        _, bands, frames, channels = (
            slice(b, b + n) for b, n in zip(begin.tolist(), size.tolist(), strict=True)
        )
        return x[:, channels, bands, frames]
    parts = [values[graph.tensors[i].name] for i in operator.inputs]
    assert operator.kind == "CONCATENATION" and options["axis"] == 1, "the bands of (N, F, T, C)"
    return np.concatenate(parts, axis=2)


def test_operators_that_move_or_average_maps(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    device = folded(trained(dataclasses.replace(tiny_network, ssn_bands=2)))
    seen, kinds = activations(device, inputs(3, 7)), collections.Counter[str]()
    for operator in device.graph.operators:
        if operator.kind in ("AVERAGE_POOL_2D", "PAD", "SLICE", "CONCATENATION"):
            expected = reference(operator, device.graph, seen)
            found = seen[device.graph.name(operator)]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            kinds[operator.kind] += 1
    # Three blocks, two of which take the mean of their input as well; and the head.
    assert kinds == {"AVERAGE_POOL_2D": 6, "PAD": 3, "SLICE": 6, "CONCATENATION": 3}


def test_given_convolutions_take_means(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    device = folded(trained(tiny_network))
    x = inputs(3, 7)
    seen = activations(device, x)
    np.testing.assert_allclose(
        seen["input_norm.mean"][:, 0, :, 0], x.mean(dim=(1, 3)), rtol=1e-5, atol=1e-6
    )
    variance = torch.var(x, dim=(1, 3), correction=0)
    np.testing.assert_allclose(seen["input_norm.variance"][:, 0, :, 0], variance, rtol=1e-4)


def test_rsqrt_of_zero_is_the_top_of_the_range(quantized: DeviceNetwork) -> None:
    x = inputs(2, 5)
    x[0] = 0  # no variance anywhere
    seen = activations(quantized, x)
    for name in ("input_norm.rsqrt", "stage1.res_norm.rsqrt"):
        q = quantized.quantization[name]
        variance = seen[name.replace("rsqrt", "variance")]
        top = np.float32(q.scale[0]) * np.float32(127 - q.zero_point[0])
        np.testing.assert_allclose(seen[name][variance == 0], top, rtol=1e-6)
        assert np.isfinite(seen[name]).all()
    assert (seen["input_norm.variance"][0] == 0).all()
    assert (seen["input_norm.variance"][1] > 0).any()


def test_rsqrt_of_zero_is_the_top_of_any_range(quantized: DeviceNetwork) -> None:
    grids = dict(quantized.quantization)
    old = grids["input_norm.rsqrt"]
    wide = Quantization((float(np.float32(old.scale[0] * 1024)),), old.zero_point)
    quantized.set_quantization({**grids, "input_norm.rsqrt": wide})
    found = activations(quantized, torch.zeros(1, 3, 32, 20))["input_norm.rsqrt"]
    np.testing.assert_allclose(found, wide.scale[0] * (127 - wide.zero_point[0]), rtol=1e-6)


def test_the_gradient_of_rsqrt_of_zero_is_finite(quantized: DeviceNetwork) -> None:
    x = torch.zeros(2, 3, 32, 20, requires_grad=True)
    quantized(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


# The integers


def test_the_interpreter_agrees_with_the_fake_quantisation(quantized: DeviceNetwork) -> None:
    graph = quantize_graph(quantized.graph, quantized.float_constants(), quantized.quantization, {})
    x = inputs(64, 6)
    with torch.no_grad():
        logits = quantized(x).numpy()
    codes = scheme.quantize(x.permute(0, 2, 3, 1).numpy(), quantized.quantization["input"])
    q = quantized.quantization["logits"]
    integers = Interpreter(graph).run(codes)
    steps = np.abs(integers.astype(int) - scheme.quantize(logits, q))
    assert (integers.argmax(axis=1) == logits.argmax(axis=1)).mean() >= 0.95
    assert steps.max() <= 3 and steps.mean() <= 1, (steps.max(), steps.mean())
    # The logits use much of their range, so that a few steps mean something.
    assert int(integers.max()) - int(integers.min()) > 100


def test_the_agreement_is_lost_when_one_scale_is_nudged(quantized: DeviceNetwork) -> None:
    grids = dict(quantized.quantization)
    old = grids["stage2.block1.sum"]
    scale = float(np.float32(old.scale[0] * 1.25))
    grids["stage2.block1.sum"] = Quantization((scale,), old.zero_point)
    graph = quantize_graph(quantized.graph, quantized.float_constants(), quantized.quantization, {})
    x = inputs(8, 6)
    codes = scheme.quantize(x.permute(0, 2, 3, 1).numpy(), grids["input"])
    integers = Interpreter(graph).run_all(codes)
    index = [t.name for t in graph.tensors].index("stage2.block1.sum")
    quantized.set_quantization(grids)
    theirs = activations(quantized, x)["stage2.block1.sum"].transpose(0, 2, 3, 1)
    theirs = scheme.quantize(theirs, grids["stage2.block1.sum"])
    steps = np.abs(integers[index].astype(int) - theirs)
    assert steps.max() > 4
