"""A QAT checkpoint: the float constants of the device graph and the scale of every activation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.agreement import agreed
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Quantization
from firmware_ref.lowering import lower
from train import checkpoint
from train.checkpoint import Checkpoint
from train.qat import DeviceNetwork
from train.ranges import under_rules

STAGE = "qat"


def save(path: Path, device: DeviceNetwork, identity: Mapping[str, Any]) -> None:
    """Write the constants of ``device``; its scales go into the manifest under ``activations``.

    They are those on which the reference interpreters agree (`firmware_ref.agreement`).
    """
    activations = {
        name: {"scale": q.scale[0], "zero_point": q.zero_point[0]}
        for name, q in agreed(device.graph, device.quantization).items()
    }
    manifest = {**identity, "stage": STAGE, "activations": activations}
    checkpoint.save(path, device.float_constants(), manifest)


def load(path: str | Path) -> tuple[Checkpoint, DeviceNetwork]:
    """Read and check a QAT checkpoint; returns it with the network it describes."""
    saved = checkpoint.load(path, STAGE)
    graph = lower(saved.network)
    constants = _constants(saved, graph, str(path))
    device = DeviceNetwork(graph, constants)
    scales = _scales(saved, device.activations, str(path))
    for name, ruled in under_rules(graph, scales).items():
        if scales[name] != ruled:
            raise InputError(
                f"checkpoint {str(path)!r}: {name} has {scales[name]}; the INT8 rules allow only "
                f"{ruled}; retrain"
            )
    device.set_quantization(scales)
    return saved, device


def _constants(saved: Checkpoint, graph: Graph, path: str) -> dict[str, np.ndarray]:
    """The constants, each of the shape the graph gives it."""
    computed = {graph.name(operator) for operator in graph.operators}
    wanted = {
        t.name: t.shape
        for index, t in enumerate(graph.tensors)
        if t.data is None and t.name not in computed and index not in graph.inputs
    }
    if odd := sorted(set(wanted) ^ set(saved.tensors)):
        raise InputError(
            f"checkpoint {path!r}: tensor {odd[0]!r} does not fit the network; retrain"
        )
    for name, shape in wanted.items():
        tensor = saved.tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise InputError(
                f"checkpoint {path!r}: tensor {name!r} is {tensor.dtype} {tensor.shape}; the "
                f"network needs float32 {shape}; retrain"
            )
    return dict(saved.tensors)


def _scales(saved: Checkpoint, activations: list[str], path: str) -> dict[str, Quantization]:
    """Scale and zero point of every activation."""
    table = saved.manifest.get("activations")
    if not isinstance(table, dict) or set(table) != set(activations):
        raise InputError(
            f"checkpoint {path!r}: manifest key 'activations' does not fit the network; retrain"
        )
    return {name: _quantization(entry, f"{path!r}: {name}") for name, entry in table.items()}


def _quantization(entry: Any, where: str) -> Quantization:
    scale = entry.get("scale") if isinstance(entry, dict) else None
    zero_point = entry.get("zero_point") if isinstance(entry, dict) else None
    if (
        not isinstance(scale, float)
        or not 1e-30 < scale < 1e30
        or float(np.float32(scale)) != scale
        or type(zero_point) is not int
        or not -128 <= zero_point <= 127
    ):
        raise InputError(
            f"checkpoint {where}: scale={scale!r} zero_point={zero_point!r}; allowed are a "
            "positive float32 and an integer from -128 to 127; retrain"
        )
    return Quantization((scale,), (zero_point,))
