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
    ``b' = (b - m) g / sqrt(v + eps) + beta``; computed in float64, rounded once. With more than
    one sub-band the norm stays a product and a sum, of shape (1, F, 1, C).
    """
    constants: dict[str, np.ndarray] = {}
    for operator in graph.operators:
        if operator.kind not in WEIGHT_AXIS:
            continue
        layer = graph.name(operator)
        weight = tensors[f"{layer}.weight"].astype(np.float64)
        bias = tensors.get(f"{layer}.bias", np.zeros(len(weight))).astype(np.float64)
        norm = _norm_after(network, layer)
        if norm is not None and f"{norm}.weight" in tensors:
            scale, offset = _affine(tensors, norm)
            weight, bias = weight * scale[:, None, None, None], bias * scale + offset
        order = (0, 2, 3, 1) if operator.kind == "CONV_2D" else (1, 2, 3, 0)
        constants[f"{layer}/weight"] = weight.transpose(order)
        constants[f"{layer}/bias"] = bias
    if network.ssn_bands > 1:
        constants |= _sub_spectral(network, tensors, graph)
    return {name: value.astype(np.float32) for name, value in constants.items()}


def _norm_after(network: Network, layer: str) -> str | None:
    """Name of the batch norm that folds into a convolution."""
    parent, _, kind = layer.rpartition(".")
    if kind == "conv":
        return f"{parent}.norm"
    if kind == "frequency_conv":
        return f"{parent}.sub_spectral_norm.norm" if network.ssn_bands == 1 else None
    return {"expand": f"{parent}.expand_norm", "temporal_conv": f"{parent}.temporal_norm"}.get(kind)


def _affine(tensors: Mapping[str, np.ndarray], norm: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm in evaluation mode as ``scale x + offset``, float64."""
    weight, bias, mean, variance = (
        tensors[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + BATCH_NORM_EPSILON)
    return scale, bias - mean * scale


def _sub_spectral(
    network: Network, tensors: Mapping[str, np.ndarray], graph: Graph
) -> dict[str, np.ndarray]:
    """SubSpectralNorm as a factor and a summand for every band and channel, (1, F, 1, C)."""
    constants = {}
    for tensor in graph.tensors:
        block, _, kind = tensor.name.partition(".ssn_scale/")
        if kind != "weight":
            continue
        scale, offset = _affine(tensors, f"{block}.sub_spectral_norm.norm")
        _, bands, _, channels = tensor.shape
        repeat = bands // network.ssn_bands
        for name, value in (("ssn_scale/weight", scale), ("sub_spectral_norm/bias", offset)):
            by_band = value.reshape(channels, network.ssn_bands).T  # (S, C)
            constants[f"{block}.{name}"] = np.repeat(by_band, repeat, axis=0)[None, :, None, :]
    return constants
