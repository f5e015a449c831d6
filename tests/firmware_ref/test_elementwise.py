"""Operators on two maps: looked up or computed, all 65,536 pairs are what both oracles give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.graph import Graph, parse
from firmware_ref.ops import prepare
from firmware_ref.ops.elementwise import (
    INT8_CODES,
    SMALLEST_TABLED_MAP,
    Binary,
    PairTable,
    look_up,
)
from firmware_ref.oracle import ORACLES
from firmware_ref.run import Interpreter
from firmware_ref.verify import verify
from tests.firmware_ref.build import Model

KINDS = ["ADD", "SUB", "MUL", "SQUARED_DIFFERENCE"]
Grids = tuple[tuple[float, int], tuple[float, int], tuple[float, int]]
# First, second and output: zero points at the ends, powers of two (which give ties); the first
# has a RELU.
GRIDS: list[Grids] = [
    ((0.02, -128), (0.05, 0), (0.04, 3)),
    ((0.5, 0), (0.25, -7), (0.5, -100)),
    ((0.007, 127), (0.05, 127), (0.11, -20)),
]
CODES = np.arange(-128, 128).astype(np.int8)
BOTH = list(ORACLES.values())
every_kind = pytest.mark.parametrize("kind", KINDS)
every_grid = pytest.mark.parametrize("grids", GRIDS, ids=range(len(GRIDS)))


def model_of(
    kind: str,
    grids: Grids,
    shape: Sequence[int],
    constant: np.ndarray | None,
    constant_first: bool = False,
) -> bytes:
    """The operator on ``x`` and a constant, or (without one) on ``x`` and itself."""
    model = Model()
    x = model.tensor("x", shape, *grids[constant_first])
    inputs, out = [x, x], tuple(shape)
    if constant is not None:
        other = model.tensor("c", constant.shape, *grids[not constant_first], constant)
        inputs, out = [x, other], np.broadcast_shapes(out, constant.shape)
    y = model.tensor("y", out, *grids[2])
    options = (
        {} if kind == "SQUARED_DIFFERENCE" else {"fusedActivationFunction": int(grids[2][1] == 3)}
    )
    model.add(kind, inputs[::-1] if constant_first else inputs, [y], **options)
    return model.pack([x], [y])


def kernel_of(graph: Graph) -> object:
    return prepare(graph.operators[0], graph)


def verified(data: bytes, inputs: np.ndarray) -> np.ndarray:
    """The output, which both oracles have given too."""
    graph = parse(data)
    report = verify(graph, data, inputs, BOTH)
    assert report.ok, report
    return Interpreter(graph).run(inputs)


@every_grid
@every_kind
@pytest.mark.parametrize("constant_first", [False, True])
def test_every_pair_looked_up_and_computed(kind: str, grids: Grids, constant_first: bool) -> None:
    """A table of both operands on a large map; computed on maps just below the size for one."""
    column = CODES[:, None]
    large = model_of(kind, grids, (1, 256, 256), column[None], constant_first)
    assert isinstance(kernel_of(parse(large)), PairTable)
    inputs = np.broadcast_to(CODES, (1, 256, 256))
    looked_up = verified(large, inputs)

    computed = []
    rows = (SMALLEST_TABLED_MAP - 1) // 256
    for start in range(0, 256, rows):
        part = column[None, start : start + rows]
        small = model_of(kind, grids, (1, part.size, 256), part, constant_first)
        assert isinstance(kernel_of(parse(small)), Binary)
        computed.append(verified(small, inputs[:, start : start + rows]))
    assert np.array_equal(looked_up, np.concatenate(computed, axis=1))
    assert len(np.unique(looked_up)) > 5


@every_grid
@every_kind
def test_the_table_of_both_holds_what_is_computed(kind: str, grids: Grids) -> None:
    table = kernel_of(parse(model_of(kind, grids, (1, 256, 256), CODES[None, :, None])))
    plain = kernel_of(parse(model_of(kind, grids, (1, 1, 256), CODES[None, :5, None])))
    assert isinstance(table, PairTable) and isinstance(plain, Binary)
    first, second = np.meshgrid(INT8_CODES, INT8_CODES)
    entries = plain.compute(first, second)
    assert np.array_equal(table.entries, entries.ravel())
    # Index 256 * second + first, both read as uint8.
    assert table.entries[256 * 3 + 255] == plain.compute(np.int8([-1]), np.int8([3]))[0]


@pytest.mark.parametrize("size", [256, 3 * SMALLEST_TABLED_MAP])
@every_grid
@every_kind
def test_a_map_with_itself(kind: str, grids: Grids, size: int) -> None:
    """One grid for both: a table of one operand holds the diagonal."""
    same = (grids[0], grids[0], grids[2])
    inputs = np.resize(CODES, (3, size))
    found = verified(model_of(kind, same, (1, size), None), inputs)
    pairs = verified(model_of(kind, same, (1, 256, 256), CODES[None, :, None]), _every_first())
    assert np.array_equal(found[0, :256], np.diagonal(pairs[0]))


def _every_first() -> np.ndarray:
    return np.broadcast_to(CODES, (1, 256, 256))


@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4])
@every_grid
@every_kind
def test_a_constant_of_one_value(kind: str, grids: Grids, rank: int, constant_first: bool) -> None:
    """Looked up where the map is larger than the table, and computed where it is not."""
    for code in (-128, -5, 0, 127):
        constant = np.full((1,) * rank, code, np.int8)
        inputs = np.resize(CODES, (2, 257))
        tabled = verified(model_of(kind, grids, (1, 257), constant, constant_first), inputs)
        small = model_of(kind, grids, (1, 256), constant, constant_first)
        assert isinstance(kernel_of(parse(small)), Binary)
        computed = verified(small, inputs[:, :256])
        assert np.array_equal(tabled[..., :256], computed)
        assert np.array_equal(tabled[..., 256], computed[..., 0])


def test_a_nudged_entry_is_seen() -> None:
    """One pair of 65,536 off by one fails the comparison, and only there."""
    graph = parse(model_of("MUL", GRIDS[0], (1, 256, 256), CODES[None, :, None]))
    table = kernel_of(graph)
    assert isinstance(table, PairTable)
    entries = table.entries.copy()
    entries[256 * 200 + 17] ^= 1
    inputs = _every_first()
    different = replace(table, entries=entries)(inputs) != table(inputs)
    # Code 200 read as int8 is -56, row 72; code 17 is column 145.
    assert np.argwhere(different).tolist() == [[0, 72, 145]]


def test_look_up_on_a_view() -> None:
    table = np.arange(256)[::-1]
    x = CODES.reshape(16, 16)[::2, 1::3]
    expected = [[table[value & 255] for value in row] for row in x.tolist()]
    assert look_up(table, x).tolist() == expected
