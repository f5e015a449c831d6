"""The tensor arena that TFLite Micro needs for a model, measured in the pinned wheel.

Each attempt is a process of its own: an arena that is much too small ends the wheel's by a signal.
The figures are those of a 64-bit host and TFLM's own kernels.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from dataclasses import dataclass

from budgets.cost import bundle_bytes
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.oracle import oracle

ORACLE = oracle("tflite-micro")
ALIGNMENT = 16
# For scratch buffers of other kernels than TFLM's own.
MARGIN_BYTES = bundle_bytes().arena_margin_bytes
# To record in; a network of the family needs a tenth of it.
AMPLE_BYTES = 1 << 24
RECORDED = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
REFUSED = 3


@dataclass(frozen=True)
class MeasuredArena:
    """Bytes: the ``least`` that works (16 less do not); ``head`` is reused, ``tail`` kept.

    ``bytes`` is what the bundle states, `MARGIN_BYTES` more.
    """

    least: int
    head: int
    tail: int

    @property
    def bytes(self) -> int:
        """With the margin."""
        return self.least + MARGIN_BYTES


def measure(model: bytes) -> MeasuredArena:
    """The least arena of a flatbuffer, from what the recording allocator says upwards.

    What was used while running is what it needs at least; preparing may need more. Raises
    `InputError` where the wheel is missing or another version, `CheckFailedError` where it refuses
    the model whatever the arena.
    """
    _check_version()
    text = _attempt(model, AMPLE_BYTES)
    found = {what: int(size) for what, size in RECORDED.findall(text or "")}
    if set(found) != {"total", "head", "tail"}:
        raise CheckFailedError(f"{ORACLE.name} {ORACLE.version} cannot run the model")
    low, high = found["total"] - ALIGNMENT, found["total"]
    while _attempt(model, high) is None:
        low, high = high, high + 2 * (high - low)
    while high - low > ALIGNMENT:
        middle = low + (high - low) // (2 * ALIGNMENT) * ALIGNMENT
        low, high = (low, middle) if _attempt(model, middle) is not None else (middle, high)
    return MeasuredArena(high, found["head"], found["tail"])


def _check_version() -> None:
    try:
        version = importlib.metadata.version(ORACLE.name)
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != ORACLE.version:
        raise InputError(
            f"the arena is measured in {ORACLE.name} {ORACLE.version}, found is {version}; "
            f"pip install '{ORACLE.name}=={ORACLE.version}'"
        )


def _attempt(model: bytes, arena_bytes: int) -> str | None:
    """What the interpreter records with an arena of that size; None where that does not suffice."""
    command = [sys.executable, "-m", __name__, str(arena_bytes)]
    done = subprocess.run(command, input=model, capture_output=True, check=False)
    if done.returncode == 0:
        return done.stderr.decode(errors="replace")
    # A negative code is the signal of a pointer that the wheel did not check.
    if done.returncode == REFUSED or done.returncode < 0:
        return None
    words = done.stderr.decode(errors="replace").strip().splitlines()
    raise CheckFailedError(f"measuring the arena failed: {words[-1] if words else 'no word'}")


def _run(model: bytes, arena_bytes: int) -> int:
    """One attempt, in a process of its own: 0, or `REFUSED`."""
    runtime = importlib.import_module(ORACLE.module)
    try:
        interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
        interpreter.invoke()
    except RuntimeError:
        return REFUSED
    interpreter.print_allocations()
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.stdin.buffer.read(), int(sys.argv[1])))
