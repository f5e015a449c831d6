"""QAT checkpoints: the network they hold, and everything that does not fit it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firmware_ref.agreement import agreed
from firmware_ref.arch import Network
from firmware_ref.errors import InputError
from train import checkpoint, qat_checkpoint
from train.model import BCResNetMod
from train.qat import DeviceNetwork
from train.ranges import calibrate


@pytest.fixture(scope="module")
def device(
    tiny_network: Network,
    trained: Callable[..., BCResNetMod],
    folded: Callable[[BCResNetMod], DeviceNetwork],
) -> DeviceNetwork:
    result = folded(trained(tiny_network))
    calibrate(result, [torch.randn(8, 3, 32, 20, generator=torch.Generator().manual_seed(0))], 0)
    return result


@pytest.fixture
def saved(tmp_path: Path, device: DeviceNetwork, tiny_network: Network) -> Path:
    path = tmp_path / "qat.safetensors"
    identity = {"network": tiny_network.to_dict(), "labels": ["a", "b", "c"]}
    qat_checkpoint.save(path, device, identity)
    return path


def test_constants_and_scales_survive_to_the_bit(saved: Path, device: DeviceNetwork) -> None:
    found, loaded = qat_checkpoint.load(saved)
    assert found.manifest["stage"] == "qat"
    assert loaded.quantization == agreed(device.graph, device.quantization)
    ours, theirs = device.float_constants(), loaded.float_constants()
    assert set(ours) == set(theirs)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    x = torch.randn(2, 3, 32, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(x), device(x))


def test_equal_content_gives_equal_bytes(saved: Path, tmp_path: Path) -> None:
    found, loaded = qat_checkpoint.load(saved)
    again = tmp_path / "again"
    qat_checkpoint.save(again, loaded, found.manifest)
    assert again.read_bytes() == saved.read_bytes()


def test_a_float_checkpoint_is_refused(saved: Path) -> None:
    found = checkpoint.load(saved)
    checkpoint.save(saved, found.tensors, {**found.manifest, "stage": "float"})
    with pytest.raises(InputError, match="is of stage 'float'; needed is 'qat'"):
        qat_checkpoint.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifier/bias", None, "'classifier/bias' does not fit the network"),
        ("new", np.zeros(1, np.float32), "'new' does not fit the network"),
        ("classifier/bias", np.zeros(4, np.float32), r"float32 \(4,\); the network needs"),
        ("classifier/bias", np.zeros((1, 3), np.float32), r"\(1, 3\); the network needs"),
        ("classifier/bias", np.zeros(3, np.float64), r"float64 \(3,\); the network needs"),
        ("classifier/bias", np.zeros(3, np.int32), r"int32 \(3,\); the network needs"),
        ("classifier/bias", np.full(3, np.nan, np.float32), "holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    saved: Path, name: str, value: np.ndarray | None, message: str
) -> None:
    found = checkpoint.load(saved)
    tensors = {n: t for n, t in found.tensors.items() if n != name}
    if value is not None:
        tensors[name] = value
    checkpoint.save(saved, tensors, found.manifest)
    with pytest.raises(InputError, match=message):
        qat_checkpoint.load(saved)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"scale": 0.5},
        {"zero_point": 0},
        {"scale": 0.0, "zero_point": 0},
        {"scale": -0.5, "zero_point": 0},
        {"scale": 1, "zero_point": 0},
        {"scale": "0.5", "zero_point": 0},
        {"scale": 0.1, "zero_point": 0},  # no float32
        {"scale": 1e300, "zero_point": 0},
        {"scale": 1e-40, "zero_point": 0},
        {"scale": True, "zero_point": 0},
        {"scale": 0.5, "zero_point": 128},
        {"scale": 0.5, "zero_point": -129},
        {"scale": 0.5, "zero_point": 0.0},
        {"scale": 0.5, "zero_point": False},
        {"scale": [0.5], "zero_point": [0]},
    ],
    ids=str,
)
def test_a_scale_that_cannot_be_is_named(saved: Path, entry: Any) -> None:
    found = checkpoint.load(saved)
    activations = {**found.manifest["activations"], "stem.conv": entry}
    checkpoint.save(saved, found.tensors, {**found.manifest, "activations": activations})
    with pytest.raises(InputError, match=r"stem.conv: scale=.* allowed are a positive float32"):
        qat_checkpoint.load(saved)


def test_scales_for_other_activations_are_refused(saved: Path) -> None:
    found = checkpoint.load(saved)
    table = found.manifest["activations"]
    fewer = {name: entry for name, entry in table.items() if name != "logits"}
    others: list[Any] = [None, [], {}, fewer, {**table, "new": table["logits"]}]
    for activations in others:
        checkpoint.save(saved, found.tensors, {**found.manifest, "activations": activations})
        with pytest.raises(InputError, match="'activations' does not fit the network"):
            qat_checkpoint.load(saved)


@pytest.mark.parametrize("name", ["stage1.pool", "logits", "stage1.block1.sigmoid"])
def test_a_scale_against_the_rules_is_named(saved: Path, name: str) -> None:
    """Pooling and reshaping keep the scale of their input; LOGISTIC's is fixed."""
    found = checkpoint.load(saved)
    activations = dict(found.manifest["activations"])
    old = activations[name]
    for change in ({"scale": 2 * old["scale"]}, {"zero_point": old["zero_point"] + 1}):
        changed = {**activations, name: {**old, **change}}
        checkpoint.save(saved, found.tensors, {**found.manifest, "activations": changed})
        with pytest.raises(InputError, match=f"{name} has .* the INT8 rules allow only"):
            qat_checkpoint.load(saved)


def test_300_mutations_load_or_are_refused(saved: Path) -> None:
    """Bytes changed anywhere: weights and scales may then differ, but nothing else happens."""
    content, generator = saved.read_bytes(), random.Random(1)
    header = 8 + int.from_bytes(content[:8], "little")
    refusals = 0
    for _ in range(300):
        data = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            end = header if generator.random() < 0.8 else len(data)
            data[generator.randrange(end)] ^= 1 << generator.randrange(8)
        saved.write_bytes(data)
        try:
            qat_checkpoint.load(saved)
        except InputError:
            refusals += 1
    assert refusals > 150
