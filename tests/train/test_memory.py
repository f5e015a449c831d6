"""Freed memory that is used again: counted by the pages that a process asks the system for."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from train import memory
from train.memory import keep_freed_memory

CODE = """
import resource, sys
import numpy as np
from train.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for step in range(12):
    maps = [np.ones(2**20) for _ in range(8)]  # 8 MiB each
    del maps
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", CODE, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    # Ten steps of 64 MiB, in pages of 4 KiB, or in larger ones.
    assert faults("keep") < 200
    assert faults("leave") > 2 * faults("keep")


@pytest.mark.parametrize("library", [object(), OSError()], ids=["no mallopt", "no library"])
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    def load(_: None) -> object:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not keep_freed_memory()


def test_a_setting_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            return int(name != memory.M_TOP_PAD)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Refusing)
    assert not keep_freed_memory()
