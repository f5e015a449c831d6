"""The C front end compiled for this machine, and the shipped model that it feeds."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import SHIPPED_CHECKPOINT
from convert.frontend_tables import TABLES_FILE, write_frontend
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import METADATA_NAME, Graph
from firmware_ref.quantize import quantize_graph
from train import qat_checkpoint

FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow"]
FLAGS += ["-Wstrict-prototypes", "-Werror", "-O2"]
HOP, HOPS, TAIL, CODES = 1024, 43, 68, 128 * 44
STATE = (
    '#include "tinyscene_frontend.h"\nconst unsigned state_bytes = sizeof(tinyscene_frontend);\n'
)


def compiler(name: str, package: str) -> str:
    """The path of a C compiler; the test skips where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} to compile the front end: apt-get install {package}")
    return found


def run(*command: str | Path, stdin: bytes = b"") -> bytes:
    """Standard output of a command that must succeed without a word on standard error."""
    result = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=300)
    assert result.returncode == 0 and not result.stderr, result.stderr.decode()
    return result.stdout


class CFrontend:
    """The compiled front end; its state begins as garbage."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._channels = channels
        (folder / "state.c").write_text(STATE)
        library = folder / "frontend.so"
        sources = [folder / "tinyscene_frontend.c", folder / "state.c"]
        run(compiler("gcc", "gcc"), *FLAGS, "-shared", "-fPIC", *sources, "-o", library)
        self._library = ctypes.CDLL(str(library))
        self.state_bytes = ctypes.c_uint.in_dll(self._library, "state_bytes").value
        self._state = (ctypes.c_uint64 * (self.state_bytes // 8 + 1))()
        ctypes.memset(self._state, 0xA5, ctypes.sizeof(self._state))
        for name in ("push", "finish"):
            getattr(self._library, f"tinyscene_frontend_{name}").restype = ctypes.c_bool

    def begin(self) -> None:
        self._library.tinyscene_frontend_begin(self._state)

    def push(self, hop: np.ndarray) -> bool:
        assert hop.shape == (HOP,)
        return bool(self._library.tinyscene_frontend_push(self._state, _pointer(hop)))

    def finish(self, tail: np.ndarray) -> np.ndarray | None:
        """The input, (128, 44, C) int8; None where refused, nothing written then."""
        assert tail.shape == (TAIL,)
        output = np.full(CODES * self._channels, 77, np.int8)
        arguments = self._state, _pointer(tail), output.ctypes.data_as(ctypes.c_void_p)
        if self._library.tinyscene_frontend_finish(*arguments):
            return output.reshape(128, 44, self._channels)
        assert (output == 77).all()
        return None

    def inputs(self, clips: np.ndarray) -> np.ndarray:
        """Clips (N, 44100) int16, hop by hop, to inputs (N, 128, 44, C) int8."""
        return np.stack([self._clip(clip) for clip in clips])

    def _clip(self, clip: np.ndarray) -> np.ndarray:
        self.begin()
        for hop in clip[: HOP * HOPS].reshape(HOPS, HOP):
            assert self.push(hop)
        output = self.finish(clip[HOP * HOPS :])
        assert output is not None
        return output


def _pointer(samples: np.ndarray) -> ctypes.c_void_p:
    assert samples.dtype == np.int16 and samples.flags.c_contiguous
    return samples.ctypes.data_as(ctypes.c_void_p)


def built(
    frontend: FixedFrontend, folder: Path, change: Callable[[str], str] | None = None
) -> CFrontend:
    """The front end of one model compiled in ``folder``, its tables changed first where asked."""
    write_frontend(frontend, folder)
    if change is not None:
        tables = folder / TABLES_FILE
        text = tables.read_text()
        changed = change(text)
        assert changed != text
        tables.write_text(changed)
    return CFrontend(folder, len(frontend.maps))


@lru_cache(maxsize=1)
def shipped_graph() -> Graph:
    """The shipped checkpoint as an INT8 graph, without the minute that exporting it takes."""
    saved, device = qat_checkpoint.load(SHIPPED_CHECKPOINT)
    found = saved.metadata
    metadata = {
        "labels": found.labels,
        "features": found.features.to_dict(),
        "input_normalization": {"mean": found.mean, "std": found.std},
    }
    data = {METADATA_NAME: json.dumps(metadata).encode()}
    return quantize_graph(device.graph, device.float_constants(), device.quantization, data)


def extremes(rng: np.random.Generator) -> np.ndarray:
    """Clips at the corners of int16, (N, 44100)."""
    n = np.arange(44_100)
    last, middle = np.zeros(44_100), np.zeros(44_100)
    last[-1], middle[[0, 20_000, 43 * HOP]] = 32767, -32768
    phases = [2 * np.pi * hz * n / 44_100 for hz in (50, 997, 9000)]
    made: Sequence[np.ndarray] = [
        np.zeros(44_100),
        np.full(44_100, -32768),
        np.full(44_100, 32767),
        np.full(44_100, -1),
        np.where(n % 2, 32767, -32768),
        np.where(n // 2 % 2, 32767, -32768),
        *(np.where(np.sin(phase) >= 0, 32767, -32768) for phase in phases),
        last,
        middle,
        np.where(rng.random(44_100) < 0.5, -32768, 32767),
        *(rng.integers(-(2**bits), 2**bits, 44_100) for bits in range(16)),
        np.where(n < 22_050, 0, rng.integers(-32768, 32768, 44_100)),
    ]
    return np.stack(made).astype(np.int16)
