"""The generated C compiled on the host, called from Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from convert.c99.generate import Generated
from firmware_ref.graph import Graph

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
STRICT += ("-Wpedantic", "-Werror")
TRACE = """
#include <string.h>
#include "tinyscene_model.h"
typedef void (*told)(int32_t number, const int8_t *data, int32_t bytes);
static told hook;
void tinyscene_trace(int32_t number, const char *layer, const int8_t *data, int32_t bytes);
void tinyscene_trace(int32_t number, const char *layer, const int8_t *data, int32_t bytes) {
    (void)layer;
    hook(number, data, bytes);
}
void run(const int8_t *input, int8_t *logits, told to);
void run(const int8_t *input, int8_t *logits, told to) {
    static tinyscene_memory memory;
    hook = to;
    memset(&memory, 0x55, sizeof memory);
    memcpy(tinyscene_input(&memory), input, TINYSCENE_INPUT_BYTES);
    tinyscene_run(&memory, logits);
}
"""


def compiler() -> str:
    """The host's C compiler; a test skips where there is none."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    return found


def compile_c(folder: Path, sources: Sequence[str], output: str, *flags: str) -> None:
    """Compile without a warning; the compiler's words in the failure."""
    command = [compiler(), *STRICT, *flags, "-o", output, *sources]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


class HostNetwork:
    """A generated network as a shared library."""

    def __init__(self, generated: Generated, folder: Path, *flags: str) -> None:
        self._sizes: Mapping[int, int] = {}
        self.traced = generated.traced
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in generated.files.items():
            (folder / name).write_text(text, encoding="ascii")
        (folder / "trace.c").write_text(TRACE, encoding="ascii")
        flags = ("-O2", "-shared", "-fPIC", "-DTINYSCENE_TRACE", *flags)
        compile_c(folder, ["tinyscene_model.c", "trace.c"], "network.so", *flags)
        self._library = ctypes.CDLL(str(folder / "network.so"))

    def run(self, x: np.ndarray, classes: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """One example int8 to logits int8, and each traced tensor, flat, by its index."""
        seen: dict[int, np.ndarray] = {}

        def tell(number: int, data: ctypes._Pointer[ctypes.c_int8], count: int) -> None:
            seen[self.traced[number]] = np.ctypeslib.as_array(data, (count,)).copy()

        told = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.POINTER(ctypes.c_int8), ctypes.c_int32)
        x = np.ascontiguousarray(x, np.int8)
        logits = np.zeros(classes, np.int8)
        pointer = ctypes.c_void_p
        self._library.run(x.ctypes.data_as(pointer), logits.ctypes.data_as(pointer), told(tell))
        return logits, seen


def mismatches(
    network: HostNetwork, graph: Graph, inputs: np.ndarray, expected: Mapping[int, np.ndarray]
) -> dict[str, int]:
    """Values that differ, by layer, over int8 inputs (N, ...); ``expected`` as `run_all` gives."""
    found: dict[str, int] = {}
    output = graph.outputs[0]
    for number, x in enumerate(inputs):
        logits, seen = network.run(x, expected[output].shape[-1])
        seen[output] = logits
        for index, values in seen.items():
            wanted = expected[index][number].reshape(-1)
            different = len(wanted) if len(wanted) != len(values) else int((wanted != values).sum())
            if different:
                name = graph.tensors[index].name
                found[name] = found.get(name, 0) + different
    return found
