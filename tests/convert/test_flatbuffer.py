"""The writer, held against our reader, TensorFlow's own schema code and both interpreters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tflite_runtime.interpreter as tflite_runtime
from tflite_micro.python.tflite_micro import runtime as tflite_micro

from convert.flatbuffer import DATA_ALIGNMENT_BYTES, write
from firmware_ref import schema
from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from tests.convert.members import Converted


def describe(graph: Graph) -> dict[str, Any]:
    """Everything a graph says, as plain values that `==` compares."""
    tensors = [
        (t.name, t.shape, t.dtype, t.quantization, None if t.data is None else t.data.tobytes())
        for t in graph.tensors
    ]
    operators = [(o.kind, o.inputs, o.outputs, dict(o.options), o.version) for o in graph.operators]
    return {
        "tensors": tensors,
        "operators": operators,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "metadata": dict(graph.metadata),
        "description": graph.description,
    }


def options_of(kind: str, default: bool) -> dict[str, Any]:
    """Options of an operator: all at zero or the first of their names, or all at another value."""
    values: Mapping[str, tuple[Any, Any]] = {
        "int": (0, 3),
        "byte": (0, 1),
        "bool": (False, True),
        "float": (0.0, 0.5),
        "ints": ((), (1, -1)),
        "padding": ("SAME", "VALID"),
        "activation": ("NONE", "RELU6"),
    }
    fields = schema.OPTIONS[kind].fields if kind in schema.OPTIONS else {}
    return {name: values[option.type][not default] for name, option in fields.items()}


def one_operator(kind: str, default: bool, version: int = 1) -> Graph:
    """A graph with every dtype, both quantisations, a scalar, and one operator."""
    constants = [
        Tensor(f"constant.{dtype}", (2, 3), dtype, None, np.arange(6).reshape(2, 3).astype(dtype))
        for dtype in schema.TENSOR_TYPES.values()
        if dtype != "bool"
    ]
    grid = Quantization((0.25, 0.5, float(np.float32(1e-7))), (0, -3, 7), axis=1)
    tensors = (
        Tensor("in/put é", (1, 2), "int8", Quantization((0.1,), (-128,))),
        Tensor("scalar", (), "int32", None, np.array(-5, np.int32)),
        Tensor("bool", (2,), "bool", None, np.array([True, False])),
        Tensor("per channel", (2, 3), "int8", grid, np.full((2, 3), -127, np.int8)),
        *constants,
        Tensor("result", (1, 2), "int8"),
    )
    tensors = tuple(
        replace(t, quantization=Quantization((float(np.float32(0.1)),), (-128,))) if not n else t
        for n, t in enumerate(tensors)
    )
    last = len(tensors) - 1
    operator = Operator(kind, (0, 3, -1), (last,), options_of(kind, default), version)
    metadata = {"b": b"second", "a": b"", "tinyscene": b"\0\xff"}
    return Graph(tensors, (operator,), (0,), (last,), metadata, "a description")


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("kind", [*schema.OPTIONS, "LOGISTIC", "RSQRT", "TRANSPOSE"])
def test_what_is_written_is_read_back(kind: str, default: bool) -> None:
    graph = one_operator(kind, default, version=3)
    assert describe(parse(write(graph))) == describe(graph)


def test_operator_codes_above_127_and_two_versions_of_one() -> None:
    """BROADCAST_TO is number 130, which does not fit the schema's old signed byte."""
    graph = one_operator("BROADCAST_TO", True)
    between = replace(graph.tensors[-1], name="between")
    last = len(graph.tensors)
    operators = (
        Operator("LOGISTIC", (0,), (last,), {}, 1),
        Operator("BROADCAST_TO", (last,), (last - 1,), {}, 3),
        Operator("LOGISTIC", (last - 1,), (last + 1,), {}, 2),
    )
    tensors = (*graph.tensors, between, replace(between, name="end"))
    graph = replace(graph, tensors=tensors, operators=operators, outputs=(last + 1, last))
    assert describe(parse(write(graph))) == describe(graph)


def test_the_whole_model_is_read_back(converted: Converted) -> None:
    graph = parse(converted.model)
    again = write(graph)
    assert again == converted.model
    assert describe(parse(again)) == describe(graph)


def test_equal_graphs_give_equal_bytes(small: Converted) -> None:
    """Whatever the order in which metadata were put in, and wherever the arrays lie."""
    graph = parse(small.model)
    copied = [replace(t, data=None if t.data is None else t.data.copy()) for t in graph.tensors]
    graph = replace(graph, tensors=tuple(copied), metadata={"b": b"2", "a": b"1"})
    assert write(graph) == write(replace(graph, metadata={"a": b"1", "b": b"2"}))
    assert write(graph) != write(replace(graph, metadata={"a": b"1", "b": b"3"}))


