"""From sound to class in device arithmetic: windows, features, INT8 input, network, softmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_ref import frontend, scheme
from firmware_ref.features import features
from firmware_ref.graph import Graph
from firmware_ref.manifest import ModelMetadata, model_metadata
from firmware_ref.run import BATCH, Interpreter


class Classifier:
    """A model with what it needs to hear: its metadata and its interpreter."""

    def __init__(self, graph: Graph) -> None:
        self.metadata: ModelMetadata = model_metadata(graph)
        self.interpreter = Interpreter(graph)

    def inputs(self, windows: np.ndarray) -> np.ndarray:
        """Windows (N, clip_samples) float32 to network inputs (N, F, T, C) int8."""
        parts = [
            self.quantize(features(windows[start : start + BATCH], self.metadata.features))
            for start in range(0, len(windows), BATCH)
        ]
        return np.concatenate(parts)

    def quantize(self, features: np.ndarray) -> np.ndarray:
        """Features (N, F, T, 3) float32 to network inputs (N, F, T, C) int8."""
        quantization = self.interpreter.input.quantization
        assert quantization is not None
        x = frontend.network_input(features, self.metadata.mean, self.metadata.std)
        return scheme.quantize(x, quantization)

    def probabilities(
        self, inputs: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Network inputs (N, F, T, C) int8 to class probabilities (N, classes) float64."""
        quantization = self.interpreter.output.quantization
        assert quantization is not None
        outputs = self.interpreter.run(inputs, progress)
        return frontend.probabilities(outputs, quantization)
