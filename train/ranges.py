"""The grids that activations begin with: ranges of least error on training input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from firmware_ref import scheme
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Quantization
from train.qat import DeviceNetwork, fixed_ranges, range_owners

SAMPLES_PER_BATCH = 8192


def calibrate(network: DeviceNetwork, batches: Iterable[Tensor], seed: int) -> None:
    """Give every activation its grid: the range of least squared rounding error on ``batches``.

    Batches are (B, C, F, T) training input without augmentation. Where the rules tie a tensor to
    its input (pooling, reshaping) or fix it (LOGISTIC), the rule wins.
    """
    generator = torch.Generator().manual_seed(seed)
    samples: dict[str, list[np.ndarray]] = {}

    def watch(name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        if len(flat) > SAMPLES_PER_BATCH:
            chosen = torch.randint(len(flat), (SAMPLES_PER_BATCH,), generator=generator)
            flat = flat[chosen.to(flat.device)]
        samples.setdefault(name, []).append(flat.cpu().numpy().copy())

    network.set_quantization({})
    network.eval()
    with torch.no_grad():
        for batch in batches:
            network(batch, watch)
    ranges: dict[str, Quantization] = {}
    for name, parts in samples.items():
        sample = np.concatenate(parts)
        if not np.isfinite(sample).any():
            raise InputError(f"calibration: {name} is finite in no example; train for longer")
        ranges[name] = least_error(sample)
    network.set_quantization(under_rules(network.graph, ranges))


def under_rules(graph: Graph, ranges: Mapping[str, Quantization]) -> dict[str, Quantization]:
    """``ranges`` with the ones that the INT8 rules tie to another, or fix, as they must be."""
    ruled = {name: ranges[owner] for name, owner in range_owners(graph).items()}
    for operator in graph.operators:
        if operator.kind == "RSQRT":
            # A variance is never negative, and RSQRT refuses a code below its zero point.
            name = graph.tensors[operator.inputs[0]].name
            if ruled[name].zero_point[0] != scheme.INT8_MIN:
                (scale,), (zero_point,) = ruled[name].scale, ruled[name].zero_point
                ruled[name] = scheme.activation_quantization(
                    0.0, scale * (scheme.INT8_MAX - zero_point)
                )
    return ruled | dict.fromkeys(fixed_ranges(graph), scheme.LOGISTIC_OUTPUT)


def least_error(x: np.ndarray, candidates: int = 40) -> Quantization:
    """The quantisation of least mean squared error among shrunken ranges of ``x``."""
    x = x[np.isfinite(x)]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    best, best_error = scheme.activation_quantization(low, high), np.inf
    for shrink in np.linspace(1.0, 0.2, candidates):
        q = scheme.activation_quantization(low * shrink, high * shrink)
        error = float(np.square(scheme.dequantize(scheme.quantize(x, q), q) - x).mean())
        if error < best_error:
            best, best_error = q, error
    return best
