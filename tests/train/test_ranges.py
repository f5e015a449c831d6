"""The grids to begin with: least error, and the rules that tie or fix a range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from firmware_ref import scheme
from firmware_ref.arch import Network
from firmware_ref.errors import InputError
from firmware_ref.graph import Quantization
from firmware_ref.lowering import lower
from tests.train.devices import activations, inputs
from train.model import BCResNetMod
from train.qat import DeviceNetwork, fixed_ranges, range_owners
from train.ranges import calibrate, least_error, under_rules

Build = Callable[..., BCResNetMod]
Device = Callable[[BCResNetMod], DeviceNetwork]


# Calibration


def test_tied_and_fixed_scales_win(quantized: DeviceNetwork) -> None:
    """The kinds that the TFLite 8-bit specification ties; all parts of a concatenation."""
    graph, q = quantized.graph, quantized.quantization
    tied = {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "PAD", "SLICE"}
    checked = set()
    for operator in graph.operators:
        if operator.kind in tied:
            assert q[graph.name(operator)] == q[graph.tensors[operator.inputs[0]].name]
        elif operator.kind == "CONCATENATION":
            parts = {q[graph.tensors[index].name] for index in operator.inputs}
            assert parts == {q[graph.name(operator)]}
        elif operator.kind == "LOGISTIC":
            assert q[graph.name(operator)] == Quantization((1 / 256,), (-128,))
        else:
            continue
        checked.add(operator.kind)
    split = {"PAD", "SLICE", "CONCATENATION"}
    whole = {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "LOGISTIC"}
    assert checked in (whole, whole | split)


def test_owners_of_ranges_by_hand(tiny_network: Network) -> None:
    graph = lower(dataclasses.replace(tiny_network, ssn_bands=2))
    owners = range_owners(graph)
    assert set(owners) == {"input", *(graph.name(operator) for operator in graph.operators)}
    tied = {name: owner for name, owner in owners.items() if name != owner}
    block = "stage1.block1"
    expected = {
        f"{block}.frequency_conv.padded": "stem.conv",
        f"{block}.frequency_conv.rows1": "stem.conv",
        f"{block}.frequency_conv.rows2": "stem.conv",
        f"{block}.frequency_conv.band1": f"{block}.frequency_conv",
        f"{block}.frequency_conv.band2": f"{block}.frequency_conv",
        f"{block}.mean_sum": f"{block}.frequency_conv",
        f"{block}.mean_identity": "stem.conv",
    }
    assert {name: owner for name, owner in tied.items() if block in name} == expected
    assert tied["stage1.pool"] == "stage1.block2.sum"
    assert (tied["head.pool"], tied["logits"]) == ("head.conv", "classifier")
    assert not set(tied) & set(tied.values()), "a tie to a tie is one to its owner"
    blocks = ("stage1.block1", "stage1.block2", "stage2.block1")
    assert fixed_ranges(graph) == {f"{name}.sigmoid" for name in blocks}


def test_rules_go_over_ranges(tiny_network: Network) -> None:
    graph = lower(tiny_network)
    names = sorted(range_owners(graph))
    ranges = {name: Quantization((float(n + 1),), (n - 100,)) for n, name in enumerate(names)}
    ruled = under_rules(graph, ranges)
    assert ruled["stage1.pool"] == ranges["stage1.block2.sum"] == ruled["stage1.block2.sum"]
    assert ruled["stage2.block1.sigmoid"] == Quantization((1 / 256,), (-128,))
    assert ruled["stem.conv"] == ranges["stem.conv"]
    assert under_rules(graph, ruled) == ruled


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


def test_a_range_is_of_least_error_on_what_the_layer_gives(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    """Where a layer gives no more values than are drawn, the range is that of all of them."""
    device = folded(trained(tiny_network))
    seen = activations(device, inputs(16, 1))
    calibrate(device, [inputs(16, 1)], seed=0)
    for name in ("stage1.block1.project", "stage1.block1.mean", "classifier", "input_norm.gain"):
        assert seen[name].size <= 8192
        assert device.quantization[name] == least_error(seen[name].ravel())


def test_a_layer_that_is_never_finite_is_named(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    device = folded(trained(tiny_network))
    with torch.no_grad():
        device.constants["classifier/bias"].fill_(np.inf)
    with pytest.raises(InputError, match="calibration: classifier is finite in no example"):
        calibrate(device, [inputs(4, 1)], seed=0)


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


def test_a_variance_begins_at_the_smallest_code(quantized: DeviceNetwork) -> None:
    """Whatever a sample said: RSQRT refuses a code below its zero point."""
    graph = quantized.graph
    names = [graph.tensors[o.inputs[0]].name for o in graph.operators if o.kind == "RSQRT"]
    assert names
    odd = dict.fromkeys(names, Quantization((0.5,), (27,)))
    ruled = under_rules(graph, {**quantized.quantization, **odd})
    for name in names:
        assert ruled[name].zero_point == (-128,)
        assert ruled[name].scale[0] == pytest.approx(0.5 * 100 / 255)
    assert under_rules(graph, ruled) == ruled
