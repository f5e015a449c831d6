"""A bounds-checked view of FlatBuffers tables: every offset and length is tested before use.

The format is described in the FlatBuffers documentation, "Binary format"; nothing is taken on
trust, so that any bytes at all end in a value or in an `InputError`, in bounded time and memory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Literal

import numpy as np

from firmware_ref.errors import InputError

# Vectors may overlap in a hostile file, so the total that is read is bounded, not only each one.
MAX_ELEMENTS = 2_000_000
# A table costs more than a number, and vectors may name one table many times.
MAX_TABLES = 200_000
# The largest table of the TFLite schema has 17 fields.
MAX_FIELDS = 64

_SIZES: dict[str, int] = {"b": 1, "B": 1, "?": 1, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4}
ScalarFormat = Literal["b", "B", "?", "i", "I", "q", "Q", "f"]


class Source:
    """The bytes of one file, and how many vector elements have been read from them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._elements_left = MAX_ELEMENTS
        self._tables_left = MAX_TABLES

    def root(self, identifier: bytes) -> Table:
        """The root table; ``identifier`` is the four bytes expected after its offset."""
        if len(self.data) < 8 or self.data[4:8] != identifier:
            found = self.data[4:8]
            raise InputError(
                f"file identifier={found!r} is not {identifier!r}; give a .tflite flatbuffer"
            )
        return Table(self, self.offset(0))

    def scalar(self, position: int, form: ScalarFormat) -> int | float:
        """The little-endian scalar at ``position``."""
        self.check(position, _SIZES[form])
        return struct.unpack_from("<" + form, self.data, position)[0]

    def offset(self, position: int) -> int:
        """The position that the unsigned offset stored at ``position`` leads to."""
        step = int(self.scalar(position, "I"))
        if step < 4:
            raise InputError(f"flatbuffer offset={step} at byte {position} is wrong; {_DAMAGED}")
        return position + step

    def check(self, position: int, size: int) -> None:
        """Refuse a range of bytes that is not wholly inside the file."""
        if position < 0 or size < 0 or position + size > len(self.data):
            raise InputError(
                f"flatbuffer names bytes {position} to {position + size} of a file of "
                f"{len(self.data)} bytes; {_DAMAGED}"
            )

    def spend(self, elements: int) -> None:
        """Count vector elements against the file's total."""
        self._elements_left -= elements
        if self._elements_left < 0:
            raise InputError(f"flatbuffer holds over {MAX_ELEMENTS:,} vector elements; {_DAMAGED}")

    def spend_tables(self, count: int) -> None:
        """Count tables against the file's total."""
        self._tables_left -= count
        if self._tables_left < 0:
            raise InputError(f"flatbuffer holds over {MAX_TABLES:,} tables; {_DAMAGED}")


_DAMAGED = "the file is damaged or no .tflite; convert the model again"


