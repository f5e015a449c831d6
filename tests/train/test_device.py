"""Device arithmetic in training: the converter's graph, the oracles' integers, the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.flatbuffer import write
from convert.pipeline import convert
from firmware_ref import oracle
from firmware_ref.arch import Network
from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_frontend import FixedFrontend, as_steps
from firmware_ref.graph import Graph, Quantization, parse
from firmware_ref.quantize import quantize_graph
from tests.train.devices import windows
from train import device as device_module
from train import qat_checkpoint, rounding
from train.data import InputNormalization
from train.device import (
    DeviceListener,
    Fidelity,
    LayerFidelity,
    compare,
    device_graph,
    layer_fidelity,
)
from train.model import BCResNetMod
from train.qat import DeviceNetwork
from train.ranges import calibrate


def assert_same_graph(ours: Graph, theirs: Graph) -> None:
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    for a, b in zip(ours.operators, theirs.operators, strict=True):
        assert (a.kind, a.inputs, a.outputs, a.version) == (b.kind, b.inputs, b.outputs, b.version)
        assert set(a.options) <= set(b.options)
        assert all(tuple_of(value) == tuple_of(b.options[key]) for key, value in a.options.items())
    for ours_, theirs_ in zip(ours.tensors, theirs.tensors, strict=True):
        assert (ours_.name, ours_.shape, ours_.dtype) == (
            theirs_.name,
            theirs_.shape,
            theirs_.dtype,
        )
        assert ours_.quantization == theirs_.quantization, ours_.name
        assert (ours_.data is None) == (theirs_.data is None), ours_.name
        if ours_.data is not None and theirs_.data is not None:
            np.testing.assert_array_equal(ours_.data, theirs_.data, err_msg=ours_.name)
            assert ours_.data.dtype == theirs_.data.dtype


def log_mels(graph: Graph) -> tuple[np.ndarray, InputNormalization]:
    """Six made windows of log-mels, (6, F, T), and a normalisation of their channels."""
    _, bands, frames, channels = graph.tensors[graph.inputs[0]].shape
    x = np.random.default_rng(11).normal(-7, 3, (6, bands, frames)).astype(np.float32)
    mean, std = (-7.0, 0.0, 0.0)[:channels], (3.0, 1.0, 0.4)[:channels]
    return x, InputNormalization(mean, std)


def tuple_of(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else value


# The graph


def test_the_graph_is_the_one_that_is_written(quantized: DeviceNetwork) -> None:
    with torch.no_grad():  # grids as if learned
        quantized.log_scale_changes.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    graph = device_graph(quantized)
    assert_same_graph(graph, parse(write(graph)))


def test_the_converter_writes_the_same_graph(
    tmp_path: Path,
    tiny_network: Network,
    trained: Callable[..., BCResNetMod],
    folded: Callable[[BCResNetMod], DeviceNetwork],
) -> None:
    definition = FeatureDefinition()
    network = dataclasses.replace(
        tiny_network,
        ssn_bands=2,
        input_bands=definition.mel_bands,
        input_frames=definition.frames,
    )
    device = folded(trained(network))
    shape = (4, 3, network.input_bands, network.input_frames)
    calibrate(device, [torch.randn(shape, generator=torch.Generator().manual_seed(0))], 0)
    identity = {
        "network": network.to_dict(),
        "labels": ["a", "b", "c"],
        "features": definition.to_dict(),
        "input_normalization": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "dataset": {"name": "ESC-10", "test_fold": 1},
    }
    path = tmp_path / "qat.safetensors"
    qat_checkpoint.save(path, device, identity)
    assert_same_graph(device_graph(device), convert(path, lambda stage: None).graph)


# The integers


@pytest.mark.parametrize("name", list(oracle.ORACLES))
def test_logits_are_the_oracles(quantized: DeviceNetwork, name: str) -> None:
    """From log-mels by the device's front end, equal to the bit."""
    graph = device_graph(quantized)
    x, normalization = log_mels(graph)
    data = write(graph)
    run = oracle.session(oracle.oracle(name), data, parse(data))
    grid = quantized.quantization["input"]
    codes = FixedFrontend.of(normalization.mean, normalization.std, grid).codes(as_steps(x))
    assert len(np.unique(codes)) > 100
    seen = [run(example[None])[graph.outputs[0]] for example in codes]
    logits = np.concatenate([logits.reshape(1, -1) for logits in seen]).astype(np.float32)
    q = quantized.quantization["logits"]
    found = DeviceListener(quantized, normalization).logits(x)
    assert found.shape == (6, 3) and found.dtype == np.float32
    expected = (logits - np.float32(q.zero_point[0])) * np.float32(q.scale[0])
    np.testing.assert_array_equal(found, expected)


