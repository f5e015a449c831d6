"""From sound to class in device arithmetic: windows, INT8 input, network, softmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_ref import frontend
from firmware_ref.fixed_frontend import FixedFrontend, as_steps, pcm16
from firmware_ref.graph import Graph
from firmware_ref.manifest import ModelMetadata, model_metadata
from firmware_ref.run import BATCH, Interpreter


class Classifier:
    """A model with what it needs to hear: its metadata, its front end and its interpreter."""

    def __init__(self, graph: Graph) -> None:
        self.metadata: ModelMetadata = model_metadata(graph)
        # First, as it refuses whatever is not INT8.
        self.interpreter = Interpreter(graph)
        self.frontend = FixedFrontend.of_graph(graph)

    def inputs(self, windows: np.ndarray) -> np.ndarray:
        """Windows (N, clip_samples) float32, as 16-bit PCM, to network inputs (N, F, T, C) int8."""
        parts = [
            self.frontend.inputs(pcm16(windows[start : start + BATCH]))
            for start in range(0, len(windows), BATCH)
        ]
        return np.concatenate(parts)

    def of_log_mels(self, log_mels: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) float64 of (N, F, T) log-mels of the device."""
        return self.probabilities(self.frontend.codes(as_steps(log_mels)))

    def probabilities(
        self, inputs: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Network inputs (N, F, T, C) int8 to class probabilities (N, classes) float64."""
        quantization = self.interpreter.output.quantization
        assert quantization is not None
        outputs = self.interpreter.run(inputs, progress)
        return frontend.probabilities(outputs, quantization)
