"""The windows of the self-test: which sounds, and proof that the oracles give the same on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from convert.bundle.facts import Facts
from convert.golden import goldens, made_seconds, seconds_of
from convert.pipeline import Conversion
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.oracle import ORACLES
from firmware_ref.verify import Mismatch, Report, verify

MOST_WINDOWS = 5

Sounds = list[tuple[str, np.ndarray]]


def chosen(clips: Sequence[str], say: Callable[[str], None]) -> Sounds:
    """One second each, by name: of sound files, or made by code where none is named.

    Of more than `MOST_WINDOWS` seconds the first ones of each file in turn; ``say`` is told.
    """
    if not clips:
        return made_seconds()
    if len(clips) > MOST_WINDOWS:
        raise InputError(f"--golden names {len(clips)} files; at most {MOST_WINDOWS} are taken")
    by_clip = [seconds_of([clip]) for clip in clips]
    in_turn = [
        parts[second]
        for second in range(max(map(len, by_clip)))
        for parts in by_clip
        if second < len(parts)
    ]
    if len(in_turn) > MOST_WINDOWS:
        say(f"golden windows: {MOST_WINDOWS} of the {len(in_turn)} seconds given")
    return in_turn[:MOST_WINDOWS]


def prove(conversion: Conversion, sounds: Sounds) -> Facts:
    """The windows with what the device computes of them.

    Every tensor must be equal in every oracle; raises `CheckFailedError` where one is not.
    """
    found = goldens(conversion.graph, sounds)
    inputs = np.concatenate([golden.input for golden in found])
    report = verify(conversion.graph, conversion.model, inputs, list(ORACLES.values()))
    for name, mismatch in _mismatches(report):
        raise CheckFailedError(
            f"{found[mismatch.index[0]].name}: {mismatch.op} {mismatch.layer!r} differs from "
            f"{name} in {mismatch.count} of {mismatch.values} values; use the pinned versions "
            "(pip install 'tinyscene[convert]')"
        )
    return Facts(conversion, tuple(found), report)


def _mismatches(report: Report) -> list[tuple[str, Mismatch]]:
    return [
        (result.name, result.first_mismatch)
        for result in report.oracles
        if result.first_mismatch is not None
    ]
