"""Compares every tensor of `firmware_ref` with an oracle's: equal, or told where not."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.errors import CheckFailedError, InputError, read_bytes
from firmware_ref.graph import Graph
from firmware_ref.oracle import Oracle, Session, session
from firmware_ref.run import BATCH, Interpreter

MAX_INPUT_BYTES = 1 << 28
MAX_RANDOM_BYTES = 1 << 31
MAX_RANK = 8
INPUTS_NAME = "inputs"

Progress = Callable[[int, int], None]
"""Called with the number of inputs done and their total."""


@dataclass(frozen=True)
class Mismatch:
    """The first layer, in order of execution, with an unequal value, over all inputs.

    ``index`` is that of the first unequal value, the number of the input first; ``count`` of
    ``values`` differ in this layer, by ``largest_difference`` at most.
    """

    layer: str
    op: str
    index: tuple[int, ...]
    expected: int
    actual: int
    count: int
    values: int
    largest_difference: int


@dataclass(frozen=True)
class OracleResult:
    """What the comparison with one oracle gave: ``values`` compared, ``mismatches`` unequal."""

    name: str
    version: str
    kernels: str
    tensors: int
    values: int
    mismatches: int
    first_mismatch: Mismatch | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``first_mismatch`` only where there is one."""
        fields = dataclasses.asdict(self)
        if self.first_mismatch is None:
            del fields["first_mismatch"]
        return fields


