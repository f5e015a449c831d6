"""Extraction as its tests look at it: here, or in a process of its own.

As a command, ``FOLDER CACHE [LIMIT]``, it extracts WAV files and prints how many it computed; it
dies at once, as if killed, before it computes more than ``LIMIT``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.trees import DEFINITION, recording
from train import extract
from train.dataset import Recording
from train.extract import Cut, Extracted, Variation


def extracted(
    clips: Sequence[Recording], cache: Path, cut: Cut | None = None, **changes: Any
) -> Extracted:
    """Through a cache, by default the deployed cut; ``changes`` make the variation."""
    return extract.extract(clips, DEFINITION, cut or Cut(), Variation(**changes), cache)


def rows(found: Extracted, number: int) -> np.ndarray:
    """Windows of a recording."""
    entry = found.entries[number]
    return found.log_mels[entry.first : entry.first + entry.count]


def same(ours: Extracted, theirs: Extracted) -> bool:
    """Whether both hold the same windows of each recording, to the bit."""
    assert len(ours.entries) == len(theirs.entries)
    return all(
        a.active == b.active and np.array_equal(rows(ours, n), rows(theirs, n))
        for n, (a, b) in enumerate(zip(ours.entries, theirs.entries, strict=True))
    )


def before_each(monkeypatch: pytest.MonkeyPatch, call: Callable[[Recording], None]) -> None:
    """Call something before a recording is computed in this process."""
    heard = extract.heard

    def noted(clip: Recording, *parts: Any) -> np.ndarray:
        call(clip)
        return heard(clip, *parts)

    monkeypatch.setattr(extract, "heard", noted)


def main() -> None:
    folder, cache = (Path(argument) for argument in sys.argv[1:3])
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize
    computed: list[Recording] = []

    def count(clip: Recording) -> None:
        if len(computed) == limit:
            os._exit(9)
        computed.append(clip)

    with pytest.MonkeyPatch.context() as patch:
        before_each(patch, count)
        extracted([recording(path) for path in sorted(folder.glob("*.wav"))], cache)
    print(len(computed))


if __name__ == "__main__":
    main()
