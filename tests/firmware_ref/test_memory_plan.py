"""The plan of memory in a model's metadata: read as TFLM reads it, and held by the oracle."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from firmware_ref.memory_plan import ONLINE, PLAN_NAME, encode_offsets, planned_offsets
from firmware_ref.oracle import ORACLES, without_metadata
from firmware_ref.verify import verify
from tests.firmware_ref.build import write

SIZE = 32


def chain(*offsets: int) -> bytes:
    """Three additions of a map to what came before it, 32 bytes each; four maps with offsets."""
    grid = Quantization((0.5,), (0,))
    tensors = [Tensor(name, (1, SIZE), "int8", grid) for name in "abcd"]
    operators = [Operator("ADD", (i, 0), (i + 1,)) for i in range(3)]
    graph = Graph(tuple(tensors), tuple(operators), (0,), (3,))
    return write(replace(graph, metadata={PLAN_NAME: encode_offsets(offsets)} if offsets else {}))


def plan_of(words: bytes) -> tuple[int, ...] | None:
    return planned_offsets(replace(parse(chain()), metadata={PLAN_NAME: words}))


def test_the_words_of_a_plan() -> None:
    """By hand: version 0, subgraph 0, four tensors, their offsets; little-endian."""
    words = struct.pack("<7i", 0, 0, 4, 0, 32, 64, -1)
    assert encode_offsets([0, 32, 64, ONLINE]) == words
    assert plan_of(words) == (0, 32, 64, ONLINE)
    assert planned_offsets(parse(chain(0, 32, 64, ONLINE))) == (0, 32, 64, ONLINE)
    assert planned_offsets(parse(chain())) is None


@pytest.mark.parametrize(
    "words",
    [
        struct.pack("<7i", 0, 1, 4, 0, 32, 64, 32),  # as Vela numbers the subgraph
        struct.pack("<7i", 1, 0, 4, 0, 32, 64, 32),
        struct.pack("<8i", 0, 0, 4, 0, 32, 64, 32, 7) + b"x",
    ],
)
def test_what_tflm_does_not_look_at_is_allowed(words: bytes) -> None:
    assert plan_of(words) == (0, 32, 64, 32)
    assert mismatches(write(replace(parse(chain()), metadata={PLAN_NAME: words}))) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (b"", "0 bytes for 0 tensors; 28 are needed for the graph's 4"),
        (struct.pack("<6i", 0, 0, 4, 0, 0, 0), "24 bytes for 4 tensors; 28 are needed"),
        (struct.pack("<7i", 0, 0, 3, 0, 0, 0, 0), "28 bytes for 3 tensors; 28 are needed"),
        (struct.pack("<7i", 0, 0, 4, 0, 0, 0, -2), "offset -2; allowed are -1 and multiples of 16"),
        (struct.pack("<7i", 0, 0, 4, 0, 32, 8, 0), "offset 8; allowed are -1 and multiples of 16"),
    ],
)
def test_a_damaged_plan_is_refused(words: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"{PLAN_NAME}.*{said}"):
        plan_of(words)
    data = write(replace(parse(chain()), metadata={PLAN_NAME: words or b"\0"}))
    example = np.zeros((1, SIZE), np.int8)
    with pytest.raises(InputError, match=PLAN_NAME):
        verify(parse(data), data, example, [ORACLES["tflite-micro"]])


def mismatches(data: bytes) -> int:
    example = np.arange(-SIZE // 2, SIZE // 2, dtype=np.int8)[None]
    (result,) = verify(parse(data), data, example, [ORACLES["tflite-micro"]]).oracles
    assert result.tensors == 3 and result.values == 3 * SIZE
    return result.mismatches


def test_the_oracle_sees_every_tensor_of_a_planned_model() -> None:
    """``b`` is dead when ``d`` is written in its place, and is compared all the same."""
    assert mismatches(chain()) == mismatches(chain(0, 32, 64, 32)) == 0


def test_the_oracle_sees_a_plan_that_overwrites_what_is_alive() -> None:
    """``b`` or ``c`` in the place of ``a``, which every addition reads: wrong on the device."""
    assert mismatches(chain(0, 0, 64, 32)) > 0
    assert mismatches(chain(0, 32, 0, 64)) > 0


def test_a_plan_beyond_the_arena_is_refused() -> None:
    with pytest.raises(InputError, match="oracle tflite-micro"):
        mismatches(chain(0, 32, 64, 1 << 30))


def test_metadata_alone_are_left_out() -> None:
    planned, plain = chain(0, 32, 64, 32), chain()
    found = parse(without_metadata(planned))
    assert found.metadata == {} and parse(planned).metadata
    assert (found.operators, found.inputs, found.outputs) == (
        parse(planned).operators,
        (0,),
        (3,),
    )
    assert parse(without_metadata(plain)).metadata == {}
