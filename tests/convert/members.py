"""Networks that the conversion tests share, as QAT checkpoints made in a moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from firmware_ref.arch import PRESETS, Network
from firmware_ref.features import FeatureDefinition
from firmware_ref.graph import Graph
from firmware_ref.lowering import lower
from train import qat_checkpoint
from train.fold import fold
from train.model import build_model
from train.qat import DeviceNetwork
from train.ranges import calibrate

REPORT = PRESETS["report-125k"]
# What the preset lacks: sub-bands, an expansion in every stage, no head, no biases.
SMALL = Network(
    name="small",
    stem_channels=8,
    widths=(6, 10),
    blocks=(2, 1),
    pool_after=(1,),
    ssn_bands=4,
    head_channels=None,
    first_res_norm="stem",
    classes=4,
)


@dataclass(frozen=True)
class Converted:
    """A run of ``python -m convert --json`` with the network closed.

    ``network_log`` is what `tests.convert.offline` noted, ``exported`` what onnx2tf wrote.
    """

    checkpoint: Path
    folder: Path
    code: int
    stdout: str
    stderr: str
    network_log: str
    exported: Graph = field(repr=False)

    @property
    def model(self) -> bytes:
        return (self.folder / "model.tflite").read_bytes()

    def tensors(self) -> dict[str, np.ndarray]:
        """The checkpoint's tensors, by safetensors' own reader."""
        return dict(safetensors.numpy.load_file(self.checkpoint))

    def manifest(self) -> dict[str, Any]:
        """The checkpoint's manifest, from the header by hand."""
        data = self.checkpoint.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return dict(json.loads(header["__metadata__"]["manifest"]))


def identity(network: Network) -> dict[str, Any]:
    """What a checkpoint says of a network besides its numbers."""
    return {
        "network": network.to_dict(),
        "labels": [f"class {number}" for number in range(network.classes)],
        "features": FeatureDefinition().to_dict(),
        "input_normalization": {
            "mean": [-7.5, 0.0, 0.25][: network.input_channels],
            "std": [2.5, 0.5, 0.125][: network.input_channels],
        },
    }


def device_network(network: Network, seed: int = 0) -> DeviceNetwork:
    """A network of random weights with random batch-norm statistics, folded; in float."""
    torch.manual_seed(seed)
    model = build_model(network)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None  # the statistics of one batch, not an average over many
    with torch.no_grad():
        model.train()(examples(network, 4, seed))
    graph = lower(network)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    return DeviceNetwork(graph, fold(network, tensors, graph))


def save_checkpoint(network: Network, path: Path, seed: int = 0) -> None:
    """Write a QAT checkpoint of random weights and calibrated scales."""
    device = device_network(network, seed)
    calibrate(device, [examples(network, 4, seed)], seed)
    qat_checkpoint.save(path, device, identity(network))


def examples(network: Network, count: int, seed: int) -> torch.Tensor:
    """Normal network input, (B, C, F, T) float32."""
    shape = (count, network.input_channels, network.input_bands, network.input_frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