def test_a_column_major_constant_is_written_in_row_order() -> None:
    graph = one_operator("RSQRT", True)
    matrix = np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))
    tensors = [replace(t, data=matrix) if t.name == "constant.int32" else t for t in graph.tensors]
    found = parse(write(replace(graph, tensors=tuple(tensors)))).tensors
    (read,) = (t.data for t in found if t.name == "constant.int32")
    assert read is not None and read.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_constant_data_are_aligned_in_the_file(converted: Converted) -> None:
    """At multiples of 16 bytes from the start of the file, which C aligns to 16 in turn."""
    data = converted.model
    base = np.frombuffer(data, np.uint8).ctypes.data
    starts = [t.data.ctypes.data - base for t in parse(data).tensors if t.data is not None]
    assert len(starts) > 20 and all(0 < start < len(data) for start in starts)
    assert DATA_ALIGNMENT_BYTES == 16
    assert [start for start in starts if start % 16] == []


# Fields whose name in TensorFlow's classes is not the schema's in camel case.
OTHER_NAMES = {"fused_activation": "fusedActivationFunction"}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return OTHER_NAMES.get(name, first + "".join(word.capitalize() for word in rest))


def read_by_tensorflow(fb: ModuleType, data: bytes) -> dict[str, Any]:
    """The same plain values as `describe`, by TensorFlow's own object API."""
    model = fb.ModelT.InitFromObj(fb.Model.GetRootAs(data, 0))
    names = {
        table: {value: name for name, value in vars(getattr(fb, table)).items() if name[0] != "_"}
        for table in ("BuiltinOperator", "TensorType", "Padding", "ActivationFunctionType")
    }
    (graph,) = model.subgraphs

    def content(index: int) -> bytes | None:
        stored = model.buffers[index].data
        return None if stored is None else bytes(np.asarray(stored, np.uint8))

    def quantization(stored: Any) -> Quantization | None:
        if stored is None or stored.scale is None:
            return None
        scale, zero_point = tuple(map(float, stored.scale)), tuple(map(int, stored.zeroPoint))
        return Quantization(scale, zero_point, stored.quantizedDimension)

    def option(stored: Any, name: str) -> Any:
        value = getattr(stored, camel(name))
        if name == "padding":
            return names["Padding"][value]
        if name == "fused_activation":
            return names["ActivationFunctionType"][value]
        return tuple(map(int, value)) if isinstance(value, np.ndarray) else value

    def operator(stored: Any) -> tuple[Any, ...]:
        code = model.operatorCodes[stored.opcodeIndex]
        kind = names["BuiltinOperator"][code.builtinCode]
        assert code.deprecatedBuiltinCode == min(code.builtinCode, 127)
        fields = schema.OPTIONS[kind].fields if kind in schema.OPTIONS else {}
        options = {name: option(stored.builtinOptions, name) for name in fields}
        inputs, outputs = tuple(map(int, stored.inputs)), tuple(map(int, stored.outputs))
        return kind, inputs, outputs, options, code.version

    tensors = [
        (
            t.name.decode(),
            tuple(map(int, t.shape)),
            names["TensorType"][t.type].lower(),
            quantization(t.quantization),
            content(t.buffer),
        )
        for t in graph.tensors
    ]
    assert content(0) is None, "buffer 0 is the schema's empty one"
    return {
        "tensors": tensors,
        "operators": [operator(stored) for stored in graph.operators],
        "inputs": tuple(map(int, graph.inputs)),
        "outputs": tuple(map(int, graph.outputs)),
        "metadata": {m.name.decode(): content(m.buffer) for m in model.metadata},
        "description": model.description.decode(),
    }


def test_tensorflow_reads_the_same(converted: Converted, tensorflow_schema: ModuleType) -> None:
    data = converted.model
    model = tensorflow_schema.Model.GetRootAs(data, 0)
    assert model.Version() == 3 and tensorflow_schema.Model.ModelBufferHasIdentifier(data, 0)
    assert read_by_tensorflow(tensorflow_schema, data) == describe(parse(data))


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("kind", schema.OPTIONS)
def test_tensorflow_reads_every_option(
    kind: str, default: bool, tensorflow_schema: ModuleType
) -> None:
    graph = one_operator(kind, default)
    graph = replace(graph, metadata={"name": b"value"})
    found = read_by_tensorflow(tensorflow_schema, write(graph))
    assert found["operators"] == describe(graph)["operators"]
    assert found["metadata"] == {"name": b"value"}


def test_both_interpreters_load_it(converted: Converted) -> None:
    interpreter = tflite_runtime.Interpreter(model_content=converted.model)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    micro = tflite_micro.Interpreter.from_bytes(converted.model)
    for mine, its in ((source, micro.get_input_details(0)), (result, micro.get_output_details(0))):
        assert mine["dtype"] == its["dtype"] == np.int8
        assert mine["shape"].tolist() == its["shape"].tolist()
        scales = its["quantization_parameters"]["scales"].tolist()
        assert mine["quantization_parameters"]["scales"].tolist() == scales
