"""Constants and grids of the INT8 graph, on cases worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.graph import Graph, Quantization, Tensor
from firmware_ref.lowering import lower
from firmware_ref.oracle import ORACLES
from firmware_ref.quantize import quantize_graph
from firmware_ref.scheme import SAME_SCALE
from firmware_ref.verify import random_inputs, verify
from tests.firmware_ref.build import POSITIVE, write
from tests.firmware_ref.conftest import SMALL

# Small enough to verify in an instant; two sub-bands, so that every operator is there.
PLAN = lower(replace(SMALL, input_bands=16, input_frames=12))
# A power of two, so that every division below is exact.
GRID = 2.0**-4


@pytest.fixture
def constants(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights and biases for every trained constant of the plan."""
    trained = (t for t in PLAN.tensors if t.data is None and t.name.endswith(("/weight", "/bias")))
    return {t.name: rng.normal(0, 0.3, t.shape).astype(np.float32) for t in trained}


@pytest.fixture
def activations() -> dict[str, Quantization]:
    """A grid for every activation, within what the operators allow."""
    grids = {"input": Quantization((GRID,), (2,))}
    for number, operator in enumerate(PLAN.operators):
        name = PLAN.name(operator)
        if operator.kind in SAME_SCALE:
            grids[name] = grids[PLAN.tensors[operator.inputs[0]].name]
        elif operator.kind == "LOGISTIC":
            grids[name] = Quantization((1 / 256,), (-128,))
        elif name.endswith(POSITIVE):
            grids[name] = Quantization((GRID,), (-128,))
        else:
            # The bands that are joined have one grid.
            zero = 1 if ".band" in name else number % 7 - 3
            grids[name] = Quantization((GRID,), (zero,))
    return grids


def constant(graph: Graph, layer: str, part: str) -> Tensor:
    """The weight or bias that the operator of a layer reads."""
    (operator,) = (o for o in graph.operators if graph.name(o) == layer)
    return graph.tensors[operator.inputs[("input", "weight", "bias").index(part)]]


def steps(tensor: Tensor) -> np.ndarray:
    assert tensor.data is not None
    return tensor.data


def scales(tensor: Tensor) -> tuple[float, ...]:
    assert tensor.quantization is not None
    assert set(tensor.quantization.zero_point) == {0}
    return tensor.quantization.scale


def test_weights_round_half_to_even(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    """The largest of channel 1 is 127 / 64, so that a step is 1 / 64; channel 0 is half of it."""
    values = np.array([127, 0.5, 1.5, -0.5, -1.5, -126.5], np.float32)
    expand = constants["stage2.block1.expand/weight"]
    expand[1] = values / 64
    expand[0] = -values / 128
    bias = constants["stage2.block1.expand/bias"]
    bias[:2] = np.array([2.5, 3.5]) * GRID / np.array([128, 64])
    graph = quantize_graph(PLAN, constants, activations, {})
    weight = constant(graph, "stage2.block1.expand", "weight")
    even = [127, 0, 2, 0, -2, -126]
    assert weight.dtype == steps(weight).dtype == "int8"
    assert steps(weight)[1, 0, 0].tolist() == even
    assert steps(weight)[0, 0, 0].tolist() == [-v for v in even]
    assert scales(weight)[:2] == (1 / 128, 1 / 64)
    assert weight.quantization is not None and weight.quantization.axis == 0
    # The bias is on the grid of its accumulator, which the file need not repeat.
    found = constant(graph, "stage2.block1.expand", "bias")
    assert found.dtype == steps(found).dtype == "int32" and found.quantization is None
    assert steps(found)[:2].tolist() == [2, 4]


def test_a_depthwise_has_its_channels_last(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    weight = constants["stage2.block1.temporal_conv/weight"]  # (1, 1, 3, 8)
    weight[...] = 0.25
    weight[0, 0, :, 7] = [-127 / 32, 1 / 32, 0.6 / 32]
    constants["stage2.block1.temporal_conv/bias"][...] = 0
    graph = quantize_graph(PLAN, constants, activations, {})
    found = constant(graph, "stage2.block1.temporal_conv", "weight")
    assert found.quantization is not None and found.quantization.axis == 3
    assert scales(found) == (*[float(np.float32(0.25) / np.float32(127))] * 7, 1 / 32)
    assert steps(found)[0, 0, :, 7].tolist() == [-127, 1, 1]
    assert np.all(steps(found)[..., :7] == 127)


def test_channels_without_weights_still_run(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    """Pruned channels, and one whose bias would overflow on the grid of its tiny weights."""
    weight, bias = constants["stem.conv/weight"], constants["stem.conv/bias"]
    weight[0], bias[0] = 0, 0
    weight[1], bias[1] = 0, -3.5
    weight[2], bias[2] = 1e-12, 7.0
    graph = quantize_graph(PLAN, constants, activations, {})
    weight_scales = scales(constant(graph, "stem.conv", "weight"))
    grid = activations["input_norm"].scale[0] * np.array(weight_scales)
    found = steps(constant(graph, "stem.conv", "bias"))
    assert weight_scales[0] == 1.0
    assert not steps(constant(graph, "stem.conv", "weight"))[:3].any()
    np.testing.assert_allclose(found[:3] * grid[:3], [0, -3.5, 7.0], rtol=1e-6)
    assert np.abs(found[:3].astype(np.int64)).max() <= 2**30
    report = verify(graph, write(graph), random_inputs(graph, 2, 0), list(ORACLES.values()))
    assert report.ok


def test_a_nudged_step_is_seen(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    """What both oracles agree with is these integers, not others next to them."""
    graph = quantize_graph(PLAN, constants, activations, {})
    changed = constant(graph, "classifier", "bias")
    wrong = replace(changed, data=steps(changed) + np.int32(5000))
    tensors = tuple(wrong if t is changed else t for t in graph.tensors)
    report = verify(
        replace(graph, tensors=tensors),
        write(graph),
        random_inputs(graph, 2, 0),
        list(ORACLES.values()),
    )
    for result in report.oracles:
        assert result.first_mismatch is not None
        assert result.first_mismatch.layer == "classifier"


def test_given_constants_are_kept(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    graph = quantize_graph(PLAN, constants, activations, {})
    given = [i for i, t in enumerate(PLAN.tensors) if t.data is not None]
    assert given
    for index in given:
        before, after = PLAN.tensors[index], graph.tensors[index]
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert before.quantization == after.quantization
        assert np.array_equal(steps(before), steps(after))


def test_every_activation_has_the_grid_it_was_given(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    graph = quantize_graph(PLAN, constants, activations, {"a": b"1"})
    assert graph.metadata == {"a": b"1"}
    computed = {operator.outputs[0] for operator in graph.operators} | {0}
    found = {graph.tensors[i].name: graph.tensors[i].quantization for i in computed}
    assert found == activations and len(computed) == len(activations)
    for index, tensor in enumerate(graph.tensors):
        assert (tensor.data is None) == (index in computed)
        assert (tensor.quantization is None) == (tensor.dtype == "int32")


def test_constants_have_the_last_part_of_their_names(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    graph = quantize_graph(PLAN, constants, activations, {})
    names = {tensor.name for tensor in graph.tensors if tensor.data is not None}
    assert names == {"weight", "bias", "res_norm.lambda", "paddings", "begin", "size", "shape"}


def test_the_plan_is_not_changed(
    constants: dict[str, np.ndarray], activations: dict[str, Quantization]
) -> None:
    before = PLAN.tensors
    copies = {name: value.copy() for name, value in constants.items()}
    first = write(quantize_graph(PLAN, constants, activations, {}))
    assert PLAN.tensors is before
    assert all(t.data is None for t in before if t.name in constants)
    assert all(np.array_equal(constants[name], copies[name]) for name in copies)
    assert write(quantize_graph(replace(PLAN), copies, activations, {})) == first
