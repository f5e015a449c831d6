"""The header of a checkpoint: what it says without loading a tensor, and what it may not claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from firmware_ref.errors import InputError
from firmware_ref.manifest import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_LIMIT_BYTES,
    CHECKPOINT_VERSION,
    HEADER_LIMIT_BYTES,
    MANIFEST_KEY,
    MAX_RANK,
    read_checkpoint_header,
)

MANIFEST = {
    "format": CHECKPOINT_FORMAT,
    "version": CHECKPOINT_VERSION,
    "network": {},
    "stage": "float",
    "labels": [],
}
METADATA = {"__metadata__": {MANIFEST_KEY: json.dumps(MANIFEST)}}


def written(folder: Path, header: bytes, more: int = 0) -> Path:
    """A file of this header and ``more`` bytes, none of them on the disk."""
    path = folder / "c.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + more)
    return path


def of_shape(folder: Path, shape: Any) -> Path:
    return written(folder, json.dumps({**METADATA, "a": {"shape": shape}}).encode())


def test_manifest_and_elements_are_those_that_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {"a": np.zeros((2, 3, 4), np.float32), "b": np.zeros((), np.int8)}
    path.write_bytes(safetensors.numpy.save(tensors, {MANIFEST_KEY: json.dumps(MANIFEST)}))
    assert read_checkpoint_header(path) == (MANIFEST, {"a": 24, "b": 1})


@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        ([], 1),
        ([0, 5], 0),
        ([CHECKPOINT_LIMIT_BYTES], CHECKPOINT_LIMIT_BYTES),
        ([2] * MAX_RANK, 2**MAX_RANK),
    ],
)
def test_shapes_on_the_limit(tmp_path: Path, shape: list[int], elements: int) -> None:
    assert read_checkpoint_header(of_shape(tmp_path, shape))[1] == {"a": elements}


@pytest.mark.parametrize(
    "shape",
    [
        None,
        5,
        "12",
        {"0": 1},
        [-1],
        [1.0],
        [True],
        ["2"],
        [[2]],
        [CHECKPOINT_LIMIT_BYTES + 1],
        [2] * (MAX_RANK + 1),
        [10**4000],
    ],
)
def test_shapes_that_no_tensor_has(tmp_path: Path, shape: Any) -> None:
    with pytest.raises(InputError, match="no readable manifest"):
        read_checkpoint_header(of_shape(tmp_path, shape))


def test_a_header_on_the_limit_and_one_byte_longer(tmp_path: Path) -> None:
    header = json.dumps(METADATA).encode()
    whole = header + b" " * (HEADER_LIMIT_BYTES - len(header))
    assert read_checkpoint_header(written(tmp_path, whole, more=10**6)) == (MANIFEST, {})
    with pytest.raises(InputError, match="no safetensors header"):
        read_checkpoint_header(written(tmp_path, whole + b" ", more=10**6))


def test_a_header_that_the_file_does_not_hold(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(METADATA).encode())
    content = path.read_bytes()
    path.write_bytes((len(content) - 7).to_bytes(8, "little") + content[8:])
    with pytest.raises(InputError, match="no safetensors header"):
        read_checkpoint_header(path)


def test_a_file_beyond_the_limit(tmp_path: Path) -> None:
    header = json.dumps(METADATA).encode()
    more = CHECKPOINT_LIMIT_BYTES - 8 - len(header)
    assert read_checkpoint_header(written(tmp_path, header, more))[0] == MANIFEST
    with pytest.raises(InputError, match="at most 268,435,456 are accepted"):
        read_checkpoint_header(written(tmp_path, header, more + 1))


@pytest.mark.parametrize("change", [{"format": "x" * 10**5}, {"version": "x" * 10**5}])
def test_a_manifest_of_something_else_is_named_in_short(
    tmp_path: Path, change: dict[str, str]
) -> None:
    metadata = {MANIFEST_KEY: json.dumps(MANIFEST | change)}
    with pytest.raises(InputError, match="allowed is 'tinyscene-checkpoint' version 1") as caught:
        read_checkpoint_header(written(tmp_path, json.dumps({"__metadata__": metadata}).encode()))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["network", "stage", "labels"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_manifest_with_a_malformed_part(tmp_path: Path, key: str, value: object) -> None:
    metadata = {MANIFEST_KEY: json.dumps(MANIFEST | {key: value})}
    with pytest.raises(InputError, match=f"manifest key '{key}' is missing or malformed"):
        read_checkpoint_header(written(tmp_path, json.dumps({"__metadata__": metadata}).encode()))
