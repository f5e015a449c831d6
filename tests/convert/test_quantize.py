"""Constants and grids of the INT8 graph, on cases worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convert.flatbuffer import write
from convert.quantize import quantize_graph
from firmware_ref.graph import Graph, Quantization, Tensor
from firmware_ref.oracle import ORACLES
from firmware_ref.verify import random_inputs, verify
from train.qat import DeviceNetwork

# A power of two, so that every division below is exact.
GRID = 2.0**-4
SAME_AS_INPUT = {"stage1.pool": "stage1.block2.sum", "logits": "head.pool"}


@pytest.fixture
def constants(device: DeviceNetwork) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in device.float_constants().items()}


@pytest.fixture
def activations(device: DeviceNetwork) -> dict[str, Quantization]:
    """A grid for every activation, within what the operators allow."""
    grids = {name: Quantization((GRID,), (n % 7 - 3,)) for n, name in enumerate(device.activations)}
    for name in grids:
        if name.endswith((".square", ".variance", ".rsqrt")):
            grids[name] = Quantization((GRID,), (-128,))
        elif name.endswith(".sigmoid"):
            grids[name] = Quantization((1 / 256,), (-128,))
        elif name in SAME_AS_INPUT:
            grids[name] = grids[SAME_AS_INPUT[name]]
    return grids


def tensor(graph: Graph, name: str) -> Tensor:
    (found,) = (t for t in graph.tensors if t.name == name)
    return found


def steps(tensor: Tensor) -> np.ndarray:
    assert tensor.data is not None
    return tensor.data


def scales(tensor: Tensor) -> tuple[float, ...]:
    assert tensor.quantization is not None
    assert set(tensor.quantization.zero_point) == {0}
    return tensor.quantization.scale


def test_weights_round_half_to_even(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    """The largest of channel 1 is 127 / 64, so that a step is 1 / 64; channel 0 is half of it."""
    values = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -126.5], np.float32)
    expand = constants["stage1.block1.expand/weight"]
    expand[1] = values / 64
    expand[0] = -values / 128
    bias = constants["stage1.block1.expand/bias"]
    bias[:2] = np.array([2.5, 3.5]) * GRID / np.array([128, 64])
    graph = quantize_graph(device.graph, constants, activations, {})
    weight = tensor(graph, "stage1.block1.expand/weight")
    even = [127, 0, 2, 2, 0, -2, -2, -126]
    assert weight.dtype == steps(weight).dtype == "int8"
    assert steps(weight)[1, 0, 0].tolist() == even
    assert steps(weight)[0, 0, 0].tolist() == [-v for v in even]
    assert scales(weight)[:2] == (1 / 128, 1 / 64)
    assert weight.quantization is not None and weight.quantization.axis == 0
    found = tensor(graph, "stage1.block1.expand/bias")
    assert found.dtype == steps(found).dtype == "int32"
    assert scales(found)[:2] == (GRID / 128, GRID / 64)
    assert steps(found)[:2].tolist() == [2, 4]


def test_a_depthwise_has_its_channels_last(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    weight = constants["stage2.block1.temporal_conv/weight"]  # (1, 1, 3, 10)
    weight[...] = 0.25
    weight[0, 0, :, 9] = [-127 / 32, 1 / 32, 0.6 / 32]
    graph = quantize_graph(device.graph, constants, activations, {})
    found = tensor(graph, "stage2.block1.temporal_conv/weight")
    assert found.quantization is not None and found.quantization.axis == 3
    assert scales(found) == (*[float(np.float32(0.25) / np.float32(127))] * 9, 1 / 32)
    assert steps(found)[0, 0, :, 9].tolist() == [-127, 1, 1]
    assert np.all(steps(found)[..., :9] == 127)


def test_a_factor_has_one_scale(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    factor = constants["stage2.block1.ssn_scale/weight"]
    factor[...] = 0.25 / 16
    factor[0, 3, 0, 2] = -127 / 16
    graph = quantize_graph(device.graph, constants, activations, {})
    found = tensor(graph, "stage2.block1.ssn_scale/weight")
    assert scales(found) == (1 / 16,)
    assert steps(found)[0, 3, 0, 2] == -127 and np.count_nonzero(steps(found)) == 1


def test_channels_without_weights_still_run(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    """Pruned channels, and one whose bias would overflow on the grid of its tiny weights."""
    weight, bias = constants["stem.conv/weight"], constants["stem.conv/bias"]
    weight[0], bias[0] = 0, 0
    weight[1], bias[1] = 0, -3.5
    weight[2], bias[2] = 1e-12, 7.0
    constants["stage1.block1.sub_spectral_norm/bias"][...] = 0
    graph = quantize_graph(device.graph, constants, activations, {})
    found = tensor(graph, "stem.conv/bias")
    assert scales(tensor(graph, "stem.conv/weight"))[0] == 1.0
    assert not steps(tensor(graph, "stem.conv/weight"))[:3].any()
    real = steps(found)[:3] * np.array(scales(found)[:3])
    np.testing.assert_allclose(real, [0, -3.5, 7.0], rtol=1e-6)
    assert np.abs(steps(found)[:3].astype(np.int64)).max() <= 2**30
    assert scales(tensor(graph, "stage1.block1.sub_spectral_norm/bias")) == (1.0,)
    report = verify(graph, write(graph), random_inputs(graph, 2, 0), list(ORACLES.values()))
    assert report.ok


def test_every_activation_has_the_grid_it_was_given(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    graph = quantize_graph(device.graph, constants, activations, {"a": b"1"})
    assert {name: tensor(graph, name).quantization for name in activations} == activations
    assert graph.metadata == {"a": b"1"}
    computed = {graph.name(operator) for operator in graph.operators} | {"input"}
    assert computed == set(activations)
    bare = {t.name for t in graph.tensors if t.quantization is None}
    assert all(name.endswith(("/axes", "/shape")) for name in bare)
    assert all(t.data is not None for t in graph.tensors if t.name not in computed)


def test_the_plan_is_not_changed(
    device: DeviceNetwork, constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    plan, before = device.graph, device.graph.tensors
    copies = {name: value.copy() for name, value in constants.items()}
    first = write(quantize_graph(plan, constants, activations, {}))
    assert plan.tensors is before and all(t.data is None for t in before if "/weight" in t.name)
    assert all(np.array_equal(constants[name], copies[name]) for name in copies)
    assert write(quantize_graph(replace(plan), copies, activations, {})) == first
