"""An INT8 network as data, and the one reader of ``.tflite`` files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref import schema
from firmware_ref.errors import InputError, read_bytes
from firmware_ref.flatbuffer import ScalarFormat, Source, Table

METADATA_NAME = "tinyscene"

MAX_FILE_BYTES = 1 << 26
MAX_TENSORS = 2_500
MAX_OPERATORS = 2_500  # an MCU model has hundreds; counting so many stays under a second
MAX_RANK = 8
MAX_ELEMENTS = 1 << 28
MAX_METADATA = 64
MAX_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation ``real = scale * (q - zero_point)``, per tensor or along ``axis``.

    Scales are float32 values held as Python floats; one entry, or one a channel.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor: an activation (``data`` is None) or a constant. Maps are (N, F, T, C)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Operator:
    """One TFLite builtin operator, named as in the schema (``CONV_2D``).

    ``inputs`` and ``outputs`` index `Graph.tensors`; -1 marks an absent optional input.
    ``options`` holds the builtin options under their schema names (``stride_h``, ``padding``
    as ``"SAME"``/``"VALID"``, ``fused_activation`` as ``"NONE"``/``"RELU"``/``"RELU6"``, ...).
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """One subgraph in execution order, with the model's metadata buffers by name."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""

    def name(self, operator: Operator) -> str:
        """The layer name of an operator: the name of its first output."""
        return self.tensors[operator.outputs[0]].name


def read(path: str | Path) -> Graph:
    """Read a ``.tflite`` file of at most `MAX_FILE_BYTES`; see `parse`."""
    return parse(read_bytes(path, MAX_FILE_BYTES, "model"), f"model {str(path)!r}")


def parse(data: bytes, name: str = "model") -> Graph:
    """The graph in the bytes of a ``.tflite`` flatbuffer.

    Accepts schema version 3 with one subgraph, dense constant tensors inside the flatbuffer, and
    operators in execution order. Operators that nothing here can execute are read all the same
    (``CUSTOM:name``, ``BUILTIN_n``). Constant data are read-only views of ``data``.

    Raises `InputError`, naming ``name``, for any other bytes, in time and memory bounded by the
    limits above.
    """
    try:
        return _parse(data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _parse(data: bytes) -> Graph:
    model = Source(data).root(schema.IDENTIFIER)
    version = model.integer(0, "I")
    if version != schema.VERSION:
        raise InputError(f"schema version={version}; only {schema.VERSION} is supported")
    model.check(schema.TABLES, "Model")
    subgraphs = model.tables(schema.MODEL_SUBGRAPHS)
    if len(subgraphs) != 1:
        raise InputError(f"subgraphs={len(subgraphs)}; exactly 1 is allowed (no control flow)")
    kinds = [_kind(table) for table in model.tables(1)]
    buffers = model.tables(4)
    tensor_tables = _limited(subgraphs[0].tables(0), MAX_TENSORS, "tensors")
    operator_tables = _limited(subgraphs[0].tables(3), MAX_OPERATORS, "operators")
    tensors = tuple(_tensor(i, table, buffers) for i, table in enumerate(tensor_tables))
    graph = Graph(
        tensors=tensors,
        operators=tuple(_operator(i, t, kinds) for i, t in enumerate(operator_tables)),
        inputs=subgraphs[0].integers(1),
        outputs=subgraphs[0].integers(schema.SUBGRAPH_OUTPUTS),
        metadata=_metadata(model, buffers),
        description=model.text(3),
    )
    _check_flow(graph)
    return graph


def _limited(tables: list[Table], limit: int, what: str) -> list[Table]:
    if len(tables) > limit:
        raise InputError(f"{what}={len(tables)}; at most {limit:,} are accepted")
    return tables


def _kind(table: Table) -> tuple[str, int]:
    """Name and version of an operator code."""
    old, new = table.integer(0, "b"), table.integer(3)
    # Writers older than schema 3a know only the first field; newer ones keep both in step.
    code = max(old, new)
    if code == schema.CUSTOM:
        return f"CUSTOM:{table.text(1)}", table.integer(2, default=1)
    if code < 0:
        raise InputError(f"operator code={code} is negative; the file is damaged")
    known = code < len(schema.BUILTIN_OPERATORS)
    name = schema.BUILTIN_OPERATORS[code] if known else f"BUILTIN_{code}"
    return name, table.integer(2, default=1)


def _tensor(index: int, table: Table, buffers: list[Table]) -> Tensor:
    name = table.text(3)
    label = f"tensor {index} {name!r}"
    code = table.integer(1, "b")
    if code not in schema.TENSOR_TYPES:
        allowed = ", ".join(schema.TENSOR_TYPES.values())
        raise InputError(f"{label}: type={code} is not supported; allowed: {allowed}")
    dtype = schema.TENSOR_TYPES[code]
    shape = table.integers(0)
    if len(shape) > MAX_RANK or any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise InputError(
            f"{label}: shape={_short(shape)}; allowed are up to {MAX_RANK} positive sizes with a "
            f"product of at most {MAX_ELEMENTS:,}"
        )
    if table.integer(5, "?"):
        raise InputError(f"{label}: is a variable; only stateless models are supported")
    if table.table(6) is not None:
        raise InputError(f"{label}: is stored sparsely; convert the model with dense weights")
    buffer_index = table.integer(2, "I")
    data = None
    if buffer_index:
        data = _constant(label, _buffer(label, buffer_index, buffers), shape, dtype)
    quantization = _quantization(label, table.table(4), shape, dtype)
    return Tensor(name, shape, dtype, quantization, data)


def _buffer(label: str, index: int, buffers: list[Table]) -> np.ndarray:
    """The bytes of a buffer, not copied; empty for an activation."""
    if index >= len(buffers):
        raise InputError(f"{label}: buffer={index}; the file has {len(buffers)}")
    buffer = buffers[index]
    if buffer.integer(1, "Q") > 1 or buffer.integer(2, "Q") > 1:
        raise InputError(f"{label}: its data lie outside the flatbuffer, which is not supported")
    data = buffer.vector(0, "u1")
    return np.empty(0, np.uint8) if data is None else data


def _constant(
    label: str, data: np.ndarray, shape: tuple[int, ...], dtype: str
) -> np.ndarray | None:
    if not len(data):
        return None
    stored = np.dtype(dtype).newbyteorder("<")
    wanted = math.prod(shape) * stored.itemsize
    if len(data) != wanted:
        raise InputError(
            f"{label}: buffer holds {len(data):,} bytes; shape={shape} of {dtype} takes {wanted:,}"
        )
    if dtype == "bool" and data.max() > 1:
        raise InputError(f"{label}: a bool is neither 0 nor 1; the file is damaged")
    return data.view(stored).reshape(shape)


def _quantization(
    label: str, table: Table | None, shape: tuple[int, ...], dtype: str
) -> Quantization | None:
    if table is None:
        return None
    scale = tuple(float(value) for value in table.values(2, "<f4"))
    zero_point = table.integers(3, "<i8")
    if table.integer(4, "B"):
        raise InputError(f"{label}: custom quantisation; only affine quantisation is supported")
    if not scale:
        return None
    if not all(math.isfinite(value) and value > 0 for value in scale):
        bad = next(value for value in scale if not (math.isfinite(value) and value > 0))
        raise InputError(f"{label}: scale={bad}; scales must be positive and finite")
    if len(zero_point) != len(scale):
        raise InputError(f"{label}: scales={len(scale)} and zero points={len(zero_point)} differ")
    bounds = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.iinfo("int32")
    if not all(bounds.min <= value <= bounds.max for value in zero_point):
        raise InputError(f"{label}: zero point outside [{bounds.min}, {bounds.max}] of {dtype}")
    axis = table.integer(6)
    if not 0 <= axis < max(len(shape), 1):
        raise InputError(f"{label}: quantised dimension={axis} of a shape with {len(shape)} sizes")
    if len(scale) > 1 and (not shape or len(scale) != shape[axis]):
        raise InputError(f"{label}: scales={len(scale)} for dimension {axis} of shape={shape}")
    return Quantization(scale, zero_point, axis)


def _operator(index: int, table: Table, kinds: Sequence[tuple[str, int]]) -> Operator:
    code = table.integer(0, "I")
    if code >= len(kinds):
        raise InputError(f"operator {index}: opcode index={code}; the file has {len(kinds)}")
    kind, version = kinds[code]
    inputs = table.integers(1)
    if len(inputs) > MAX_TENSORS:
        raise InputError(
            f"operator {index} {kind}: inputs={len(inputs)}; at most {MAX_TENSORS:,} are accepted"
        )
    return Operator(
        kind=kind,
        inputs=inputs,
        outputs=table.integers(2),
        options=_options(f"operator {index} {kind}", kind, table),
        version=version,
    )


def _options(label: str, kind: str, table: Table) -> Mapping[str, Any]:
    """The options of the kinds in `schema.OPTIONS`; the schema's defaults where none are stored."""
    layout = schema.OPTIONS.get(kind)
    if layout is None:
        return {}
    union, stored = table.integer(3, "B"), table.table(4)
    if union not in (0, layout.union) or (union == 0) != (stored is None):
        raise InputError(f"{label}: options type={union}; its own is {layout.union}")
    if stored is not None:
        # An interpreter reads more options than these, all of one byte, and tests none of them.
        stored.stored()
    return {name: _option(label, name, item, stored) for name, item in layout.fields.items()}


