"""Mutated flatbuffers through `verify`: exit code 0, 1 or 2 and one line, whatever the bytes."""

from __future__ import annotations

import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.__main__ import main

SECONDS, MEGABYTES = 10, 1000
EDGES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, a truncation, exchanged words or blocks (tables, offsets), an extreme word."""
    changed = bytearray(data)
    kind = rng.choice(["bit", "bits", "cut", "words", "blocks", "edge"], p=[0.4] + 5 * [0.12])
    if kind == "cut":
        return data[: int(rng.integers(len(data)))]
    for _ in range(1 if kind in ("bit", "blocks", "edge") else int(rng.integers(2, 9))):
        if kind in ("bit", "bits"):
            changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif kind == "edge":
            place = 4 * int(rng.integers(len(data) // 4))
            struct.pack_into("<I", changed, place, int(rng.choice(EDGES)))
        else:
            size = 4 if kind == "words" else 4 * int(rng.integers(2, 50))
            a, b = (4 * int(place) for place in rng.integers(0, (len(data) - size) // 4, 2))
            first, second = bytes(changed[a : a + size]), bytes(changed[b : b + size])
            changed[a : a + size], changed[b : b + size] = second, first
    return bytes(changed)


def run(data: bytes, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    path.write_bytes(data)
    started = time.process_time()
    code = main(["verify", str(path), "--random", "1", "--quiet"])
    assert time.process_time() - started < SECONDS
    return code, capsys.readouterr().err


def check(data: bytes, seeds: range, path: Path, capsys: pytest.CaptureFixture[str]) -> set[int]:
    """Every mutation's exit code; each refusal is one line."""
    codes = set()
    for seed in seeds:
        code, said = run(mutated(data, np.random.default_rng(seed)), path, capsys)
        assert code in (0, 1, 2), seed
        if code == 2:
            assert said.startswith("error: ") and said.count("\n") == 1, (seed, said)
        codes.add(code)
    return codes


def test_some(model_bytes: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(model_bytes, range(150), tmp_path / "m.tflite", capsys) == {0, 2}


@pytest.mark.slow
def test_five_thousand(
    model_bytes: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(model_bytes, range(5000), tmp_path / "m.tflite", capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES
