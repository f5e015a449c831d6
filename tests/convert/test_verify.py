"""The converted models in our interpreter and in both oracles: equal, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from budgets.check import check
from budgets.count import count_graph
from budgets.limits import load_limits
from convert.__main__ import SHIPPED_CHECKPOINT
from convert.flatbuffer import write
from firmware_ref.graph import Graph, Tensor, parse
from firmware_ref.oracle import ORACLES
from firmware_ref.quantize import quantize_graph
from firmware_ref.verify import Report, random_inputs, verify
from tests.convert.members import REPORT, Converted
from train import qat_checkpoint

BOTH = list(ORACLES.values())
INPUTS = 8


def assert_equal(graph: Graph, report: Report) -> None:
    """No value of any operator's output differs, and all of them were compared."""
    outputs = [graph.tensors[operator.outputs[0]] for operator in graph.operators]
    values = sum(int(np.prod(tensor.shape)) for tensor in outputs)
    assert report.ok and len(report.oracles) == 2
    for result in report.oracles:
        assert result.mismatches == 0, result.first_mismatch
        assert (result.tensors, result.values) == (len(outputs), INPUTS * values)


def test_every_tensor_is_equal(converted: Converted) -> None:
    graph = parse(converted.model)
    inputs = random_inputs(graph, INPUTS, 0)
    assert_equal(graph, verify(graph, converted.model, inputs, BOTH))


def test_the_shipped_checkpoint_becomes_an_equal_model() -> None:
    """Without onnx2tf: what it wrote is proved equal, and the bytes do not depend on it."""
    saved, device = qat_checkpoint.load(SHIPPED_CHECKPOINT)
    assert saved.network == replace(REPORT, first_res_norm="stem")
    assert len(saved.metadata.labels) == 10 and saved.metadata.test_fold is not None
    plan, constants = device.graph, device.float_constants()
    model = write(quantize_graph(plan, constants, device.quantization, {}))
    graph = parse(model)
    assert check(count_graph(graph, "shipped", len(model)), load_limits()) == []
    assert_equal(graph, verify(graph, model, random_inputs(graph, INPUTS, 0), BOTH))


def one_step(tensor: Tensor) -> Tensor:
    """One constant of the second operand moved by one step."""
    assert tensor.data is not None
    data = tensor.data.copy()
    place = np.unravel_index(np.abs(data).argmax(), data.shape)
    data[place] -= np.sign(data[place])
    return replace(tensor, data=data)


def one_per_cent(tensor: Tensor) -> Tensor:
    """The scale of a result, larger by a hundredth."""
    assert tensor.quantization is not None and tensor.data is None
    (scale,) = tensor.quantization.scale
    grid = replace(tensor.quantization, scale=(float(np.float32(scale * 1.01)),))
    return replace(tensor, quantization=grid)


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        ("stem.conv", one_step),
        ("stage1.res_norm.mean", one_step),
        ("stage2.block1.frequency_conv.band3", one_step),
        ("classifier", one_step),
        ("stage1.res_norm.scaled", one_per_cent),
        ("stage2.block1.project", one_per_cent),
    ],
)
def test_one_change_in_the_file_is_found_by_layer(
    small: Converted, layer: str, change: Callable[[Tensor], Tensor]
) -> None:
    """The file is changed, and the oracles run it; our interpreter has the true graph."""
    graph = parse(small.model)
    (operator,) = (o for o in graph.operators if graph.name(o) == layer)
    index = operator.inputs[1] if change is one_step else operator.outputs[0]
    tensors = list(graph.tensors)
    tensors[index] = change(tensors[index])
    data = write(replace(graph, tensors=tuple(tensors)))
    assert len(data) == len(small.model) and data != small.model
    report = verify(graph, data, random_inputs(graph, INPUTS, 0), BOTH)
    assert not report.ok
    for result in report.oracles:
        assert result.mismatches > 0
        assert result.first_mismatch is not None and result.first_mismatch.layer == layer
