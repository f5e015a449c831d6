"""Proof that an exported float graph computes the device graph, operator by operator.

A converter may reorder operators, rename tensors, wrap parts in transposes and write a depthwise
convolution as a grouped one. What it may not do is compute something else. Each of its operators
is matched with one of the plan: same kind, same operands, same attributes, same constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from firmware_ref.graph import Graph, Operator
from firmware_ref.scheme import WEIGHT_AXIS

IDENTITY = (0, 1, 2, 3)
COMMUTATIVE = frozenset({"ADD", "MUL"})
# Options whose absence and default mean the same are compared by value where both sides say one.
STRIDED_SLICE_MASKS = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
IGNORED_OPTIONS = frozenset({"depth_multiplier", "new_shape"})
# Their windows lie along axes by place.
POSITIONAL = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D"})


class MismatchError(Exception):
    """The exported graph is not the plan; the message names the first operator that differs."""


@dataclass(frozen=True)
class _Value:
    """An exported tensor: which plan tensor it holds, and in which order of axes."""

    plan: int
    order: tuple[int, ...]


def match(exported: Graph, plan: Graph, constants: Mapping[str, np.ndarray]) -> dict[int, int]:
    """Plan tensor of every exported activation, by index.

    ``constants`` are the plan's float constants by name, in the graph's layout; exported ones
    must equal them to the bit. Raises `MismatchError` unless every operator of the plan is met
    exactly once and the outputs correspond.
    """
    matcher = _Matcher(exported, plan, constants)
    for operator in exported.operators:
        matcher.step(operator)
    return matcher.finish()


class _Matcher:
    def __init__(self, exported: Graph, plan: Graph, constants: Mapping[str, np.ndarray]) -> None:
        self.exported, self.plan, self.constants = exported, plan, constants
        self.open = dict(enumerate(plan.operators))
        self.values: dict[int, _Value] = {}
        if len(exported.inputs) != len(plan.inputs):
            raise MismatchError(f"the exported graph has {len(exported.inputs)} inputs")
        for theirs, ours in zip(exported.inputs, plan.inputs, strict=True):
            self._bind(theirs, _Value(ours, IDENTITY), "the input")

    def step(self, operator: Operator) -> None:
        """Match one exported operator."""
        name = f"{operator.kind} {self.exported.name(operator)!r}"
        if operator.kind == "TRANSPOSE":
            source, table = operator.inputs
            value, axes = self.values.get(source), self._data(table)
            if value is None or sorted(map(int, axes)) != list(range(len(value.order))):
                raise MismatchError(f"{name} reorders no activation of the device graph")
            order = tuple(value.order[int(a)] for a in axes)
            self._bind(operator.outputs[0], _Value(value.plan, order), name)
            return
        found = [n for n, ours in self.open.items() if self._same(operator, ours)]
        if not found:
            raise MismatchError(f"{name} is no operator of the device graph, or differs from it")
        ours = self.open.pop(found[0])
        is_map = len(self.plan.tensors[ours.outputs[0]].shape) == 4
        order = self._order(operator) if is_map else (0, 1)
        self._bind(operator.outputs[0], _Value(ours.outputs[0], order), name)

    def finish(self) -> dict[int, int]:
        """Check that nothing is left over."""
        if self.open:
            missing = self.plan.name(next(iter(self.open.values())))
            raise MismatchError(f"the exported graph lacks {missing!r}")
        outputs = [self.values.get(i) for i in self.exported.outputs]
        if outputs != [_Value(i, (0, 1)) for i in self.plan.outputs]:
            names = [self.exported.tensors[i].name for i in self.exported.outputs]
            raise MismatchError(f"the exported graph returns another tensor: {names}")
        return {theirs: value.plan for theirs, value in self.values.items()}

    def _bind(self, index: int, value: _Value, name: str) -> None:
        wanted = tuple(self.plan.tensors[value.plan].shape[a] for a in value.order)
        if self.exported.tensors[index].shape != wanted:
            raise MismatchError(
                f"{name} has shape {self.exported.tensors[index].shape}, the plan {wanted}"
            )
        self.values[index] = value

    def _same(self, theirs: Operator, ours: Operator) -> bool:
        """Same kind, operands, attributes and constants; the plan leaves no operand out."""
        if -1 in theirs.inputs:
            return False
        if self._kind(theirs) != ours.kind or not self._same_options(theirs, ours):
            return False
        if ours.kind in ("RESHAPE", "PAD", "SLICE"):
            same_place = {"PAD": self._same_paddings, "SLICE": self._same_box}.get(ours.kind)
            return self._operand(theirs.inputs[0], ours.inputs[0]) and (
                same_place is None or same_place(theirs, ours)
            )
        pairs = [list(zip(theirs.inputs, ours.inputs, strict=False))]
        if len(theirs.inputs) != len(ours.inputs):
            return False
        if ours.kind in COMMUTATIVE:
            pairs.append(list(zip(theirs.inputs, reversed(ours.inputs), strict=True)))
        return any(all(self._operand(a, b, theirs) for a, b in option) for option in pairs)

    def _kind(self, operator: Operator) -> str:
        """A convolution with one input channel a group is depthwise, however it is written."""
        if operator.kind == "STRIDED_SLICE":
            return "SLICE"
        if operator.kind != "CONV_2D":
            return operator.kind
        x, weight = (self.exported.tensors[i].shape for i in operator.inputs[:2])
        return "DEPTHWISE_CONV_2D" if weight[3] == 1 < x[3] and weight[0] == x[3] else "CONV_2D"

    def _same_options(self, theirs: Operator, ours: Operator) -> bool:
        ignored = IGNORED_OPTIONS
        if ours.kind == "CONCATENATION":
            order = self._order(theirs)
            axis = theirs.options["axis"] % len(order)
            if order[axis] != ours.options["axis"]:
                return False
            ignored = ignored | {"axis"}
        if ours.kind == "CONV_2D" and self.plan.tensors[ours.inputs[1]].shape[1:3] == (1, 1):
            ignored = ignored | {"padding"}  # a 1x1 convolution pads nothing
        return all(
            theirs.options[name] == value
            for name, value in ours.options.items()
            if name in theirs.options and name not in ignored
        )

    def _same_paddings(self, theirs: Operator, ours: Operator) -> bool:
        wanted = self._integers(ours, 1)[list(self._order(theirs))]
        return np.array_equal(self._data(theirs.inputs[1]), wanted)

    def _same_box(self, theirs: Operator, ours: Operator) -> bool:
        """A SLICE of begin and size, and a STRIDED_SLICE of begin, end, strides and masks."""
        if theirs.kind == "SLICE":
            begin, size = (self._data(index) for index in theirs.inputs[1:3])
        else:
            begin, size = self._strided_box(theirs)
        order = list(self._order(theirs))
        wanted = (self._integers(ours, place)[order] for place in (1, 2))
        return all(map(np.array_equal, (begin, size), wanted))

    def _strided_box(self, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
        """Begin and size; sizes of 0, which no plan has, where the slice is no plain box."""
        shape = np.array(self.exported.tensors[operator.inputs[0]].shape)
        begin, end, strides = (self._data(index).astype(np.int64) for index in operator.inputs[1:4])
        masks = {name: int(operator.options[f"{name}_mask"]) for name in STRIDED_SLICE_MASKS}
        whole = all(table.shape == shape.shape for table in (begin, end, strides))
        other = any(masks[name] for name in STRIDED_SLICE_MASKS[2:]) or operator.options["offset"]
        if not whole or other or (strides != 1).any():
            return begin, np.zeros_like(begin)
        bits = 1 << np.arange(len(shape))
        begin = np.where(bits & masks["begin"], 0, begin)
        end = np.where(bits & masks["end"], shape, np.minimum(end, shape))
        return begin, end - begin

    def _integers(self, operator: Operator, place: int) -> np.ndarray:
        """A constant of whole numbers of the plan."""
        data = self.plan.tensors[operator.inputs[place]].data
        assert data is not None
        return data

    def _operand(self, theirs: int, ours: int, operator: Operator | None = None) -> bool:
        """The same activation, or a constant of the same value."""
        if theirs in self.values:
            return self.values[theirs].plan == ours
        wanted = self._constant(ours)
        if wanted is None or operator is None:
            return False
        data = self._data(theirs)
        if operator.kind in WEIGHT_AXIS:
            if data.ndim == 4 and wanted.shape[0] == 1 < data.shape[0]:
                data = data.transpose(3, 1, 2, 0)  # a grouped convolution's to depthwise
            return np.array_equal(data, wanted)
        # Element-wise constants may come repeated, along any axis to the size of the result there.
        wanted = wanted.transpose(self._order(operator))
        result = self.exported.tensors[operator.outputs[0]].shape
        if not data.ndim == wanted.ndim == len(result):
            return False
        sizes = zip(wanted.shape, data.shape, result, strict=True)
        fits = all(d == w or (w == 1 and d == r) for w, d, r in sizes)
        return fits and np.array_equal(data, np.broadcast_to(wanted, data.shape))

    def _constant(self, index: int) -> np.ndarray | None:
        """Float value of a plan constant."""
        tensor = self.plan.tensors[index]
        if tensor.data is None:
            return self.constants.get(tensor.name)
        if tensor.quantization is None:
            return tensor.data
        steps = tensor.data.astype(np.float32)
        return np.asarray(np.float32(tensor.quantization.scale[0]) * steps)

    def _order(self, operator: Operator) -> tuple[int, ...]:
        """Order of axes of an operator's result: that of its activations, which must agree."""
        orders = {self.values[i].order for i in operator.inputs if i in self.values}
        if len(orders) != 1:
            raise MismatchError(
                f"{operator.kind} {self.exported.name(operator)!r} mixes orders of axes"
            )
        order = orders.pop()
        if self._kind(operator) in POSITIONAL and order != IDENTITY:
            raise MismatchError(f"{operator.kind} {self.exported.name(operator)!r} is transposed")
        return order

    def _data(self, index: int) -> np.ndarray:
        data = self.exported.tensors[index].data
        if data is None:
            raise MismatchError(
                f"{self.exported.tensors[index].name!r} should be a constant, and is computed"
            )
        return data