def test_they_follow_the_weights(quantized: DeviceNetwork) -> None:
    x, normalization = log_mels(device_graph(quantized))
    before = DeviceListener(quantized, normalization).logits(x)
    with torch.no_grad():
        quantized.constants["classifier/bias"][2] -= 5
    assert (DeviceListener(quantized, normalization).logits(x)[:, 2] < before[:, 2]).all()


# The report


def one_hot(*classes: int) -> np.ndarray:
    return np.eye(3)[list(classes)]


def test_shares_of_top_classes_by_hand(quantized: DeviceNetwork) -> None:
    probabilities = {
        "float": one_hot(0, 1, 2, 0),
        "qat": one_hot(0, 1, 2, 1),
        "int8": one_hot(0, 2, 0, 1),
    }
    found = compare(quantized, windows(4, 12), probabilities)
    assert (found.windows, found.as_simulated, found.as_float) == (4, 0.5, 0.25)
    assert found.layers == layer_fidelity(quantized, windows(4, 12))


def test_a_nudged_scale_is_named(quantized: DeviceNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device with one scale a quarter larger than the simulation's: it and its reader show."""
    name, reader = "stage1.block2.project", "stage1.block2.sum"
    grids = dict(quantized.quantization)
    old = grids[name]
    nudged = Quantization((float(np.float32(old.scale[0] * 1.25)),), old.zero_point)
    probabilities = dict.fromkeys(("float", "qat", "int8"), one_hot(*[0] * 8))
    plain = compare(quantized, windows(8, 12), probabilities)
    assert all(layer.largest == 1 for layer in plain.layers)

    def other(device: DeviceNetwork) -> Graph:
        constants = device.float_constants()
        return quantize_graph(device.graph, constants, {**grids, name: nudged}, {})

    monkeypatch.setattr(device_module, "device_graph", other)
    found = compare(quantized, windows(8, 12), probabilities)
    far = {layer.layer: layer for layer in found.layers if layer.largest > 1}
    assert set(far) == {name, reader}
    assert far[name].op == "CONV_2D" and far[reader].op == "ADD"
    assert far[name].share > 0.5 and far[name].largest > 10
    assert found.layers[0].layer in far
    assert found.layers[0].layer in found.lines()[1]


def test_a_share_is_that_of_all_windows(
    quantized: DeviceNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 windows in a batch of 16 and one of four, each counts the same."""
    monkeypatch.setattr(rounding, "as_the_kernel", lambda network, operator, y: y)
    x = windows(20, 13)
    shares: dict[str, float] = {}
    for window in x:
        for layer in layer_fidelity(quantized, window[None]):
            shares[layer.layer] = shares.get(layer.layer, 0) + layer.share / 20
    found = layer_fidelity(quantized, x)
    assert len(found) > 5
    assert {layer.layer: layer.share for layer in found} == pytest.approx(shares)
    ordered = [layer.share for layer in found]
    assert ordered == sorted(ordered, reverse=True), "the worst first"


def test_the_form_for_people_and_for_json() -> None:
    layers = (LayerFidelity("a.pool", "MUL", 0.0125, 2), LayerFidelity("b", "ADD", 0.001, 1))
    found = Fidelity(400, 0.995, 0.97, layers)
    assert found.lines() == [
        "the device shares its top class with the simulation on 99.50% of 400 windows, with the "
        "float network on 97.00%",
        "layer furthest from its simulation: a.pool (MUL), 1.250% of its values by at most 2",
    ]
    assert len(Fidelity(400, 1.0, 1.0, ()).lines()) == 1
    assert json.loads(json.dumps(found.to_dict())) == {
        "windows": 400,
        "as_simulated": 0.995,
        "as_float": 0.97,
        "layers": [
            {"layer": "a.pool", "op": "MUL", "share": 0.0125, "largest": 2},
            {"layer": "b", "op": "ADD", "share": 0.001, "largest": 1},
        ],
    }
