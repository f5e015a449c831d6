"""Fake quantisation against the INT8 rules, and against the integer interpreter itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from convert.quantize import quantize_graph
from firmware_ref import scheme
from firmware_ref.arch import Network
from firmware_ref.graph import Quantization
from firmware_ref.run import Interpreter
from train.model import BCResNetMod
from train.qat import DeviceNetwork, calibrate, least_error

Build = Callable[..., BCResNetMod]
Device = Callable[[BCResNetMod], DeviceNetwork]


def inputs(count: int, seed: int) -> torch.Tensor:
    """Random maps (N, 3, 32, 20), each louder in bands of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, 3, 32, 20), generator=generator)
    loud = torch.randint(0, 24, (count,), generator=generator)
    for example, start in zip(x, loud, strict=True):
        example[:, start : start + 8] += 3
    return x


@pytest.fixture(scope="module", params=[1, 2], ids=["S=1", "S=2"])
def calibrated(
    request: pytest.FixtureRequest, tiny_network: Network, trained: Build, folded: Device
) -> DeviceNetwork:
    """A small network on its INT8 grids, with and without a sub-spectral norm that stays."""
    device = folded(trained(dataclasses.replace(tiny_network, ssn_bands=request.param)))
    calibrate(device, [inputs(16, 1), inputs(16, 2)], seed=0)
    return device


@pytest.fixture
def quantized(calibrated: DeviceNetwork) -> DeviceNetwork:
    """A copy for each test to change."""
    return copy.deepcopy(calibrated)


def activations(device: DeviceNetwork, x: torch.Tensor) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}
    with torch.no_grad():
        device(x, lambda name, value: seen.update({name: value.numpy().copy()}))
    return seen


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


def test_tied_and_fixed_scales_win(quantized: DeviceNetwork) -> None:
    graph, q = quantized.graph, quantized.quantization
    checked = set()
    for operator in graph.operators:
        if operator.kind in ("MAX_POOL_2D", "RESHAPE"):
            assert q[graph.name(operator)] == q[graph.tensors[operator.inputs[0]].name]
            checked.add(operator.kind)
        elif operator.kind == "LOGISTIC":
            assert q[graph.name(operator)] == Quantization((1 / 256,), (-128,))
            checked.add(operator.kind)
    assert checked == {"MAX_POOL_2D", "RESHAPE", "LOGISTIC"}


def test_a_tie_reaches_through_another_tie(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    # Without residual norms two pools could follow each other only through a block; the head's
    # RESHAPE after the final MEAN or convolution is the other tie.
    device = folded(trained(dataclasses.replace(tiny_network, head_channels=None)))
    calibrate(device, [inputs(4, 1)], seed=0)
    assert device.quantization["logits"] == device.quantization["head.pool"]


def test_calibration_is_the_same_for_the_same_seed(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    found = []
    for _ in range(2):
        device = folded(trained(tiny_network))
        calibrate(device, [inputs(16, 1)], seed=3)
        found.append(device.quantization)
    assert found[0] == found[1]


def test_calibration_changes_no_weight(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    device = folded(trained(tiny_network))
    before = {name: value.copy() for name, value in device.float_constants().items()}
    calibrate(device, [inputs(4, 1)], seed=0)
    after = device.float_constants()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_every_activation_needs_a_grid(quantized: DeviceNetwork) -> None:
    grids = dict(quantized.quantization)
    grids.pop("logits")
    with pytest.raises(AssertionError):
        quantized.set_quantization(grids)


# Weights


def test_weights_lie_on_the_grid_of_the_scheme(quantized: DeviceNetwork) -> None:
    constants = quantized.float_constants()
    for operator in quantized.graph.operators:
        if operator.kind not in scheme.WEIGHT_AXIS:
            continue
        axis = scheme.WEIGHT_AXIS[operator.kind]
        x, w, b = (quantized.graph.tensors[i].name for i in operator.inputs)
        source = quantized.quantization[x].scale[0]
        scale = scheme.weight_scale(constants[w], constants[b], source, axis)
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


def test_constant_operands_lie_on_the_grid_of_the_scheme(quantized: DeviceNetwork) -> None:
    constants = quantized.float_constants()
    names = [n for n in constants if "ssn" in n or "sub_spectral" in n]
    for name in names:
        scale = scheme.constant_scale(constants[name])
        codes = scheme.quantize_weight(constants[name], scale, 0)
        (index,) = [i for i, t in enumerate(quantized.graph.tensors) if t.name == name]
        with torch.no_grad():
            found = quantized.value(index, {}).numpy()
        expected = (codes.astype(np.float32) * scale).transpose(0, 3, 1, 2)
        assert np.abs(found - expected).max() <= 1e-4 * scale[0]


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


# Ranges of least error


def error_of(x: np.ndarray, q: Quantization) -> float:
    return float(np.square(scheme.dequantize(scheme.quantize(x, q), q) - x).mean())


def test_least_error_beats_the_extremes_of_a_heavy_tail(rng: np.random.Generator) -> None:
    x = rng.standard_normal(300_000).astype(np.float32)
    x[0] = 12
    extremes = scheme.activation_quantization(x.min(), x.max())
    assert error_of(x, least_error(x)) < 0.8 * error_of(x, extremes)


def test_least_error_is_never_worse_than_the_extremes(rng: np.random.Generator) -> None:
    samples = [
        rng.uniform(-1, 3, 1000),
        np.abs(rng.standard_normal(1000)),
        -np.abs(rng.standard_cauchy(1000)),
        np.array([0.0, 5.0]),
        np.array([-1e-30, 1e-30]),
        np.zeros(3),
        np.full(10, 7.0),
    ]
    for sample in samples:
        x = sample.astype(np.float32)
        extremes = scheme.activation_quantization(x.min(), x.max())
        assert error_of(x, least_error(x)) <= error_of(x, extremes)


def test_least_error_keeps_the_range_of_a_uniform_sample() -> None:
    x = np.linspace(0, 255, 256, dtype=np.float32)
    assert least_error(x) == Quantization((1.0,), (-128,))


def test_least_error_ignores_infinities() -> None:
    x = np.array([0, 1, 255, np.inf, np.nan], np.float32)
    assert least_error(x).scale[0] <= 1.0


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