class Table:
    """One table. ``slot`` numbers a field in the order of its schema, from 0."""

    def __init__(self, source: Source, position: int) -> None:
        self._source, self._position = source, position
        self._vtable = position - int(source.scalar(position, "i"))
        source.check(self._vtable, 4)
        self._vtable_size, self._size = struct.unpack_from("<HH", source.data, self._vtable)
        source.check(self._vtable, self._vtable_size)
        source.check(position, self._size)
        if self._vtable_size < 4 or self._vtable_size % 2 or self._size < 4:
            raise InputError(f"flatbuffer table at byte {position} has a broken vtable; {_DAMAGED}")
        fields = (self._vtable_size - 4) // 2
        if fields > MAX_FIELDS:
            raise InputError(
                f"flatbuffer table at byte {position} has {fields:,} fields; at most {MAX_FIELDS} "
                f"are accepted; {_DAMAGED}"
            )

    def _field(self, slot: int, size: int) -> int | None:
        entry = 4 + 2 * slot
        if entry + 2 > self._vtable_size:
            return None
        (start,) = struct.unpack_from("<H", self._source.data, self._vtable + entry)
        if not start:
            return None
        if start < 4 or start + size > self._size:
            raise InputError(
                f"flatbuffer field {slot} leaves its table at byte {self._position}; {_DAMAGED}"
            )
        return int(self._position + start)

    def offset_position(self, slot: int) -> int | None:
        """Where the offset of a vector, string or table field is stored; None if absent."""
        return self._field(slot, 4)

    def integer(self, slot: int, form: ScalarFormat = "i", default: int = 0) -> int:
        """An integer, enum or bool field."""
        field = self._field(slot, _SIZES[form])
        return default if field is None else int(self._source.scalar(field, form))

    def real(self, slot: int, default: float = 0.0) -> float:
        """A float32 field."""
        field = self._field(slot, 4)
        return default if field is None else float(self._source.scalar(field, "f"))

    def check(self, layouts: Mapping[str, tuple[str, ...]], name: str) -> None:
        """Test every field of this table and of all below it, those nothing here reads too.

        ``layouts`` has an entry a slot: ``"1"`` to ``"8"`` a scalar of so many bytes, ``"[4]"`` a
        vector of them, ``"text"``, ``"Name"`` a table, ``"[Name]"`` a vector of tables, ``"any"``
        a table of another schema. A field without an entry is refused.
        """
        layout = layouts[name]
        for slot in self.stored():
            if slot >= len(layout):
                raise InputError(
                    f"{name} has a field {slot} that this schema does not know; convert the model "
                    "with the pinned versions"
                )
            self._check_field(slot, layout[slot], layouts)

    def stored(self) -> list[int]:
        """The slots that are stored, each tested to lie in the table if it has one byte."""
        count = (self._vtable_size - 4) // 2
        starts = struct.unpack_from(f"<{count}H", self._source.data, self._vtable + 4)
        # All at once: 200,000 references to one table of 64 absent fields would cost seconds.
        slots = [slot for slot, start in enumerate(starts) if start]
        for slot in slots:
            self._field(slot, 1)
        return slots

    def _check_field(self, slot: int, kind: str, layouts: Mapping[str, tuple[str, ...]]) -> None:
        inner = kind.strip("[]")
        if kind.isdecimal():
            self._field(slot, int(kind))
        elif kind == "any":
            self.table(slot)
        elif kind == "text" or inner.isdecimal():
            self._vector(slot, 1 if kind == "text" else int(inner))
        else:
            tables = self.tables(slot) if kind != inner else [self.table(slot)]
            for table in tables:
                if table is not None:
                    table.check(layouts, inner)

    def table(self, slot: int) -> Table | None:
        """A sub-table, or a union's value."""
        field = self._field(slot, 4)
        return None if field is None else Table(self._source, self._source.offset(field))

    def vector(self, slot: int, dtype: str) -> np.ndarray | None:
        """A vector of scalars as a read-only view, without copying."""
        found = self._vector(slot, np.dtype(dtype).itemsize)
        if found is None:
            return None
        start, count = found
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self._source.data, dtype, count, start)

    def values(self, slot: int, dtype: str) -> tuple[int | float, ...]:
        """A vector of scalars as Python numbers; empty where it is absent."""
        array = self.vector(slot, dtype)
        if array is None:
            return ()
        self._source.spend(len(array))
        return tuple(array.tolist())

    def integers(self, slot: int, dtype: str = "<i4") -> tuple[int, ...]:
        """A vector of integers as Python integers; empty where it is absent."""
        return tuple(int(value) for value in self.values(slot, dtype))

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables; empty where it is absent."""
        found = self._vector(slot, 4)
        if found is None:
            return []
        start, count = found
        self._source.spend_tables(count)
        positions = range(start, start + 4 * count, 4)
        return [Table(self._source, self._source.offset(position)) for position in positions]

    def text(self, slot: int) -> str:
        """A string field; empty where it is absent."""
        array = self.vector(slot, "u1")
        if array is None:
            return ""
        self._source.spend(len(array))
        try:
            return array.tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"flatbuffer string is not UTF-8; {_DAMAGED}") from None

    def _vector(self, slot: int, item_size: int) -> tuple[int, int] | None:
        """Position of the first element and number of elements."""
        field = self._field(slot, 4)
        if field is None:
            return None
        start = self._source.offset(field)
        count = int(self._source.scalar(start, "I"))
        self._source.check(start + 4, count * item_size)
        return start + 4, count