@dataclass(frozen=True)
class Report:
    """All comparisons over the same inputs."""

    inputs: int
    oracles: tuple[OracleResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every value of every tensor is equal to every oracle's."""
        return not any(result.mismatches for result in self.oracles)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        oracles = [result.to_dict() for result in self.oracles]
        return {"ok": self.ok, "inputs": self.inputs, "oracles": oracles}


def verify(
    graph: Graph,
    data: bytes,
    inputs: np.ndarray,
    oracles: Sequence[Oracle],
    progress: Progress | None = None,
) -> Report:
    """Run ``graph`` here and ``data`` in the oracles, and compare all operators' outputs.

    ``data`` are the bytes that ``graph`` was read from; ``inputs`` int8 (N, ...).
    """
    return compare(Interpreter(graph), data, inputs, oracles, progress)


def compare(
    interpreter: Interpreter,
    data: bytes,
    inputs: np.ndarray,
    oracles: Sequence[Oracle],
    progress: Progress | None = None,
    opened: Callable[[Oracle, bytes, Graph], Session] = session,
) -> Report:
    """`verify` with an interpreter that is there already, and another way to open the oracles."""
    graph = interpreter.graph
    interpreter.check(inputs)
    if not oracles:
        raise InputError("no oracle is named; give at least one")
    sessions = [opened(oracle, data, graph) for oracle in oracles]
    tallies = [_Tally(graph) for _ in oracles]
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        actual = interpreter.run_all(batch)
        for number in range(len(batch)):
            for run, tally in zip(sessions, tallies, strict=True):
                expected = run(batch[number : number + 1])
                for index, values in expected.items():
                    ours = actual[index][number : number + 1]
                    tally.compare(index, start + number, values, ours)
            if progress:
                progress(start + number + 1, len(inputs))
    results = (tally.result(oracle) for oracle, tally in zip(oracles, tallies, strict=True))
    return Report(len(inputs), tuple(results))


class _Tally:
    """Counts what differs from one oracle."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._found: dict[int, Mismatch] = {}
        self._compared: dict[int, int] = {}

    def compare(self, index: int, number: int, expected: np.ndarray, actual: np.ndarray) -> None:
        """One tensor for one input; both (1, ...)."""
        if expected.dtype != actual.dtype or expected.shape != actual.shape:
            raise CheckFailedError(
                f"tensor {self._graph.tensors[index].name!r} is {expected.dtype} "
                f"{expected.shape} in the oracle and {actual.dtype} {actual.shape} here; "
                "the file's shapes are not those its operators give"
            )
        self._compared[index] = self._compared.get(index, 0) + expected.size
        if not np.array_equal(expected, actual):
            self._record(index, number, expected[0], actual[0])

    def _record(self, index: int, number: int, expected: np.ndarray, actual: np.ndarray) -> None:
        differences = np.abs(expected.astype(np.int64) - actual)
        count, largest = int(np.count_nonzero(differences)), int(differences.max())
        if found := self._found.get(index):
            count, largest = count + found.count, max(largest, found.largest_difference)
            self._found[index] = dataclasses.replace(found, count=count, largest_difference=largest)
            return
        first = tuple(int(axis[0]) for axis in np.nonzero(differences))
        self._found[index] = Mismatch(
            layer=self._graph.tensors[index].name,
            op=next(o.kind for o in self._graph.operators if index in o.outputs),
            index=(number, *first),
            expected=int(expected[first]),
            actual=int(actual[first]),
            count=count,
            values=0,
            largest_difference=largest,
        )

    def result(self, oracle: Oracle) -> OracleResult:
        """The counts, with the first layer that went wrong."""
        written = [index for operator in self._graph.operators for index in operator.outputs]
        wrong = [index for index in written if index in self._found]
        first = None
        if wrong:
            values = self._compared[wrong[0]]
            first = dataclasses.replace(self._found[wrong[0]], values=values)
        return OracleResult(
            name=oracle.name,
            version=oracle.version,
            kernels=oracle.kernels,
            tensors=len(self._compared),
            values=sum(self._compared.values()),
            mismatches=sum(found.count for found in self._found.values()),
            first_mismatch=first,
        )


def random_inputs(graph: Graph, count: int, seed: int) -> np.ndarray:
    """Uniform int8 inputs (count, ...) from NumPy's default generator."""
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    size = count * math.prod(shape)
    if size > MAX_RANDOM_BYTES:
        raise InputError(
            f"{count:,} random inputs of shape={shape} take {size:,} bytes; at most "
            f"{MAX_RANDOM_BYTES:,} are made; ask for fewer"
        )
    return np.random.default_rng(seed).integers(-128, 128, (count, *shape), dtype=np.int8)


def read_inputs(path: str | Path) -> np.ndarray:
    """The array ``inputs``, int8 (N, ...), of an ``.npz`` file.

    Nothing is unpickled, and nothing larger than `MAX_INPUT_BYTES` unpacked.
    """
    data = read_bytes(path, MAX_INPUT_BYTES, "inputs")
    what = f"inputs {str(path)!r}"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = archive.getinfo(f"{INPUTS_NAME}.npy")
            size = member.file_size
            raw = archive.read(member) if size <= MAX_INPUT_BYTES else b""
        shape, dtype, start = _header(raw) if raw else ((), None, 0)
    # zipfile and NumPy raise errors of a dozen kinds for damaged bytes.
    except Exception:
        raise InputError(
            f"{what} is no .npz file with an array {INPUTS_NAME!r}; write one with "
            f"numpy.savez(file, {INPUTS_NAME}=array)"
        ) from None
    if size > MAX_INPUT_BYTES:
        raise InputError(f"{what} unpacks to {size:,} bytes; at most {MAX_INPUT_BYTES:,}")
    if dtype != np.int8 or not shape:
        raise InputError(f"{what} has dtype={dtype} and shape={shape}; allowed is int8 (N, ...)")
    plain = all(type(size) is int and 0 <= size < 2**31 for size in shape)
    if not plain or len(shape) > MAX_RANK:
        raise InputError(f"{what} has shape={shape!r:.80}; allowed are up to {MAX_RANK} sizes")
    if math.prod(shape) != len(raw) - start:
        raise InputError(f"{what} has shape={shape}, but {len(raw) - start:,} values")
    return np.frombuffer(raw, np.int8, offset=start).reshape(shape)


def _header(raw: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and start of the data of a C-ordered ``.npy`` array."""
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran_order, dtype = read[version](stream)
    if fortran_order and len(shape) > 1:
        raise ValueError("Fortran order")
    return shape, dtype, stream.tell()