def _option(label: str, name: str, option: schema.Option, table: Table | None) -> Any:
    if option.type == "ints":
        return table.integers(option.slot) if table else ()
    if option.type == "float":
        value = table.real(option.slot) if table else 0.0
        if not math.isfinite(value):
            raise InputError(f"{label}: {name}={value} must be finite")
        return value
    if option.type in ("int", "byte"):
        form: ScalarFormat = "i" if option.type == "int" else "b"
        return table.integer(option.slot, form, option.default) if table else option.default
    if option.type == "bool":
        return bool(table.integer(option.slot, "?")) if table else False
    names = schema.PADDINGS if option.type == "padding" else schema.ACTIVATIONS
    code = table.integer(option.slot, "b") if table else 0
    if not 0 <= code < len(names):
        raise InputError(f"{label}: {name}={code} is none of {', '.join(names)}")
    return names[code]


def _metadata(model: Table, buffers: list[Table]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for table in _limited(model.tables(schema.MODEL_METADATA), MAX_METADATA, "metadata entries"):
        name = table.text(0)
        label = f"metadata {name!r}"
        data = _buffer(label, table.integer(1, "I"), buffers)
        if len(data) > MAX_METADATA_BYTES:
            raise InputError(f"{label}: {len(data):,} bytes; at most {MAX_METADATA_BYTES:,}")
        if name == METADATA_NAME and name in found:
            raise InputError(f"{label} is there twice; convert the model again")
        # TensorFlow's own converter repeats entries of its own; the first counts.
        found.setdefault(name, data.tobytes())
    return found


def _check_flow(graph: Graph) -> None:
    """Every index in range, every tensor written once and before it is read."""
    count = len(graph.tensors)
    if not graph.inputs or not graph.outputs:
        raise InputError(
            f"graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "at least one of each is needed"
        )
    ready = {index for index, tensor in enumerate(graph.tensors) if tensor.data is not None}
    _check_indices("graph", "inputs", graph.inputs, range(count))
    for index in graph.inputs:
        if index in ready:
            raise InputError(f"graph input {index} is a constant or is named twice")
        ready.add(index)
    for number, operator in enumerate(graph.operators):
        label = f"operator {number} {operator.kind}"
        _check_indices(label, "inputs", operator.inputs, range(-1, count))
        _check_indices(label, "outputs", operator.outputs, range(count))
        if not operator.outputs:
            raise InputError(f"{label}: has no output")
        for index in operator.inputs:
            if index != -1 and index not in ready:
                name = graph.tensors[index].name
                raise InputError(f"{label}: reads tensor {index} {name!r} before it is written")
        for index in operator.outputs:
            if index in ready:
                name = graph.tensors[index].name
                raise InputError(f"{label}: writes tensor {index} {name!r}, which has a value")
            ready.add(index)
    _check_indices("graph", "outputs", graph.outputs, range(count))
    for index in graph.outputs:
        if index not in ready:
            raise InputError(f"graph output {index} {graph.tensors[index].name!r} is never written")


def _check_indices(label: str, what: str, indices: tuple[int, ...], allowed: range) -> None:
    for index in indices:
        if index not in allowed:
            raise InputError(
                f"{label}: {what} name tensor {index}; the graph has {allowed.stop} tensors"
            )


def _short(values: tuple[int, ...]) -> str:
    return str(values) if len(values) <= MAX_RANK else f"({len(values)} sizes)"
