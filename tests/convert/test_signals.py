"""Silence, a constant, full scale and impulses through the shipped model, in every oracle."""

from __future__ import annotations

import numpy as np
import pytest

from convert.__main__ import SHIPPED_CHECKPOINT
from convert.flatbuffer import write
from firmware_ref import frontend
from firmware_ref.features import FeatureDefinition, features
from firmware_ref.graph import parse
from firmware_ref.oracle import ORACLES, session
from firmware_ref.scheme import quantize
from firmware_ref.signals import signal_clips
from firmware_ref.verify import verify
from train import qat_checkpoint
from train.device import device_graph


@pytest.fixture(scope="module")
def model() -> bytes:
    return write(device_graph(qat_checkpoint.load(SHIPPED_CHECKPOINT)[1]))


@pytest.fixture(scope="module")
def codes(model: bytes) -> np.ndarray:
    """The network's input for every signal, and one whose every value is at an end."""
    saved = qat_checkpoint.load(SHIPPED_CHECKPOINT)[0].metadata
    graph = parse(model)
    clips = np.stack(list(signal_clips(FeatureDefinition()).values()))
    x = frontend.network_input(features(clips, saved.features), saved.mean, saved.std)
    grid = graph.tensors[graph.inputs[0]].quantization
    assert grid is not None
    ends = [np.full_like(x[:1], np.float32(end)) for end in (-1e6, 1e6)]
    return quantize(np.concatenate([x, *ends]), grid)


def test_no_tensor_differs(model: bytes, codes: np.ndarray) -> None:
    report = verify(parse(model), model, codes, list(ORACLES.values()))
    assert report.ok, report.to_dict()


@pytest.mark.parametrize("name", ORACLES)
def test_probabilities_are_finite_and_unsure(model: bytes, codes: np.ndarray, name: str) -> None:
    """None of these is a class the network knows: no answer is certain, none the same for all."""
    graph = parse(model)
    run, output = session(ORACLES[name], model, graph), graph.outputs[0]
    grid = graph.tensors[output].quantization
    assert grid is not None
    logits = np.concatenate([run(codes[i : i + 1])[output] for i in range(len(codes))])
    probabilities = frontend.probabilities(logits, grid)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert probabilities.max() < 0.99
    assert len(set(probabilities.argmax(axis=1).tolist())) > 1
