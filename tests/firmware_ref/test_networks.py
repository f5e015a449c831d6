"""Networks of other shapes than this project's own, as in MLPerf Tiny: bit for bit all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from firmware_ref.oracle import ORACLES
from firmware_ref.run import BATCH, Interpreter
from firmware_ref.verify import random_inputs, verify
from tests.firmware_ref.build import calibrated, write

Shape = tuple[int, ...]


class Plan:
    """A graph with random constants that grows operator by operator."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors = [Tensor("input", shape, "int8", Quantization((0.02,), (-4,)))]
        self.operators: list[Operator] = []

    def constant(self, shape: Shape, axis: int) -> int:
        """Weights with a scale for each channel, small enough for a sum of many."""
        reach = 1 / np.sqrt(np.prod(shape) / shape[axis])
        scales = self.rng.uniform(0.5, 2, shape[axis]).astype(np.float32) * np.float32(reach / 127)
        found = Quantization(tuple(map(float, scales)), (0,) * len(scales), axis)
        data = self.rng.integers(-127, 128, shape, dtype=np.int8)
        return self.add(Tensor("weight", shape, "int8", found, data))

    def bias(self, channels: int) -> int:
        data = self.rng.integers(-2000, 2000, channels, dtype=np.int32)
        return self.add(Tensor("bias", (channels,), "int32", None, data))

    def add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(
        self, kind: str, name: str, inputs: tuple[int, ...], shape: Shape, options: dict[str, Any]
    ) -> int:
        output = self.add(Tensor(name, shape, "int8"))
        self.operators.append(Operator(kind, inputs, (output,), options))
        return output

    def conv(
        self, name: str, x: int, channels: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> int:
        """CONV_2D, or DEPTHWISE_CONV_2D where ``channels`` is 0."""
        _, f, t, c = self.tensors[x].shape
        options: dict[str, Any] = {"padding": "SAME", "stride_h": stride, "stride_w": stride}
        options |= {"dilation_h_factor": 1, "dilation_w_factor": 1}
        options |= {"fused_activation": "RELU" if relu else "NONE"}
        if channels:
            kind, weight = "CONV_2D", self.constant((channels, kernel, kernel, c), 0)
        else:
            kind, weight = "DEPTHWISE_CONV_2D", self.constant((1, kernel, kernel, c), 3)
            options |= {"depth_multiplier": 1}
        out = (1, -(-f // stride), -(-t // stride), channels or c)
        return self.operator(kind, name, (x, weight, self.bias(out[3])), out, options)

    def dense(self, name: str, x: int, channels: int, relu: bool = False) -> int:
        options: dict[str, Any] = {"weights_format": 0, "keep_num_dims": False}
        options |= {"fused_activation": "RELU" if relu else "NONE"}
        inputs = (x, self.constant((channels, self.tensors[x].shape[-1]), 0), self.bias(channels))
        return self.operator("FULLY_CONNECTED", name, inputs, (1, channels), options)

    def sum(self, name: str, a: int, b: int) -> int:
        options = {"fused_activation": "RELU"}
        return self.operator("ADD", name, (a, b), self.tensors[a].shape, options)

    def classify(self, x: int, classes: int) -> Graph:
        """The mean over the map, flattened, and the class probabilities of it."""
        _, f, t, c = self.tensors[x].shape
        options = {"padding": "VALID", "stride_h": f, "stride_w": t, "filter_height": f}
        options |= {"filter_width": t, "fused_activation": "NONE"}
        x = self.operator("AVERAGE_POOL_2D", "pool", (x,), (1, 1, 1, c), options)
        shape = self.add(Tensor("shape", (2,), "int32", None, np.array([-1, c], np.int32)))
        x = self.operator("RESHAPE", "flat", (x, shape), (1, c), {"new_shape": (1, c)})
        x = self.dense("logits", x, classes)
        x = self.operator("SOFTMAX", "probabilities", (x,), (1, classes), {"beta": 1.0})
        return self.finish(x)

    def finish(self, output: int) -> Graph:
        graph = Graph(tuple(self.tensors), tuple(self.operators), (0,), (output,))
        return calibrated(graph, self.rng)


def ds_cnn() -> Graph:
    """Keyword spotting: depthwise-separable convolutions."""
    plan = Plan((1, 25, 5, 1), 0)
    x = plan.conv("stem", 0, 16, 5, stride=2)
    for number in range(3):
        x = plan.conv(f"depthwise{number}", x, 0, 3)
        x = plan.conv(f"pointwise{number}", x, 16, 1)
    return plan.classify(x, 12)


def resnet() -> Graph:
    """Image classification: two blocks, the second with a projected shortcut."""
    plan = Plan((1, 16, 16, 3), 1)
    x = plan.conv("stem", 0, 8, 3)
    y = plan.conv("block1.second", plan.conv("block1.first", x, 8, 3), 8, 3, relu=False)
    x = plan.sum("block1.sum", x, y)
    y = plan.conv("block2.first", x, 16, 3, stride=2)
    y = plan.conv("block2.second", y, 16, 3, relu=False)
    x = plan.sum("block2.sum", plan.conv("block2.shortcut", x, 16, 1, 2, relu=False), y)
    return plan.classify(x, 10)


def autoencoder() -> Graph:
    """Anomaly detection: matrices only, narrow in the middle."""
    plan, x = Plan((1, 96), 2), 0
    for number, width in enumerate((32, 32, 8, 32, 32)):
        x = plan.dense(f"dense{number}", x, width, relu=True)
    return plan.finish(plan.dense("reconstruction", x, 96))


@pytest.mark.parametrize("make", [ds_cnn, resnet, autoencoder])
def test_every_tensor_equals_both_oracles(make: Callable[[], Graph]) -> None:
    data = write(make())
    graph = parse(data)
    inputs = random_inputs(graph, BATCH + 4, 0)
    inputs[0], inputs[1] = -128, 127
    report = verify(graph, data, inputs, list(ORACLES.values()))
    assert report.ok, report
    assert all(result.tensors == len(graph.operators) for result in report.oracles)
    outputs = Interpreter(graph).run(inputs)
    assert len(np.unique(outputs, axis=0)) > 3


@pytest.mark.parametrize("make", [ds_cnn, resnet, autoencoder])
def test_a_nudged_bias_is_found_and_named(make: Callable[[], Graph]) -> None:
    """The last bias of the file, by one or two steps of the output."""
    data = write(make())
    graph = parse(data)
    (matrix,) = [o for o in graph.operators if o.kind == "FULLY_CONNECTED"][-1:]
    index = matrix.inputs[2]
    bias = graph.tensors[index].data
    assert bias is not None
    changed = bias.copy()
    changed[-1] += 2000
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], data=changed)
    wrong = replace(graph, tensors=tuple(tensors))
    report = verify(wrong, data, random_inputs(graph, 4, 0), list(ORACLES.values()))
    for result in report.oracles:
        assert result.first_mismatch is not None
        assert result.first_mismatch.layer == graph.name(matrix)
        assert result.first_mismatch.index[-1] == len(bias) - 1
