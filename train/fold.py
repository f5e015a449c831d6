"""Batch norm folded into the convolutions before it: a float checkpoint as the device runs it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from firmware_ref.arch import Network
from firmware_ref.graph import Graph
from firmware_ref.scheme import WEIGHT_AXIS
from train.model import BATCH_NORM_EPSILON


def fold(
    network: Network, tensors: Mapping[str, np.ndarray], graph: Graph
) -> dict[str, np.ndarray]:
    """Constants of the device graph, float32, by name, from the tensors of `train.model`.

    Convolution weights are in the graph's order: (O, height, width, I), or (1, height, width, C)
    where depthwise. Where a norm follows, ``w' = w g / sqrt(v + eps)`` and
    ``b' = (b - m) g / sqrt(v + eps) + beta``; computed in float64, rounded once. A frequency
    convolution has such weights for each sub-band, and 1 more on the centre tap where the block
    adds its input.
    """
    names = {graph.name(operator) for operator in graph.operators}
    constants: dict[str, np.ndarray] = {}
    for operator in graph.operators:
        layer = graph.name(operator)
        # A weight with data is given, not trained.
        if operator.kind not in WEIGHT_AXIS or graph.tensors[operator.inputs[1]].data is not None:
            continue
        trained, _, band = layer.partition(".band")
        weight = tensors[f"{trained}.weight"].astype(np.float64)
        bias = tensors.get(f"{trained}.bias", np.zeros(len(weight))).astype(np.float64)
        norm = _norm_after(trained)
        if norm is not None and f"{norm}.weight" in tensors:
            scale, offset = _affine(tensors, norm)
            if band:  # (C * S,) in the order of `train.model.SubSpectralNorm`
                scale, offset = (
                    part.reshape(-1, network.ssn_bands)[:, int(band) - 1]
                    for part in (scale, offset)
                )
            weight, bias = weight * scale[:, None, None, None], bias * scale + offset
        block, _, kind = trained.rpartition(".")
        if kind == "frequency_conv" and f"{block}.mean_identity" in names:
            weight[:, :, weight.shape[2] // 2] += 1
        order = (0, 2, 3, 1) if operator.kind == "CONV_2D" else (1, 2, 3, 0)
        constants[f"{layer}/weight"] = weight.transpose(order)
        constants[f"{layer}/bias"] = bias
    return {name: value.astype(np.float32) for name, value in constants.items()}


def _norm_after(layer: str) -> str | None:
    """Name of the batch norm that folds into a convolution."""
    parent, _, kind = layer.rpartition(".")
    norms = {
        "conv": "norm",
        "frequency_conv": "sub_spectral_norm.norm",
        "expand": "expand_norm",
        "temporal_conv": "temporal_norm",
    }
    return f"{parent}.{norms[kind]}" if kind in norms else None


def _affine(tensors: Mapping[str, np.ndarray], norm: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm in evaluation mode as ``scale x + offset``, float64."""
    weight, bias, mean, variance = (
        tensors[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + BATCH_NORM_EPSILON)
    return scale, bias - mean * scale
