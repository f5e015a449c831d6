"""A small network of the real structure, with random weights, as a flatbuffer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.arch import Network
from firmware_ref.features import FeatureDefinition
from firmware_ref.graph import METADATA_NAME
from tests.firmware_ref.build import network_graph, write

SMALL = Network(
    name="small",
    stem_channels=6,
    widths=(6, 8),
    blocks=(1, 2),
    pool_after=(1,),
    ssn_bands=2,
    head_channels=12,
    classes=3,
)

METADATA = {
    "labels": ["dog", "rain", "rooster"],
    "features": FeatureDefinition().to_dict(),
    "input_normalization": {"mean": [-8.0, 0.0, 0.0], "std": [3.0, 0.3, 0.1]},
}


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    """The flatbuffer, metadata included."""
    graph = network_graph(SMALL, np.random.default_rng(1))
    return write(replace(graph, metadata={METADATA_NAME: json.dumps(METADATA).encode()}))
