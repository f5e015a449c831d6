"""Bundles of a few bytes, and what lies in a folder after one was written into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from convert.bundle.install import install

MANIFEST = "manifest.json"
# What tells a manifest of ours from another program's.
OURS = {"schema_version": 2, "target": "c99"}
Files = Mapping[str, bytes]


def listing(**contents: bytes) -> dict[str, bytes]:
    """Files with a manifest that lists them; `__` in a name separates folders."""
    files = {name.replace("__", "/"): content for name, content in contents.items()}
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    return {**files, MANIFEST: json.dumps({**OURS, "files": entries}).encode()}


OLD = listing(model=b"old", src__network=b"old network", only__of__old=b"old alone")
NEW = listing(model=b"new", src__network=b"new network", fresh__of__new=b"new alone")


def found(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def write(files: Files, folder: Path) -> list[Path]:
    return install(files, folder, MANIFEST)
