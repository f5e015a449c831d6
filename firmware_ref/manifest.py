"""What travels with the numbers: the JSON manifest of a checkpoint, the metadata of a model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.errors import InputError, read_bytes
from firmware_ref.features import FeatureDefinition
from firmware_ref.graph import METADATA_NAME, Graph

CHECKPOINT_FORMAT = "tinyscene-checkpoint"
CHECKPOINT_VERSION = 1
MANIFEST_KEY = "manifest"
CHECKPOINT_LIMIT_BYTES = 256 * 2**20
HEADER_LIMIT_BYTES = 2 * 2**20
MAX_RANK = 8
MAX_LABEL = 100


def read_checkpoint_manifest(
    path: str | Path, limit_bytes: int = CHECKPOINT_LIMIT_BYTES
) -> dict[str, Any]:
    """The JSON manifest of a checkpoint; see `read_checkpoint_header`."""
    return read_checkpoint_header(path, limit_bytes)[0]


def read_checkpoint_header(
    path: str | Path, limit_bytes: int = CHECKPOINT_LIMIT_BYTES
) -> tuple[dict[str, Any], dict[str, int]]:
    """The JSON manifest of a checkpoint and the elements of each tensor, loading none.

    A safetensors file starts with the length of a JSON header (little-endian uint64) whose
    ``__metadata__`` maps strings to strings; ours has one entry, the manifest.
    """
    data = read_bytes(path, limit_bytes, "checkpoint", 8 + HEADER_LIMIT_BYTES)
    refusal = f"checkpoint {str(path)!r} is not a tinyscene checkpoint"
    remedy = "give a .safetensors file written by `python -m train`"
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, HEADER_LIMIT_BYTES):
        raise InputError(f"{refusal} (no safetensors header); {remedy}")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
        manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
        kind, version = manifest["format"], manifest["version"]
        del header["__metadata__"]
        elements = {name: _elements(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{refusal} (no readable manifest); {remedy}") from None
    if kind != CHECKPOINT_FORMAT or version != CHECKPOINT_VERSION:
        raise InputError(
            f"{refusal} of this version: format={kind!r:.40} version={version!r:.40}; allowed is "
            f"{CHECKPOINT_FORMAT!r} version {CHECKPOINT_VERSION}; {remedy}"
        )
    for key, kind in (("network", dict), ("stage", str), ("labels", list)):
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{refusal}: manifest key {key!r} is missing or malformed; {remedy}")
    return manifest, elements


def _elements(shape: object) -> int:
    """The elements of a tensor; sizes that no tensor has are a `ValueError`, and not multiplied."""
    if not (
        isinstance(shape, list)
        and len(shape) <= MAX_RANK
        and all(type(size) is int and 0 <= size <= CHECKPOINT_LIMIT_BYTES for size in shape)
    ):
        raise ValueError(f"shape={shape!r:.80}")
    return math.prod(shape)


@dataclass(frozen=True)
class ModelMetadata:
    """What a ``.tflite`` model says of itself: class labels in order, features, normalisation.

    ``mean`` and ``std`` have one entry an input channel; ``test_fold`` is the fold of its dataset
    that training did not hear, None where the model does not say; ``selected_on_test`` whether its
    epoch was chosen on that fold all the same; ``dataset`` the name of that dataset, ``folds`` a
    hash of which of its sources lie in which fold, where known.
    """

    labels: tuple[str, ...]
    features: FeatureDefinition
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_fold: int | None = None
    selected_on_test: bool = False
    dataset: str | None = None
    folds: str | None = None


def model_metadata(graph: Graph) -> ModelMetadata:
    """The metadata buffer `graph.METADATA_NAME`, checked against the graph's input and output."""
    data = graph.metadata.get(METADATA_NAME)
    if data is None:
        raise InputError(
            f"model has no metadata {METADATA_NAME!r} (labels, features, normalisation); convert "
            "it with `python -m convert --target tflite-micro`"
        )
    what = f"model metadata {METADATA_NAME!r}"
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{what} is not JSON; convert the model again") from None
    input_shape = graph.tensors[graph.inputs[0]].shape
    output_shape = graph.tensors[graph.outputs[0]].shape
    return parse_metadata(values, input_shape, output_shape, what)


def parse_metadata(
    values: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...], what: str
) -> ModelMetadata:
    """Metadata from JSON values of a model or of a checkpoint's manifest, every field checked.

    ``input_shape`` (1, F, T, C) and ``output_shape`` (1, classes) are the network's; ``what``
    names the source in errors.
    """
    try:
        labels, definition = values["labels"], values["features"]
        normalization = values["input_normalization"]
        mean, std = normalization["mean"], normalization["std"]
        dataset = values.get("dataset", {})
        test_fold, selected = dataset.get("test_fold"), dataset.get("selected_on_test", False)
        dataset_name, folds = dataset.get("name"), dataset.get("folds")
        found = FeatureDefinition.from_dict(definition)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{what} is malformed; make it again with this version") from None
    if input_shape[1:-1] != (found.mel_bands, found.frames) or input_shape[-1] not in (1, 3):
        raise InputError(
            f"{what}: the network input has shape={input_shape}; its features give "
            f"(1, {found.mel_bands}, {found.frames}, C) with C of 1 or 3"
        )
    if not distinct_names(labels) or output_shape != (1, len(labels)):
        raise InputError(f"{what}: labels={labels!r:.80} do not fit the output of {output_shape}")
    for name, numbers in (("mean", mean), ("std", std)):
        if not _finite_numbers(numbers, input_shape[-1]) or (
            # Below this a float32 is no longer a number to divide by.
            name == "std" and min(numbers) < np.finfo(np.float32).tiny
        ):
            raise InputError(
                f"{what}: {name}={numbers!r:.80}; allowed are {input_shape[-1]} finite numbers, "
                "one a channel, the std above 0"
            )
    if test_fold is not None and type(test_fold) is not int:
        raise InputError(f"{what}: test_fold={test_fold!r:.80} must be an integer or absent")
    if type(selected) is not bool:
        raise InputError(f"{what}: selected_on_test={selected!r:.80} must be true or false")
    for key, value in (("name", dataset_name), ("folds", folds)):
        if value is not None and not distinct_names([value]):
            raise InputError(f"{what}: dataset {key}={value!r:.80} must be a short name or absent")
    return ModelMetadata(
        tuple(labels),
        found,
        tuple(float(v) for v in mean),
        tuple(float(v) for v in std),
        test_fold,
        selected,
        dataset_name,
        folds,
    )


def distinct_names(labels: object) -> bool:
    """Whether they are a list of different printable names that a model can carry."""
    return (
        isinstance(labels, list)
        and all(
            isinstance(label, str) and label.isprintable() and 0 < len(label) <= MAX_LABEL
            for label in labels
        )
        and len(set(labels)) == len(labels)
    )


def _finite_numbers(numbers: object, count: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == count
        and all(type(v) in (int, float) and abs(v) < 1e30 and math.isfinite(v) for v in numbers)
    )
