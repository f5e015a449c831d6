"""The generated C of the shipped model on 200 real windows, from samples to logits."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import SHIPPED_CHECKPOINT
from convert.c99.generate import generate
from convert.golden import seconds_of
from firmware_ref.fixed_frontend import FixedFrontend, pcm16
from firmware_ref.graph import Graph
from firmware_ref.run import Interpreter
from tests.convert.host_c import HostNetwork, mismatches
from tests.firmware_ref.build import random_int8
from train import qat_checkpoint
from train.device import device_graph

WINDOWS = 200


@pytest.fixture(scope="module")
def shipped() -> tuple[Graph, FixedFrontend]:
    """The shipped model's graph, without its metadata, and its front end."""
    saved, device = qat_checkpoint.load(SHIPPED_CHECKPOINT)
    graph = device_graph(device)
    quantization = graph.tensors[graph.inputs[0]].quantization
    assert quantization is not None
    metadata = saved.metadata
    return graph, FixedFrontend.of(metadata.mean, metadata.std, quantization)


@pytest.fixture(scope="module")
def host(
    shipped: tuple[Graph, FixedFrontend], tmp_path_factory: pytest.TempPathFactory
) -> HostNetwork:
    return HostNetwork(generate(shipped[0]), tmp_path_factory.mktemp("c"))


def test_real_windows_equal_firmware_ref(
    audio_data: Path, shipped: tuple[Graph, FixedFrontend], host: HostNetwork
) -> None:
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["fold"] == "1"]
    clips = [audio_data / "esc10" / row["filename"] for row in rows[:: len(rows) // 40]]
    graph, frontend = shipped
    seconds = [samples for _, samples in seconds_of(clips)][:WINDOWS]
    assert len(seconds) == WINDOWS
    inputs = frontend.inputs(pcm16(np.stack(seconds)))
    assert len(np.unique(inputs)) > 200
    outputs = Interpreter(graph).run(inputs)
    assert len(np.unique(outputs.argmax(axis=1))) >= 5, "windows of several classes"
    differing = [
        number
        for number, (x, wanted) in enumerate(zip(inputs, outputs, strict=True))
        if not np.array_equal(host.run(x, len(wanted))[0], wanted)
    ]
    assert differing == []
    some = inputs[::40]
    assert mismatches(host, graph, some, Interpreter(graph).run_all(some)) == {}


def test_random_inputs_equal_firmware_ref(
    rng: np.random.Generator, shipped: tuple[Graph, FixedFrontend], host: HostNetwork
) -> None:
    graph = shipped[0]
    inputs = random_int8(rng, (8, *graph.tensors[graph.inputs[0]].shape[1:]))
    assert mismatches(host, graph, inputs, Interpreter(graph).run_all(inputs)) == {}
