"""A conversion as the files of a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from convert.bundle import c99, tflite_micro
from convert.bundle.facts import CONVERTERS, Facts
from convert.bundle.parts import Amount, File, Parts
from convert.bundle.report import report_files

TARGETS: Mapping[str, Callable[[Facts], Parts]] = {
    c99.TARGET: c99.parts,
    tflite_micro.TARGET: tflite_micro.parts,
}
MODEL_FILE, MANIFEST_FILE = "model.tflite", "manifest.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True, eq=False)
class Bundle:
    """Bytes by path in the bundle, the manifest last, which names the others with their hashes."""

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    parts: Parts


def bundle(facts: Facts, target: str) -> Bundle:
    """The bundle of a target; the same facts give the same bytes.

    Raises `InputError` for a network that the target does not take.
    """
    found = TARGETS[target](facts)
    model = File(MODEL_FILE, facts.model, "the network, for every tool that reads TFLite")
    parts = replace(found, files=(model, *found.files))
    listed = File(MANIFEST_FILE, b"", "all of this for programs, with the hash of each file")
    files = {
        file.path: file.content for file in (*parts.files, *report_files(facts, parts, listed))
    }
    values = manifest(facts, parts, files)
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    return Bundle({**files, MANIFEST_FILE: text.encode()}, values, parts)


def manifest(facts: Facts, parts: Parts, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the bundle is, where it came from, and what it costs, for JSON."""
    count, metadata = facts.conversion.count, facts.metadata
    return {
        "schema_version": SCHEMA_VERSION,
        "target": parts.target,
        "version": facts.version,
        "model": {
            "bytes": len(facts.model),
            "bytes_by_part": dict(count.parts),
            "sha256": facts.sha256,
            "crc32": f"{facts.crc32:08x}",
            "input": facts.input.to_dict(),
            "output": facts.output.to_dict(),
            "operators": facts.operators,
            "parameters": count.parameters,
            "multiply_accumulates": count.macs,
        },
        "ram_bytes": _amounts(parts.ram),
        "flash_bytes": _amounts(parts.flash),
        **parts.more,
        "labels": list(facts.labels),
        "features": facts.features.to_dict(),
        "input_normalization": {"mean": list(metadata.mean), "std": list(metadata.std)},
        "dataset": {
            "name": metadata.dataset,
            "test_fold": metadata.test_fold,
            "selected_on_test": metadata.selected_on_test,
        },
        "network": facts.conversion.checkpoint.manifest["network"],
        "goldens": [
            {
                "name": golden.name,
                "input_crc32": f"{golden.input_crc32:08x}",
                "logits": golden.logits.tolist(),
            }
            for golden in facts.goldens
        ],
        "verified": facts.verified.to_dict(),
        "converted_with": {name: version(name) for name in CONVERTERS},
        "files": {
            path: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        },
    }


def _amounts(amounts: tuple[Amount, ...]) -> dict[str, int]:
    return {amount.what.replace(" ", "_"): amount.bytes for amount in amounts}
