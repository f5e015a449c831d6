"""Checkpoints: exact round trips, and one error for everything that is not one."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from firmware_ref.arch import Network, preset
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition
from firmware_ref.manifest import MANIFEST_KEY
from train import checkpoint, state
from train.model import BCResNetMod, build_model

MANIFEST: dict[str, Any] = {
    "stage": "float",
    "network": preset("report-125k").to_dict(),
    "labels": ["a", "b"],
}
TENSORS: dict[str, np.ndarray] = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([-0.0, 1e-45, 3.4e38], np.float32),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.array([-128, 127], np.int8),
}


def assert_same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


# Round trips


def test_tensors_and_manifest_survive_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    checkpoint.save(path, TENSORS, {**MANIFEST, "more": {"x": [1, 0.1, None]}})
    saved = checkpoint.load(path, "float")
    assert_same(saved.tensors, TENSORS)
    assert saved.manifest["more"] == {"x": [1, 0.1, None]}
    assert saved.network == preset("report-125k")
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_a_whole_network_survives_to_the_bit(
    tmp_path: Path, tiny_network: Network, trained: Callable[..., BCResNetMod]
) -> None:
    model = trained(tiny_network)
    tensors = state.module_tensors(model)
    assert any(value.shape == () for value in tensors.values()), "counters of batch norms"
    checkpoint.save(tmp_path / "a", tensors, {**MANIFEST, "network": tiny_network.to_dict()})
    saved = checkpoint.load(tmp_path / "a")
    assert_same(saved.tensors, tensors)
    other = build_model(saved.network)
    state.load_module(other, saved.tensors, "this")
    assert_same(state.module_tensors(other), tensors)


def test_layouts_in_memory_do_not_show(tmp_path: Path) -> None:
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = [value, np.asfortranarray(value), np.repeat(value, 2, axis=2)[..., ::2]]
    for number, view in enumerate(views):
        checkpoint.save(tmp_path / str(number), {"a": view}, MANIFEST)
    contents = {(tmp_path / str(number)).read_bytes() for number in range(3)}
    assert len(contents) == 1


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    orders = [TENSORS, dict(reversed(TENSORS.items()))]
    manifests = [MANIFEST, dict(reversed(MANIFEST.items()))]
    for number, (tensors, manifest) in enumerate(zip(orders, manifests, strict=True)):
        checkpoint.save(tmp_path / str(number), tensors, manifest)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    checkpoint.save(tmp_path / "2", {**TENSORS, "b": TENSORS["b"] + 1}, MANIFEST)
    assert (tmp_path / "2").read_bytes() != (tmp_path / "0").read_bytes()


# What is not a checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, MANIFEST)
    return path


def refused(path: Path, message: str, stage: str | None = None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        checkpoint.load(path, stage)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    refused(path, "cannot be read")
    refused(tmp_path, "is not a file")
    foreign = {
        b"": "no safetensors header",
        b"\0" * 7: "no safetensors header",
        b"\0" * 8: "no readable manifest",
        b"\xff" * 100: "no safetensors header",
        pickle.dumps({"a": 1}): "no safetensors header",
        safetensors.numpy.save({"a": np.zeros(3)}): "no readable manifest",
        safetensors.numpy.save({}, {MANIFEST_KEY: "{}"}): "no readable manifest",
        safetensors.numpy.save({}, {MANIFEST_KEY: "[" * 100_000}): "no readable manifest",
    }
    for content, message in foreign.items():
        path.write_bytes(content)
        refused(path, message)


def test_every_truncation_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(content), 61), len(content) - 1]:
        saved.write_bytes(content[:length])
        refused(saved, "checkpoint")
    saved.write_bytes(content + b"\0")
    refused(saved, "damaged")


def test_another_format_version_or_stage_is_named(tmp_path: Path, saved: Path) -> None:
    refused(saved, "is of stage 'float'; needed is 'qat'", stage="qat")
    for change, message in (
        ({"format": "other"}, "format='other'"),
        ({"version": 2}, "version=2; allowed is 'tinyscene-checkpoint' version 1"),
        ({"stage": None}, "manifest key 'stage' is missing or malformed"),
        ({"network": []}, "manifest key 'network' is missing or malformed"),
        ({"labels": "ab"}, "manifest key 'labels' is missing or malformed"),
    ):
        path = tmp_path / "changed"
        checkpoint.save(path, TENSORS, {**MANIFEST, **change})
        refused(path, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a"
    tensors = {**TENSORS, "b": TENSORS["b"].copy()}
    tensors["b"][1, 2] = value
    checkpoint.save(path, tensors, MANIFEST)
    refused(path, "tensor 'b' holds NaN or infinity")


def test_a_number_that_json_lacks_is_a_bug_of_the_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "a", TENSORS, {**MANIFEST, "x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [8]},
        {"widths": "8"},
        {"stem_channels": None},
        {"ssn_bands": 7},
        {"dropout": {}},
        {"new": 1},
        {"stem_channels": 10**30},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, TENSORS, {**MANIFEST, "network": {**MANIFEST["network"], **change}})
    with pytest.raises(InputError, match="network"):
        _ = checkpoint.load(path).network


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
        {"labels": ["a", 1]},
        {"features": None},
        {"features": {"mel_bands": 64}},
        {"features": [1]},
        {"input_normalization": None},
        {"input_normalization": {"mean": [0, 0, 0]}},
        {"input_normalization": {"mean": [0, 0, 0], "std": [1, 1, 0]}},
        {"input_normalization": {"mean": [0, 0], "std": [1, 1]}},
        {"input_normalization": {"mean": ["0", 0, 0], "std": [1, 1, 1]}},
        {"dataset": []},
        {"dataset": {"test_fold": "1"}},
    ],
    ids=str,
)
def test_metadata_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    network = {**MANIFEST["network"], "classes": 2}
    whole = {
        **MANIFEST,
        "network": network,
        "features": FeatureDefinition().to_dict(),
        "input_normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]},
        "dataset": {"test_fold": 1},
    }
    path = tmp_path / "a"
    checkpoint.save(path, TENSORS, whole)
    assert checkpoint.load(path).metadata.labels == ("a", "b")
    checkpoint.save(path, TENSORS, {**whole, **change})
    with pytest.raises(InputError):
        _ = checkpoint.load(path).metadata


def test_types_that_numpy_lacks_are_refused_or_kept(saved: Path) -> None:
    """A header may promise any type of the format; none may end in a traceback."""
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for dtype, size in (("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8), ("XY", 1)):
        new = {"__metadata__": header["__metadata__"]}
        new["x"] = {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}
        text = json.dumps(new).encode()
        text += b" " * (-len(text) % 8)
        saved.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * size))
        try:
            tensors = checkpoint.load(saved).tensors
        except InputError:
            continue
        model = build_model(preset("qti-c40"))
        with pytest.raises(InputError):
            state.load_module(model, tensors, "this")


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, removed or repeated, most of them in the header."""
    data = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(header if generator.random() < 0.7 else len(data))
        place = min(place, len(data) - 1)
        kind = generator.randrange(4)
        if kind == 0:
            data[place] = generator.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            del data[place : place + generator.randint(1, 16)]
        else:
            data[place:place] = data[place : place + generator.randint(1, 16)]
    return bytes(data)


def test_300_mutations_load_or_are_refused(saved: Path) -> None:
    content, generator = saved.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(300):
        saved.write_bytes(mutated(content, generator))
        try:
            found = checkpoint.load(saved)
            _ = found.network
        except InputError:
            refusals += 1
    assert refusals > 200


# Another run's


def test_a_checkpoint_of_another_run_is_named(saved: Path) -> None:
    found = checkpoint.load(saved)
    checkpoint.require_run(found, {"labels": ("a", "b")}, saved)
    with pytest.raises(InputError, match="another labels; resume with that one"):
        checkpoint.require_run(found, {"labels": ("a", "c")}, saved)
    with pytest.raises(InputError, match="another dataset"):
        checkpoint.require_run(found, {"dataset": {"test_fold": 1}}, saved)
