"""What every target's files say of one conversion."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from convert.golden import Golden
from convert.pipeline import Conversion
from firmware_ref.features import FeatureDefinition
from firmware_ref.graph import Tensor
from firmware_ref.manifest import ModelMetadata
from firmware_ref.verify import Report

PACKAGE = "tinyscene"
CONVERTERS = ("onnx2tf", "tensorflow", "onnx", "torch")


@dataclass(frozen=True)
class Port:
    """The network's input or output: shape with a batch of one, INT8 scale and zero point."""

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    @classmethod
    def of(cls, tensor: Tensor) -> Port:
        """Of a quantised tensor."""
        assert tensor.quantization is not None
        grid = tensor.quantization
        return cls(tensor.name, tensor.shape, grid.scale[0], grid.zero_point[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": "int8",
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


@dataclass(frozen=True, eq=False)
class Facts:
    """A conversion with its golden windows, and what the oracles said of the model on them."""

    conversion: Conversion
    goldens: tuple[Golden, ...]
    verified: Report

    @property
    def version(self) -> str:
        """Of this package."""
        return version(PACKAGE)

    @property
    def model(self) -> bytes:
        """The flatbuffer."""
        return self.conversion.model

    @property
    def crc32(self) -> int:
        """Of the flatbuffer."""
        return zlib.crc32(self.model)

    @property
    def sha256(self) -> str:
        """Of the flatbuffer, hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def metadata(self) -> ModelMetadata:
        """Labels, features, normalisation and dataset, checked."""
        return self.conversion.checkpoint.metadata

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels in the order of the logits."""
        return self.metadata.labels

    @property
    def features(self) -> FeatureDefinition:
        """How sound becomes the input."""
        return self.metadata.features

    @property
    def input(self) -> Port:
        """(1, F, T, C)."""
        return Port.of(self.conversion.graph.tensors[self.conversion.graph.inputs[0]])

    @property
    def output(self) -> Port:
        """(1, classes)."""
        return Port.of(self.conversion.graph.tensors[self.conversion.graph.outputs[0]])

    @property
    def input_bytes(self) -> int:
        """Of the network's input."""
        return math.prod(self.input.shape)

    @property
    def step_ratio(self) -> float:
        """What a logit one step lower makes of a probability."""
        return math.exp(-self.output.scale)

    @property
    def operators(self) -> list[str]:
        """Kinds of the flatbuffer's operators, sorted."""
        return sorted({operator.kind for operator in self.conversion.graph.operators})

    @property
    def frontend_ram_bytes(self) -> int:
        """``sizeof(tinyscene_frontend)``: log-mels, a count, a spectrum, a hop of samples."""
        log_mels = 4 * self.features.mel_bands * self.features.frames
        return log_mels + 4 + self.features.hop_samples * (2 * 4 + 2)

    @property
    def golden_bytes(self) -> int:
        """Flash that the windows of the self-test take."""
        return sum(
            2 * golden.samples.size + golden.input.size + golden.logits.size
            for golden in self.goldens
        )
