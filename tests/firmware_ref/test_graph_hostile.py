"""Hostile bytes and the reader: an InputError or a graph, in bounded time."""

from __future__ import annotations

import inspect
import re
import struct
import time

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as fb

from firmware_ref import flatbuffer
from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from tests.firmware_ref.build import Model
from tests.firmware_ref.test_graph import VALID


def test_an_option_outside_of_its_table_is_refused() -> None:
    """``pot_scale_int16`` of ADD, which C++ would read wherever the file says."""
    model = Model()
    x, y = (model.tensor(tensor, (1, 4), 0.5, 0) for tensor in "xy")
    model.add("ADD", [x, x], [y], potScaleInt16=False, fusedActivationFunction=1)
    data = bytearray(model.pack([x], [y]))
    parse(bytes(data))
    # Its vtable: two fields, the second absent in one way or another by the generated code.
    found = re.search(struct.pack("<H", 8) + b"[\x06-\x0c]\0[\x04-\x0b]\0[\0-\x0b]\0", bytes(data))
    assert found
    struct.pack_into("<H", data, found.start() + 6, 60_000)
    with pytest.raises(InputError, match="flatbuffer field 1 leaves its table"):
        parse(bytes(data))


def test_every_truncation_is_refused() -> None:
    for length in range(len(VALID)):
        # The builder ends in padding or names: what is cut off may be no part of the model.
        try:
            parse(VALID[:length])
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert length > len(VALID) - 8


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_random_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, data[:4] + b"TFL3" + data[4:]):
        with pytest.raises(InputError):
            parse(candidate)


def test_mutations_give_a_graph_or_an_input_error() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(5000):
        data = bytearray(VALID)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        try:
            parse(bytes(data))
        except InputError:
            refused += 1
    assert refused > 500


def test_overlapping_vectors_cost_bounded_time() -> None:
    """A hostile file may name one long vector from many tables."""
    model = Model()
    quantised = model.tensor("x", (1, 60000), [0.5] * 60000, 0, axis=1)
    shared = model.tensors[quantised]
    model.tensors += [shared] * 99
    y = model.tensor("y", (1, 4), 0.5)
    model.add("RESHAPE", [0], [y])
    data = model.pack([0], [y])
    started = time.monotonic()
    with pytest.raises(InputError, match="vector elements"):
        parse(data)
    assert time.monotonic() - started < 5


def test_a_table_named_a_million_times_is_refused_at_once() -> None:
    """Each place of a vector costs a table's check; the budget is spent before any is made."""
    builder = flatbuffers.Builder(2**22)
    builder.StartObject(9)
    builder.PrependInt8Slot(1, 9, 0)
    tensor = builder.EndObject()
    builder.StartVector(4, 1_000_000, 4)
    for _ in range(1_000_000):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(0, tensors, 0)
    subgraph = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(subgraph)
    subgraphs = builder.EndVector()
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, subgraphs, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    data = bytes(builder.Output())
    started = time.process_time()
    with pytest.raises(InputError, match="over 200,000 tables"):
        parse(data)
    assert time.process_time() - started < 1


def many_references(count: int, fields: int, used: int | None = None) -> bytes:
    """A model of ``count`` buffers, all one table whose vtable has room for ``fields``."""
    data = bytearray(b"\0\0\0\0TFL3")
    data += struct.pack("<7H2x", 14, 12, 4, 0, 0, 0, 8)
    struct.pack_into("<I", data, 0, len(data))
    data += struct.pack("<iIII", len(data) - 8, 3, 4, count)
    vector = len(data)
    vtable = vector + 4 * count
    table = vtable + 4 + 2 * fields + 2 * (fields % 2)
    data += struct.pack(f"<{count}I", *(table - vector - 4 * n for n in range(count)))
    starts = [0] * (fields + fields % 2)
    if used is not None:
        starts[used] = 4
    data += struct.pack(f"<{2 + len(starts)}H", 4 + 2 * fields, 8, *starts)
    return bytes(data + struct.pack("<iI", table - vtable, 0))


def test_a_vtable_named_many_times_costs_bounded_time() -> None:
    """Fields are gone through at every reference to a table, absent ones too."""
    largest = max(map(int, re.findall(r"StartObject\((\d+)\)", inspect.getsource(fb))))
    assert largest == 17 < flatbuffer.MAX_FIELDS
    for count, fields, message in (
        (50_000, 32_000, "32,000 fields; at most 64"),
        (190_000, 64, ""),
    ):
        started = time.process_time()
        with pytest.raises(InputError, match=message or "subgraphs=0"):
            parse(many_references(count, fields))
        assert time.process_time() - started < 5
    with pytest.raises(InputError, match="Buffer has a field 60 that this schema does not know"):
        parse(many_references(3, 64, used=60))
