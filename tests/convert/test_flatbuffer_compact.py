"""The writer stores what is equal once and no default, by TensorFlow's own schema code."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convert import flatbuffer
from convert.flatbuffer import write
from firmware_ref import schema
from firmware_ref.graph import parse
from tests.convert.members import Converted

LARGEST_REPORT_BYTES = 170_000


def stored_twice(fb: ModuleType, data: bytes) -> set[str]:
    """Kinds of equal things that lie at more than one place in the file."""
    places: dict[tuple[str, object], set[int]] = {}

    def note(kind: str, content: object, table: Any, slot: int) -> None:
        field = table._tab.Offset(4 + 2 * slot)
        if field:
            place = table._tab.Indirect(table._tab.Pos + field)
            places.setdefault((kind, content), set()).add(place)

    def vector(found: np.ndarray, table: Any, slot: int) -> bytes:
        content = np.asarray(found).tobytes()
        note(str(found.dtype), content, table, slot)
        return content

    graph = fb.Model.GetRootAs(data, 0).Subgraphs(0)
    vector(graph.InputsAsNumpy(), graph, 1)
    vector(graph.OutputsAsNumpy(), graph, 2)
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        vector(tensor.ShapeAsNumpy(), tensor, 0)
        note("name", tensor.Name(), tensor, 3)
        grid = tensor.Quantization()
        if grid is not None:
            scale = vector(grid.ScaleAsNumpy(), grid, 2)
            zero_point = vector(grid.ZeroPointAsNumpy(), grid, 3)
            note("grid", (scale, zero_point, grid.QuantizedDimension()), tensor, 4)
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        vector(operator.InputsAsNumpy(), operator, 1)
        vector(operator.OutputsAsNumpy(), operator, 2)
        options = fb.OperatorT.InitFromObj(operator).builtinOptions
        note("options", (type(options), str(options and vars(options))), operator, 4)
    return {kind for (kind, _), found in places.items() if len(found) > 1}


def test_nothing_is_stored_twice(converted: Converted, tensorflow_schema: ModuleType) -> None:
    assert stored_twice(tensorflow_schema, converted.model) == set()


def test_what_is_stored_twice_is_found(
    small: Converted, tensorflow_schema: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that does not remember gives a file that says the same, and more than once."""
    graph = parse(small.model)

    def forget(_: object, key: object, write: Callable[[], int]) -> int:
        return write()

    monkeypatch.setattr(flatbuffer._Builder, "once", forget)
    data = write(graph)
    kinds = {"int32", "float32", "int64", "name", "grid", "options"}
    assert stored_twice(tensorflow_schema, data) == kinds
    assert len(data) > 1.3 * len(small.model)
    monkeypatch.undo()
    assert write(parse(data)) == small.model


def test_defaults_are_left_out(converted: Converted, tensorflow_schema: ModuleType) -> None:
    """A scalar option is in the file where it is not the default of TensorFlow's own classes."""
    fb = tensorflow_schema
    graph = fb.Model.GetRootAs(converted.model, 0).Subgraphs(0)
    tables = {number: name for name, number in vars(fb.BuiltinOptions).items()}
    seen = set()
    for number, operator in enumerate(parse(converted.model).operators):
        layout = schema.OPTIONS.get(operator.kind)
        if layout is None or operator.kind == "RESHAPE":
            continue
        stored = graph.Operators(number)
        read = fb.OperatorT.InitFromObj(stored).builtinOptions
        default = getattr(fb, f"{tables[stored.BuiltinOptionsType()]}T")()
        # In both classes fields are in the order of their slots.
        for slot, name in enumerate(vars(read)):
            present = stored.BuiltinOptions().Offset(4 + 2 * slot) != 0
            assert present == (getattr(read, name) != getattr(default, name)), name
            seen.add(present)
    assert seen == {True, False}


def test_the_reports_network_is_small(report: Converted) -> None:
    """A byte for each weight, four for each bias; what is left describes the graph."""
    sizes = {name: tensor.size for name, tensor in report.tensors().items()}
    data = sum(size * (4 if name.endswith("/bias") else 1) for name, size in sizes.items())
    assert data < len(report.model)
    assert len(report.model) <= LARGEST_REPORT_BYTES
