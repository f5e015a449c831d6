"""The comparison: it agrees where it should, and fails on one nudged value."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firmware_ref import oracle as oracles
from firmware_ref import schema
from firmware_ref import verify as verification
from firmware_ref.errors import InputError
from firmware_ref.flatbuffer import Source
from firmware_ref.graph import Graph, Tensor, parse
from firmware_ref.oracle import ORACLES, Oracle, session, with_all_outputs
from firmware_ref.run import Interpreter
from firmware_ref.verify import random_inputs, read_inputs, verify
from tests.firmware_ref.build import Model

BOTH = list(ORACLES.values())


def nudged(graph: Graph, name: str, change: Callable[[Tensor], Tensor]) -> Graph:
    """The graph with one tensor changed."""
    assert name in {tensor.name for tensor in graph.tensors}
    return replace(graph, tensors=tuple(change(t) if t.name == name else t for t in graph.tensors))


def test_every_tensor_equals_both_oracles(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    seen: list[tuple[int, int]] = []
    report = verify(graph, model_bytes, random_inputs(graph, 6, 0), BOTH, lambda *n: seen.append(n))
    assert report.ok
    assert seen == [(n, 6) for n in range(1, 7)]
    values = sum(int(np.prod(graph.tensors[o.outputs[0]].shape)) for o in graph.operators)
    for result, oracle in zip(report.oracles, BOTH, strict=True):
        assert (result.name, result.version) == (oracle.name, oracle.version)
        assert (result.tensors, result.values) == (len(graph.operators), 6 * values)
        assert result.mismatches == 0 and "first_mismatch" not in result.to_dict()


def test_a_nudged_weight_is_found_and_named(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    layer = "stage2.block1.frequency_conv.band2"

    def change(tensor: Tensor) -> Tensor:
        assert tensor.data is not None
        data = tensor.data.copy()
        data[0, 1, 0, 6] += 1 if data[0, 1, 0, 6] < 127 else -1
        return replace(tensor, data=data)

    inputs = random_inputs(graph, 6, 0)
    report = verify(nudged(graph, f"{layer}/weight", change), model_bytes, inputs, BOTH)
    assert not report.ok
    truth = Interpreter(graph).run_all(inputs)
    for result in report.oracles:
        found = result.first_mismatch
        assert found is not None
        assert (found.layer, found.op) == (layer, "DEPTHWISE_CONV_2D")
        assert found.index[-1] == 6 and len(found.index) == 4
        index = next(o.outputs[0] for o in graph.operators if graph.name(o) == layer)
        assert truth[index][found.index] == found.expected != found.actual
        assert 1 <= found.count <= found.values == truth[index].size
        assert found.count <= result.mismatches
        assert found.largest_difference == 1


def test_a_nudged_scale_is_found_and_named(model_bytes: bytes) -> None:
    graph = parse(model_bytes)

    def change(tensor: Tensor) -> Tensor:
        assert tensor.quantization is not None
        (scale,) = tensor.quantization.scale
        return replace(tensor, quantization=replace(tensor.quantization, scale=(scale * 1.01,)))

    changed = nudged(graph, "stage1.res_norm.gain", change)
    report = verify(changed, model_bytes, random_inputs(graph, 2, 0), BOTH)
    for result in report.oracles:
        assert result.first_mismatch is not None
        assert result.first_mismatch.layer == "stage1.res_norm.gain"
        assert result.first_mismatch.op == "ADD"


def test_counts_over_all_inputs() -> None:
    """A worked case: one value of four is off by 2 in the second input only."""
    model = Model()
    x, y = (model.tensor(name, (1, 4), 1.0, 0) for name in ("x", "layer"))
    model.add("QUANTIZE", [x], [y])
    graph = parse(model.pack([x], [y]))
    tally = verification._Tally(graph)
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8)
    ours = np.array([[1, 2, 3, 4], [5, 6, 9, 8]], np.int8)
    for number in range(2):
        tally.compare(y, number, truth[number : number + 1], ours[number : number + 1])
    result = tally.result(BOTH[0])
    assert (result.tensors, result.values, result.mismatches) == (1, 8, 1)
    assert result.first_mismatch == verification.Mismatch(
        "layer", "QUANTIZE", (1, 2), expected=7, actual=9, count=1, values=8, largest_difference=2
    )


def test_another_shape_or_dtype_is_refused() -> None:
    model = Model()
    x, y = (model.tensor(name, (1, 4), 1.0, 0) for name in ("x", "layer"))
    model.add("QUANTIZE", [x], [y])
    tally = verification._Tally(parse(model.pack([x], [y])))
    # An oracle may hold a scalar where the file says (1,).
    for theirs in (np.zeros((1, 4), np.int8), np.zeros((), np.int8), np.int8(0)):
        with pytest.raises(InputError, match="'layer' is int8"):
            tally.compare(y, 0, np.asarray(theirs), np.zeros((1, 5), np.int8))
    with pytest.raises(InputError, match="'layer' is float32"):
        tally.compare(y, 0, np.zeros((1, 5), np.float32), np.zeros((1, 5), np.int8))


def chain(unused: np.ndarray | None = None) -> bytes:
    """Two sums in a row: tflite-runtime would write the second over the first."""
    model = Model()
    a, b, c, d = (model.tensor(name, (1, 64), 0.5, 0) for name in "abcd")
    one = model.tensor("one", (1, 64), 0.5, 0, np.full((1, 64), 9))
    model.add("QUANTIZE", [a], [b])
    model.add("ADD", [b, one], [c])
    model.add("ADD", [c, one], [d])
    if unused is not None:
        model.tensor("unused", unused.shape, 0.5, 0, unused)
    return model.pack([a], [d])


def test_the_oracle_keeps_what_it_would_compute_in_place() -> None:
    data = chain()
    graph = parse(data)
    example = np.arange(64, dtype=np.int8)[None]
    kept = session(ORACLES["tflite-runtime"], data, graph)(example)
    assert [int(kept[index][0, 7]) for index in sorted(kept)] == [7, 16, 25]


def test_all_outputs_are_added_and_nothing_else() -> None:
    data = chain()
    graph, patched = parse(data), parse(with_all_outputs(data, parse(data)))
    assert patched.outputs == (1, 2, 3)
    assert (patched.operators, patched.inputs) == (graph.operators, graph.inputs)
    assert [t.name for t in patched.tensors] == [t.name for t in graph.tensors]


def outputs_place(data: bytes) -> int:
    """Where the offset of the graph's outputs is stored."""
    (subgraph,) = Source(data).root(schema.IDENTIFIER).tables(schema.MODEL_SUBGRAPHS)
    place = subgraph.offset_position(schema.SUBGRAPH_OUTPUTS)
    assert place is not None
    return place


