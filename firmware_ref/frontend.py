"""Between features and the INT8 network: normalisation in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firmware_ref.graph import Quantization
from firmware_ref.scheme import dequantize


def network_input(features: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised network input ``(feature - mean) / std``, (..., C) float32.

    ``mean`` and ``std`` have one entry a channel; a network of fewer channels than there are
    features takes the first ones.
    """
    channels = len(mean)
    with np.errstate(over="ignore"):  # infinity is quantised like any other large value
        x = np.asarray(features, np.float32)[..., :channels]
        return (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def probabilities(output: np.ndarray, quantization: Quantization) -> np.ndarray:
    """Class probabilities, (N, classes) float64, of INT8 logits (N, classes)."""
    return softmax(dequantize(output, quantization))
