"""Checkpoints: safetensors with a JSON manifest in the header; loading one runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from firmware_ref.arch import Network, layers
from firmware_ref.errors import InputError, write_whole
from firmware_ref.manifest import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_LIMIT_BYTES,
    CHECKPOINT_VERSION,
    MANIFEST_KEY,
    ModelMetadata,
    parse_metadata,
    read_checkpoint_manifest,
)
from train import distributed


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name, and the manifest that says what they are."""

    tensors: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]

    @property
    def network(self) -> Network:
        """The network the tensors belong to."""
        return Network.from_dict(self.manifest["network"])

    @property
    def metadata(self) -> ModelMetadata:
        """Labels, features and normalisation, checked against the network."""
        network = self.network
        shape = (1, network.input_bands, network.input_frames, network.input_channels)
        return parse_metadata(self.manifest, shape, (1, network.classes), "checkpoint manifest")


def save(path: str | Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; equal content gives equal bytes.

    Of several processes the first writes.
    """
    if not distributed.is_first():
        return
    whole = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, **manifest}
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    write_whole(path, safetensors.numpy.save(ordered, metadata={MANIFEST_KEY: text}))


def load(
    path: str | Path, stage: str | None = None, limit_bytes: int = CHECKPOINT_LIMIT_BYTES
) -> Checkpoint:
    """Read a checkpoint; ``stage`` names the only stage accepted (``float``, ``qat``).

    Of more than `CHECKPOINT_LIMIT_BYTES` it may be the state of a user's module, which may hold
    infinity, as masks of attention do.
    """
    manifest = read_checkpoint_manifest(path, limit_bytes)
    if stage is not None and manifest["stage"] != stage:
        raise InputError(
            f"checkpoint {str(path)!r} is of stage {manifest['stage']!r}; needed is {stage!r}: "
            f"give the {stage}.safetensors that `python -m train` wrote"
        )
    try:
        tensors = safetensors.numpy.load(Path(path).read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} is damaged: {error}; restore the file"
        ) from None
    for name, tensor in tensors.items():
        odd = np.isnan if limit_bytes > CHECKPOINT_LIMIT_BYTES else _not_finite
        if tensor.dtype.kind == "f" and odd(tensor).any():
            raise InputError(f"checkpoint {str(path)!r}: tensor {name!r} holds NaN or infinity")
    return Checkpoint(tensors, manifest)


def _not_finite(tensor: np.ndarray) -> np.ndarray:
    return ~np.isfinite(tensor)


def check_size(saved: Checkpoint, path: str | Path) -> None:
    """Refuse a network of more parameters than the file holds, before any of it is built."""
    claimed = sum(layer.parameters for layer in layers(saved.network))
    held = sum(tensor.size for tensor in saved.tensors.values())
    if claimed > held:
        raise InputError(
            f"checkpoint {str(path)!r} claims {claimed:,} parameters and holds {held:,} numbers; "
            "restore the file"
        )


def require_run(saved: Checkpoint, identity: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to continue from a checkpoint of another run.

    ``identity`` holds what its manifest must say too: network, configuration, folds, features.
    """
    for key, value in json.loads(json.dumps(identity)).items():
        if saved.manifest.get(key) != value:
            raise InputError(
                f"{str(path)!r} was written by a run with another {key}; resume with that one, "
                "or train into another --out"
            )
