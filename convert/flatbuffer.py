"""The one writer of ``.tflite`` files: a `Graph` to bytes, the same bytes every time.

Compact: what is equal (shapes, zero points, quantisations, option tables) is stored once and
pointed to from every place, which the format allows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from firmware_ref import schema
from firmware_ref.graph import Graph, Operator, Quantization, Tensor

# TFLM wants constant data at multiples of 16 bytes.
DATA_ALIGNMENT_BYTES = 16


def write(graph: Graph) -> bytes:
    """The flatbuffer of ``graph``; `firmware_ref.graph.parse` reads it back."""
    builder = _Builder(2**18)
    data = [b"", *(_bytes(t.data) for t in graph.tensors if t.data is not None)]
    metadata_first = len(data)
    data += [graph.metadata[name] for name in sorted(graph.metadata)]
    buffers = _vector(builder, [_buffer(builder, content) for content in data])
    metadata = [
        _table(builder, [builder.CreateString(name), _Scalar(index, "I")])
        for index, name in enumerate(sorted(graph.metadata), metadata_first)
    ]
    codes = sorted({(operator.kind, operator.version) for operator in graph.operators})
    model = _table(
        builder,
        [
            _Scalar(schema.VERSION, "I"),
            _vector(builder, [_operator_code(builder, *code) for code in codes]),
            _vector(builder, [_subgraph(builder, graph, codes)]),
            builder.CreateString(graph.description),
            buffers,
            None,
            _vector(builder, metadata),
        ],
    )
    builder.Finish(model, file_identifier=schema.IDENTIFIER)
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no type information
    """A builder that remembers what may be shared: equal vectors, strings and quantisations."""

    def __init__(self, initial_bytes: int) -> None:
        super().__init__(initial_bytes)
        self._written: dict[Hashable, int] = {}

    def once(self, key: Hashable, write: Callable[[], int]) -> int:
        """The offset of what ``write`` writes, which is written for the first equal key only."""
        if key not in self._written:
            self._written[key] = int(write())
        return self._written[key]


class _Scalar:
    """A number in its table, by its struct format; the schema's default is left out."""

    def __init__(self, value: float, form: str, default: float = 0) -> None:
        self.value, self.form, self.default = value, form, default


def _table(builder: _Builder, fields: Sequence[_Scalar | int | None]) -> int:
    """A table from its slots in order: a scalar, the offset of something written, or absent."""
    slots: Mapping[str, Callable[..., None]] = {
        "b": builder.PrependInt8Slot,
        "B": builder.PrependUint8Slot,
        "?": builder.PrependBoolSlot,
        "i": builder.PrependInt32Slot,
        "I": builder.PrependUint32Slot,
        "f": builder.PrependFloat32Slot,
    }
    builder.StartObject(len(fields))
    for slot, item in enumerate(fields):
        if isinstance(item, _Scalar):
            slots[item.form](slot, item.value, item.default)
        elif item is not None:
            builder.PrependUOffsetTRelativeSlot(slot, item, 0)
    return int(builder.EndObject())


def _vector(builder: _Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _numbers(builder: _Builder, values: Sequence[float], dtype: str) -> int:
    array = np.array(values, dtype)
    return builder.once((dtype, array.tobytes()), lambda: builder.CreateNumpyVector(array))


def _buffer(builder: _Builder, content: bytes) -> int:
    if not content:
        return _table(builder, [])
    builder.StartVector(1, len(content), DATA_ALIGNMENT_BYTES)
    builder.head = builder.head - len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return _table(builder, [int(builder.EndVector())])


def _bytes(data: np.ndarray) -> bytes:
    return np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()


def _operator_code(builder: _Builder, kind: str, version: int) -> int:
    code = schema.BUILTIN_OPERATORS.index(kind)
    # The schema's older field is a signed byte; greater codes have a place-holder in it.
    old = min(code, schema.BUILTIN_OPERATORS.index("PLACEHOLDER_FOR_GREATER_OP_CODES"))
    fields = [_Scalar(old, "b"), None, _Scalar(version, "i", 1), _Scalar(code, "i")]
    return _table(builder, fields)


def _subgraph(builder: _Builder, graph: Graph, codes: Sequence[tuple[str, int]]) -> int:
    tensors, buffer = [], 0
    for tensor in graph.tensors:
        buffer += tensor.data is not None
        tensors.append(_tensor(builder, tensor, buffer if tensor.data is not None else 0))
    operators = [_operator(builder, operator, codes) for operator in graph.operators]
    fields = [
        _vector(builder, tensors),
        _numbers(builder, graph.inputs, "<i4"),
        _numbers(builder, graph.outputs, "<i4"),
        _vector(builder, operators),
        builder.CreateString("main"),
    ]
    return _table(builder, fields)


def _tensor(builder: _Builder, tensor: Tensor, buffer: int) -> int:
    types = {name: code for code, name in schema.TENSOR_TYPES.items()}
    return _table(
        builder,
        [
            _numbers(builder, tensor.shape, "<i4"),
            _Scalar(types[tensor.dtype], "b"),
            _Scalar(buffer, "I"),
            builder.once(tensor.name, lambda: builder.CreateString(tensor.name)),
            _quantization(builder, tensor.quantization),
        ],
    )


def _quantization(builder: _Builder, quantization: Quantization | None) -> int | None:
    if quantization is None:
        return None

    def write() -> int:
        scale = _numbers(builder, quantization.scale, "<f4")
        zero_point = _numbers(builder, quantization.zero_point, "<i8")
        return _table(
            builder, [None, None, scale, zero_point, None, None, _Scalar(quantization.axis, "i")]
        )

    return builder.once(quantization, write)


def _operator(builder: _Builder, operator: Operator, codes: Sequence[tuple[str, int]]) -> int:
    layout = schema.OPTIONS.get(operator.kind)
    union, options = None, None
    if layout is not None:
        given = tuple(sorted(operator.options.items()))
        union = _Scalar(layout.union, "B")
        options = builder.once((layout.union, given), lambda: _options(builder, layout, given))
    return _table(
        builder,
        [
            _Scalar(codes.index((operator.kind, operator.version)), "I"),
            _numbers(builder, operator.inputs, "<i4"),
            _numbers(builder, operator.outputs, "<i4"),
            union,
            options,
        ],
    )


def _options(builder: _Builder, layout: schema.Options, given: Sequence[tuple[str, Any]]) -> int:
    fields: list[_Scalar | int | None] = [None] * (
        1 + max(option.slot for option in layout.fields.values())
    )
    for name, value in given:
        fields[layout.fields[name].slot] = _option(builder, layout.fields[name], value)
    return _table(builder, fields)


def _option(builder: _Builder, option: schema.Option, value: Any) -> _Scalar | int:
    if option.type == "ints":
        return _numbers(builder, value, "<i4")
    if option.type == "padding":
        return _Scalar(schema.PADDINGS.index(value), "b")
    if option.type == "activation":
        return _Scalar(schema.ACTIVATIONS.index(value), "b")
    form = {"int": "i", "byte": "b", "bool": "?", "float": "f"}[option.type]
    return _Scalar(value, form, option.default)
