"""Windows of sound with what a device must make of them, by the integers of `firmware_ref`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_ref.audio import read_audio, windows
from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_frontend import FixedFrontend, pcm16
from firmware_ref.graph import Graph
from firmware_ref.run import Interpreter
from firmware_ref.signals import signal_clips


@dataclass(frozen=True, eq=False)
class Golden:
    """One second: samples (n,) int16, network input (1, F, T, C) int8, logits (classes,) int8.

    ``layers`` has the CRC-32 of tensors that the generated C shows, by their index in the graph.
    """

    name: str
    samples: np.ndarray
    input: np.ndarray
    logits: np.ndarray
    layers: dict[int, int]

    @property
    def input_crc32(self) -> int:
        """CRC-32 of the network input's bytes."""
        return crc32(self.input)


def crc32(values: np.ndarray) -> int:
    """CRC-32, as zlib computes it, of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def goldens(
    graph: Graph, sounds: Sequence[tuple[str, np.ndarray]], traced: Sequence[int] = ()
) -> list[Golden]:
    """What the device computes of each named second of sound, float32 in [-1, 1]."""
    frontend = FixedFrontend.of_graph(graph)
    interpreter = Interpreter(graph)
    found = []
    for name, sound in sounds:
        samples = pcm16(sound)
        network_input = frontend.inputs(samples)[None]
        values = interpreter.run_all(network_input)
        layers = {index: crc32(values[index]) for index in traced}
        logits = values[graph.outputs[0]].reshape(-1)
        found.append(Golden(name, samples, network_input, logits, layers))
    return found


def seconds_of(paths: Sequence[str | Path]) -> list[tuple[str, np.ndarray]]:
    """Every second of sound files, as the deployed cut has them, named by file and second."""
    definition = FeatureDefinition()
    found = []
    for path in paths:
        parts = windows(read_audio(path, definition.sample_rate_hz), definition)
        found += [(f"{Path(path).name}, second {n}", part) for n, part in enumerate(parts)]
    return found


def made_seconds(
    names: Sequence[str] = ("impulses", "sweep", "noise"),
) -> list[tuple[str, np.ndarray]]:
    """Sounds made by code, for where no recording is at hand."""
    clips = signal_clips(FeatureDefinition())
    return [(name, clips[name]) for name in names]
