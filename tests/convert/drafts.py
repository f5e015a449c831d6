"""A float graph as an exporter could write it, and ways to change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from convert.match import MismatchError, match
from firmware_ref.graph import Graph, Operator, Tensor
from train.qat import DeviceNetwork

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass
class Draft:
    """A graph that can be changed; tensors and operators are found by layer name."""

    tensors: list[Tensor]
    operators: list[Operator]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, device: DeviceNetwork) -> Draft:
        """The plan in float, its constants in it, as a converter that changes nothing gives it."""
        constants = device.float_constants()
        tensors = [as_float(t, constants.get(t.name)) for t in device.graph.tensors]
        return cls(tensors, list(device.graph.operators), device.graph.outputs)

    def graph(self) -> Graph:
        return Graph(tuple(self.tensors), tuple(self.operators), (0,), self.outputs)

    def tensor(self, name: str) -> int:
        (found,) = (index for index, t in enumerate(self.tensors) if t.name == name)
        return found

    def operator(self, layer: str) -> int:
        (found,) = (
            n for n, o in enumerate(self.operators) if self.tensors[o.outputs[0]].name == layer
        )
        return found

    def add(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        dtype = "float32" if data is None else str(data.dtype)
        self.tensors.append(Tensor(name, shape, dtype, None, data))
        return len(self.tensors) - 1

    def change(self, layer: str, **fields: Any) -> None:
        number = self.operator(layer)
        self.operators[number] = replace(self.operators[number], **fields)

    def option(self, layer: str, **options: Any) -> None:
        old = self.operators[self.operator(layer)].options
        assert set(options) <= set(old)
        self.change(layer, options={**old, **options})

    def data(self, layer: str, place: int, change: Callable[[np.ndarray], Any]) -> None:
        """Give a layer a changed copy of a constant operand: changed in place, or returned."""
        operator = self.operators[self.operator(layer)]
        old = self.tensors[operator.inputs[place]].data
        assert old is not None
        new = old.copy()
        result = change(new)
        new = new if result is None else result
        inputs = list(operator.inputs)
        inputs[place] = self.add(f"{layer}/{place}", new.shape, new)
        self.change(layer, inputs=tuple(inputs))

    def transpose(self, source: int, order: tuple[int, ...], name: str, at: int) -> int:
        """Insert a TRANSPOSE before operator ``at``; returns its output."""
        shape = tuple(self.tensors[source].shape[axis] for axis in order)
        output = self.add(name, shape)
        table = self.add(f"{name}/order", (len(order),), np.array(order, np.int32))
        self.operators.insert(at, Operator("TRANSPOSE", (source, table), (output,)))
        return output

    def wrap_in_transposes(self, *layers: str) -> None:
        """Compute layers that follow each other in NCHW, the last one's result then in NHWC."""
        first = self.operator(layers[0])
        inside = self.operators[first : first + len(layers)]
        assert [self.tensors[operator.outputs[0]].name for operator in inside] == list(layers)
        made = [operator.outputs[0] for operator in inside]
        renamed: dict[int, int] = {}
        for index in (index for operator in inside for index in operator.inputs):
            if index not in (*made, *renamed) and self.tensors[index].data is None:
                name = f"{self.tensors[index].name}.nchw"
                renamed[index] = self.transpose(index, TO_NCHW, name, first)
        first += len(renamed)
        for index in made:
            tensor = self.tensors[index]
            shape = tuple(tensor.shape[axis] for axis in TO_NCHW)
            if index == made[-1]:
                renamed[index] = self.add(f"{tensor.name}.nchw", shape)
            else:
                self.tensors[index] = replace(tensor, shape=shape)
        for number, operator in enumerate(inside, first):
            inputs, outputs = (
                tuple(renamed.get(index, index) for index in part)
                for part in (operator.inputs, operator.outputs)
            )
            self.operators[number] = replace(operator, inputs=inputs, outputs=outputs)
        end = first + len(layers)
        self.transpose(renamed[made[-1]], TO_NHWC, f"{layers[-1]}.back", end)
        self.operators[end] = replace(self.operators[end], outputs=(made[-1],))


def as_float(tensor: Tensor, constant: np.ndarray | None) -> Tensor:
    if constant is not None:
        return replace(tensor, dtype="float32", data=constant)
    if tensor.data is None:
        return replace(tensor, dtype="float32")
    if tensor.name.endswith("/bias"):
        return replace(tensor, dtype="float32", data=tensor.data.astype(np.float32))
    if tensor.quantization is None:
        return tensor  # a shape, paddings, a place in a map
    (scale,) = tensor.quantization.scale
    data = np.float32(scale) * tensor.data.astype(np.float32)
    return replace(tensor, dtype="float32", quantization=None, data=data)


def matched(draft: Draft, device: DeviceNetwork) -> dict[int, int]:
    return match(draft.graph(), device.graph, device.float_constants())


def refused(draft: Draft, device: DeviceNetwork, words: str) -> None:
    with pytest.raises(MismatchError) as caught:
        matched(draft, device)
    assert words in str(caught.value)


def one_ulp(array: np.ndarray) -> None:
    array.flat[3 % array.size] = np.nextafter(array.flat[3 % array.size], np.float32(9))