def test_a_file_whose_outputs_lie_in_a_constant_is_not_patched() -> None:
    """A constant's data start at the word before the offset of the outputs: its length, then."""
    length = 1
    for _ in range(2):  # first to learn what stands there, for the constant to be as long
        data = bytearray(chain(np.zeros(length)))
        place = outputs_place(data)
        (length,) = struct.unpack_from("<I", data, place - 4)
    assert 4 <= length < 1000
    root = Source(bytes(data)).root(schema.IDENTIFIER)
    field = root.tables(4)[-1].offset_position(0)
    assert field is not None
    struct.pack_into("<I", data, field, place - 4 - field)
    graph = parse(bytes(data))
    with pytest.raises(InputError, match="tables overlap; convert it again"):
        with_all_outputs(bytes(data), graph)


def test_another_version_of_an_oracle_is_refused(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    other = replace(ORACLES["tflite-runtime"], version="2.13.0")
    with pytest.raises(InputError, match=r"version=2\.14\.0; .* 2\.13\.0"):
        session(other, model_bytes, graph)


def test_a_missing_oracle_says_how_to_get_it(model_bytes: bytes) -> None:
    missing = replace(ORACLES["tflite-micro"], name="no-such-package")
    with pytest.raises(InputError, match=r"pip install 'tinyscene\[convert\]'"):
        session(missing, model_bytes, parse(model_bytes))


def test_an_oracle_that_refuses_is_named(model_bytes: bytes) -> None:
    def fail(*_: object) -> oracles.Session:
        raise RuntimeError("Node 3 failed\nto prepare")

    broken: Oracle = replace(ORACLES["tflite-micro"], open=fail)
    with pytest.raises(InputError, match=r"oracle tflite-micro .* refuses"):
        session(broken, model_bytes, parse(model_bytes))


def test_unknown_and_no_oracle(model_bytes: bytes) -> None:
    with pytest.raises(InputError, match="known: tflite-runtime, tflite-micro"):
        oracles.oracle("onnxruntime")
    graph = parse(model_bytes)
    with pytest.raises(InputError, match="no oracle"):
        verify(graph, model_bytes, random_inputs(graph, 1, 0), [])


def test_random_inputs_are_seeded(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    first = random_inputs(graph, 3, 7)
    assert first.dtype == np.int8 and first.shape == (3, 128, 44, 3)
    assert np.array_equal(first, random_inputs(graph, 3, 7))
    assert not np.array_equal(first, random_inputs(graph, 3, 8))
    assert (first.min(), first.max()) == (-128, 127)


def test_read_inputs(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "in.npz", inputs=array)
        assert np.array_equal(read_inputs(tmp_path / "in.npz"), array)


def archive(member: bytes, name: str = "inputs.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(name, member)
    return stream.getvalue()


def npy(array: np.ndarray | np.int8, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


GOOD = npy(np.zeros((2, 3), np.int8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no .npz"),
        (b"PK\x03\x04" + bytes(40), "is no .npz"),
        (GOOD, "is no .npz"),
        (archive(GOOD)[:-30], "is no .npz"),
        (archive(GOOD, "other.npy"), "is no .npz"),
        (archive(b""), "dtype=None"),
        (archive(b"\x93NUMPY\x07\x00"), "is no .npz"),
        (archive(GOOD[:40]), "is no .npz"),
        (archive(npy(np.array([{}]), allow_pickle=True)), "dtype=object"),
        (archive(npy(np.zeros((2, 3)))), "dtype=float64"),
        (archive(npy(np.int8(1))), r"shape=\(\)"),
        (archive(npy(np.asfortranarray(np.zeros((2, 3), np.int8)))), "is no .npz"),
        (archive(GOOD[:-1]), "5 values"),
        (archive(GOOD.replace(b"(2, 3)", b"(9, 9)")), "6 values"),
        (archive(GOOD.replace(b"(2, 3), }      ", b"(99999999, 9999), }"[:15])), "is no .npz"),
        (archive(bytes(2**28 + 1)), "unpacks to"),
    ],
    ids=range(16),
)
def test_hostile_inputs_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "in.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_inputs(path)
