"""TOML from outside: bounded before it is parsed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from firmware_ref.errors import InputError, read_bytes

LARGEST_BYTES = 2**16
# A key of thousands of dotted parts would cost the parser gigabytes.
LONGEST_LINE_BYTES = 1_000


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The tables of a file; ``what`` names it in errors.

    Raises `InputError` for one that cannot be read or goes beyond the bounds; `ValueError` or
    `RecursionError` for one that is not UTF-8, not TOML or nested too deep.
    """
    data = read_bytes(path, LARGEST_BYTES, what)
    if (longest := max(map(len, data.split(b"\n")))) > LONGEST_LINE_BYTES:
        raise InputError(
            f"{what} {str(path)!r} has a line of {longest:,} bytes; at most "
            f"{LONGEST_LINE_BYTES:,} are accepted; break it"
        )
    return tomllib.loads(data.decode("utf-8-sig"))
