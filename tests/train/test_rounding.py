"""The simulated network lands on the codes of the integer kernels, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from firmware_ref import scheme
from firmware_ref.arch import Network
from firmware_ref.graph import Operator, Quantization
from firmware_ref.run import Interpreter
from tests.train.devices import inputs, windows
from train import rounding
from train.device import device_graph, layer_fidelity
from train.model import BCResNetMod
from train.qat import DeviceNetwork
from train.ranges import calibrate

Make = Callable[[int, int, str], DeviceNetwork]


@pytest.fixture
def random_device(
    tiny_network: Network,
    trained: Callable[..., BCResNetMod],
    folded: Callable[[BCResNetMod], DeviceNetwork],
) -> Make:
    """A small network of a seed, its sub-bands and its first residual norm; on grids."""

    def make(seed: int, bands: int, first: str) -> DeviceNetwork:
        network = dataclasses.replace(tiny_network, ssn_bands=bands, first_res_norm=first)
        device = folded(trained(network, seed))
        calibrate(device, [inputs(16, seed)], seed)
        return device

    return make


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize("first", ["input", "stem"])
def test_no_layer_is_off_by_more_than_one_code_or_often(
    random_device: Make, seed: int, bands: int, first: str
) -> None:
    device = random_device(seed, bands, first)
    for layer in layer_fidelity(device, windows(24, 100 + seed)):
        assert layer.largest == 1, layer
        # RSQRT is a table of 256 results, one or two of them off: as often as its code occurs.
        assert layer.share <= (0.03 if layer.op == "RSQRT" else 0.01), layer


@pytest.mark.parametrize("bands", [1, 2])
def test_without_the_kernels_rounding_average_pools_are_off(
    random_device: Make, bands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = random_device(0, bands, "input")
    x = windows(24, 100)

    def pools() -> list[float]:
        found = layer_fidelity(device, x)
        return [layer.share for layer in found if layer.op == "AVERAGE_POOL_2D"]

    assert pools() == []
    monkeypatch.setattr(rounding, "as_the_kernel", lambda network, operator, y: y)
    shares = pools()
    # Of 32 rows a mean lies on a half in about one of 32; half of those go the other way.
    assert len(shares) == 6 and max(shares) > 0.02


@pytest.mark.parametrize("bands", [1, 2])
def test_a_network_of_such_layers_agrees_with_its_interpreter(
    random_device: Make, bands: int
) -> None:
    device = random_device(1, bands, "stem")
    x = inputs(32, 200)
    with torch.no_grad():
        logits = scheme.quantize(device(x).numpy(), device.quantization["logits"])
    codes = scheme.quantize(x.permute(0, 2, 3, 1).numpy(), device.quantization["input"])
    integers = Interpreter(device_graph(device)).run(codes)
    steps = np.abs(integers.astype(int) - logits)
    assert steps.max() <= 2 and (steps > 0).mean() < 0.25, steps


# Average pools


def pool_of(device: DeviceNetwork, name: str) -> Operator:
    (operator,) = [o for o in device.graph.operators if device.graph.name(o) == name]
    return operator


@pytest.mark.parametrize("zero_point", [-128, -5, 0, 77])
def test_every_mean_of_codes_by_hand(quantized: DeviceNetwork, zero_point: int) -> None:
    """``(sum + count / 2) / count`` towards zero, mirrored below it: a half away from code 0."""
    operator = pool_of(quantized, "stage2.block1.mean")
    count = operator.options["filter_height"] * operator.options["filter_width"]
    assert count == 8 and operator.options["filter_width"] == 1
    owner = quantized.graph.tensors[operator.inputs[0]].name
    q = Quantization((0.125,), (zero_point,))
    grids = {
        name: q if name in (owner, "stage2.block1.mean") else old
        for name, old in quantized.quantization.items()
    }
    quantized.set_quantization(grids)
    sums = np.arange(-128 * count, 127 * count + 1)
    reals = (sums / count - zero_point) * 0.125
    y = torch.from_numpy(reals.astype(np.float32)).view(1, 1, 1, -1).requires_grad_()
    moved = rounding.as_the_kernel(quantized, operator, y)
    moved.sum().backward()
    assert y.grad is not None and torch.equal(y.grad, torch.ones_like(y))
    found = scheme.quantize(moved.detach().numpy().ravel(), q)
    expected = [
        (abs(total) + count // 2) // count * (1 if total >= 0 else -1) for total in sums.tolist()
    ]
    np.testing.assert_array_equal(found, expected)
    # Rounding of the reals themselves differs at half of the halves.
    differ = np.mean(scheme.quantize(reals.astype(np.float32), q) != expected)
    assert 1 / 32 < differ < 1 / 8


# Multiplications


def test_products_by_hand(quantized: DeviceNetwork) -> None:
    """All pairs of codes, rounded twice in whole numbers, half away from zero."""
    operator = pool_of(quantized, "stage1.block1.silu")
    first, second, out = (
        quantized.quantization[quantized.graph.tensors[i].name]
        for i in (*operator.inputs, operator.outputs[0])
    )
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    product = (a - first.zero_point[0]) * (b - second.zero_point[0])
    multiplier = first.scale[0] * second.scale[0] / out.scale[0]
    significand, exponent = np.frexp(multiplier)
    assert exponent < 0, "two roundings"
    fixed = round(float(significand) * 2**31)
    high = (np.abs(product) * fixed + 2**30) >> 31  # to 2**exponent of a step
    high = np.sign(product) * high
    half = 1 << (-int(exponent) - 1)
    steps = np.sign(high) * ((np.abs(high) + half) >> -int(exponent))
    expected = np.clip(steps + out.zero_point[0], -128, 127)
    reals = product.astype(np.float64) * first.scale[0] * second.scale[0]
    y = torch.from_numpy(reals.astype(np.float32)).view(1, 1, 256, 256)
    moved = rounding.as_the_kernel(quantized, operator, y)
    differ = np.mean(scheme.quantize(moved.numpy().reshape(256, 256), out) != expected)
    plain = np.mean(scheme.quantize(reals, out) != expected)
    assert differ < 2e-4 and differ < plain / 5, (differ, plain)


def test_gradients_pass_through_and_no_value_moves_far(quantized: DeviceNetwork) -> None:
    generator = torch.Generator().manual_seed(1)
    for operator in quantized.graph.operators:
        shape = quantized.graph.tensors[operator.outputs[0]].shape
        if len(shape) != 4:
            continue
        y = torch.randn((2, shape[3], *shape[1:3]), generator=generator).requires_grad_()
        moved = rounding.as_the_kernel(quantized, operator, y)
        moved.sum().backward()
        assert y.grad is not None and torch.equal(y.grad, torch.ones_like(y))
        if operator.kind != "AVERAGE_POOL_2D":  # which is rounded there and then
            # Half of a first unit; that is half a step at most.
            step = quantized.quantization[quantized.graph.name(operator)].scale[0]
            assert float((moved - y).detach().abs().max()) <= 0.25 * step + 1e-6
