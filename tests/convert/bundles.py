"""Bundles made in a moment: a QAT checkpoint quantised, without the export that proves it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from budgets.count import count_graph
from budgets.memory_plan import planned
from convert.bundle.contents import Bundle, bundle
from convert.bundle.facts import Facts
from convert.bundle.windows import prove
from convert.flatbuffer import write
from convert.golden import made_seconds
from convert.pipeline import Conversion, _metadata
from firmware_ref.graph import METADATA_NAME, parse
from firmware_ref.quantize import quantize_graph
from tests.convert.members import SMALL, save_checkpoint
from train import qat_checkpoint
from train.checkpoint import Checkpoint

# Quotes, backslashes, a trigraph, ends of comments and macros, markup, and text beyond ASCII.
HOSTILE = (
    'a"; } int main() { return "',
    "\\\\ \\n \\",
    "??/ ??= ?\\?",
    "*/ // # ${PATH} @x@ $(id) %s %n",
    "<script>alert(1)</script> & &lt;b>",
    "| a | `b` | **c** [d](e) ~~f~~ | \\|",
    "straße 街 \N{SNOWMAN} \N{LATIN SMALL LETTER E WITH ACUTE}7",
    "long " * 20,
)


def conversion(checkpoint: Path, labels: Sequence[str] | None = None) -> Conversion:
    """What `convert.pipeline.convert` gives of a checkpoint, with other labels where given."""
    saved, device = qat_checkpoint.load(checkpoint)
    if labels is not None:
        saved = Checkpoint(saved.tensors, {**saved.manifest, "labels": list(labels)})
    metadata = {METADATA_NAME: _metadata(saved)}
    graph = quantize_graph(device.graph, device.float_constants(), device.quantization, metadata)
    model = write(planned(graph))
    graph = parse(model)
    return Conversion(model, graph, count_graph(graph, "model.tflite", len(model)), saved)


def facts_of(checkpoint: Path, labels: Sequence[str] | None = None) -> Facts:
    """The same with a window of noise to test itself on."""
    return prove(conversion(checkpoint, labels), made_seconds(["noise"]))


@lru_cache(maxsize=1)
def _hostile(folder: Path) -> Facts:
    network = replace(SMALL, classes=len(HOSTILE))
    save_checkpoint(network, folder / "hostile.safetensors")
    return facts_of(folder / "hostile.safetensors", HOSTILE)


def hostile_bundle(folder: Path, target: str) -> Bundle:
    """A bundle whose labels are `HOSTILE`; ``folder`` takes its checkpoint."""
    return bundle(_hostile(folder), target)


def written(made: Bundle, folder: Path) -> Path:
    """The bundle's files as they are, for a compiler."""
    for name, content in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def run(*command: str | Path, cwd: Path, stdin: bytes = b"") -> str:
    """Standard output of a command that must succeed; all its words in the failure."""
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, check=False)
    words = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, words[:4000]
    return done.stdout.decode("utf-8")


def tool(name: str, package: str = "build-essential") -> str:
    """The path of a tool; the test skips where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install {package}")
    return found
