"""Running ``python -m budgets`` as a command and measuring it, and files to run it on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_ref.arch import layers, preset
from firmware_ref.manifest import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
from tests.firmware_ref.build import Model

ROOT = Path(__file__).parents[2]

# A small process between: what a child takes is counted from the memory of its parent on.
_MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True, text=True)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, done.stdout, done.stderr, seconds,
                  used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Finished:
    """What a command ended with, printed and took."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    processor_seconds: float
    mebibytes: float


def measured(*arguments: str) -> Finished:
    """Run Python with these arguments in the repository."""
    command = [sys.executable, "-c", _MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, timeout=120)
    return Finished(*json.loads(done.stdout))


def slowness() -> float:
    """How many times slower than at rest the machine is now, by importing NumPy; at least 1."""
    return max(1.0, min(measured("-c", "import numpy").seconds for _ in range(3)) / 0.12)


def write_checkpoint(
    path: Path, network: object, stage: str = "float", tensors: dict[str, Any] | None = None
) -> Path:
    """A checkpoint without data; ``tensors`` are by default those of report-125k in float."""
    manifest = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, "network": network}
    manifest |= {"stage": stage, "labels": []}
    if tensors is None:
        names = {"sub_spectral_norm": ".norm.weight"}
        tensors = {
            layer.name + names.get(layer.kind, ".weight"): {"shape": [layer.weights]}
            for layer in layers(preset("report-125k"))
            if layer.weights
        }
    entries = {"__metadata__": {"manifest": json.dumps(manifest)}, **tensors}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def write_relu(path: Path, size: int) -> Path:
    """A flatbuffer of one operator on so many bytes."""
    model = Model()
    x, y = (model.tensor(name, (1, size), 0.5) for name in "xy")
    model.add("RELU", [x], [y])
    path.write_bytes(model.pack([x], [y]))
    return path
