"""From sound to class: the metadata of a model, and the steps between."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firmware_ref.classify import Classifier
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, features
from firmware_ref.fixed_frontend import as_reals, log_mel, pcm16
from firmware_ref.graph import METADATA_NAME, Graph, parse
from firmware_ref.manifest import model_metadata
from tests.firmware_ref.conftest import METADATA


def with_metadata(data: bytes, metadata: bytes) -> Graph:
    return replace(parse(data), metadata={METADATA_NAME: metadata})


def test_metadata(model_bytes: bytes) -> None:
    found = model_metadata(parse(model_bytes))
    assert found.labels == ("dog", "rain", "rooster")
    assert found.features == FeatureDefinition()
    assert (found.mean, found.std) == ((-8.0, 0.0, 0.0), (3.0, 0.3, 0.1))


def test_absent_metadata_is_said(model_bytes: bytes) -> None:
    with pytest.raises(InputError, match="no metadata 'tinyscene'"):
        model_metadata(replace(parse(model_bytes), metadata={}))


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000, b'{"labels'])
def test_malformed_metadata_is_refused(model_bytes: bytes, data: bytes) -> None:
    with pytest.raises(InputError, match=r"malformed|not JSON"):
        model_metadata(with_metadata(model_bytes, data))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("labels",), ["a", "b"], "labels="),
        (("labels",), ["a", "a", "b"], "labels="),
        (("labels",), ["a", "", "b"], "labels="),
        (("labels",), "abc", "labels="),
        (("features", "mel_bands"), 64, "mel_bands"),
        (("features",), [], "feature definition"),
        (("input_normalization",), None, "malformed"),
        (("input_normalization", "mean"), [0.0], "mean="),
        (("input_normalization", "mean"), [0.0, 0.0, float("nan")], "mean="),
        (("input_normalization", "mean"), [0.0, 0.0, "1"], "mean="),
        (("input_normalization", "mean"), [0.0, 0.0, 10**400], "mean="),
        (("input_normalization", "std"), [1.0, 1.0, 0.0], "std="),
        (("input_normalization", "std"), [1.0, 1.0, True], "std="),
    ],
)
def test_odd_metadata_is_refused(
    model_bytes: bytes, path: tuple[str, ...], value: Any, message: str
) -> None:
    changed: Any = copy.deepcopy(METADATA)
    *parents, last = path
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(InputError, match=message):
        model_metadata(with_metadata(model_bytes, json.dumps(changed).encode()))


def test_inputs_and_probabilities(model_bytes: bytes, rng: np.random.Generator) -> None:
    classifier = Classifier(parse(model_bytes))
    windows = rng.normal(0, 0.1, (6, 44_100)).astype(np.float32)
    inputs = classifier.inputs(windows)
    assert inputs.shape == (6, 128, 44, 3) and inputs.dtype == np.int8
    quantization = classifier.interpreter.input.quantization
    assert quantization is not None
    # By the definition, in double, of the same 16 bits: one step of rounding apart at most.
    heard = np.clip(np.rint(windows * 32768), -32768, 32767) / 32768
    real = (features(heard, FeatureDefinition()) - np.array([-8.0, 0.0, 0.0])) / [3.0, 0.3, 0.1]
    steps = np.clip(np.rint(real / quantization.scale[0]) + quantization.zero_point[0], -128, 127)
    assert np.abs(inputs - steps).max() <= 1 and (inputs != steps).mean() < 1e-3
    from_log_mels = classifier.of_log_mels(as_reals(log_mel(pcm16(windows))))
    np.testing.assert_array_equal(from_log_mels, classifier.probabilities(inputs))

    logits = classifier.interpreter.run(inputs)
    found = classifier.probabilities(inputs)
    assert found.shape == (6, 3)
    assert np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(found.argmax(axis=1), logits.argmax(axis=1))
