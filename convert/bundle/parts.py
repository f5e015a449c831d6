"""What a target is made of, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOURCE_FOLDER = "src"


@dataclass(frozen=True)
class File:
    """One file: its path in the bundle, its bytes, and what it is for."""

    path: str
    content: bytes
    says: str


@dataclass(frozen=True)
class Amount:
    """Bytes of RAM or flash that something takes."""

    what: str
    bytes: int


@dataclass(frozen=True)
class Define:
    """A number in the configuration header, with its comment."""

    name: str
    value: int
    says: str


@dataclass(frozen=True)
class Names:
    """Files of one target: headers and self-test in `SOURCE_FOLDER`, the classifier beside it."""

    config: str
    golden: str
    self_test_header: str
    self_test: str
    main: str


@dataclass(frozen=True)
class Parts:
    """The files of a target but manifest and report, and what these say of it.

    ``code`` says in words what comes to the ``flash``; ``equal`` are rows of what equals what, bit
    for bit, and how that is shown; ``steps`` lead into firmware; ``more`` goes into the manifest.
    """

    target: str
    files: tuple[File, ...]
    ram: tuple[Amount, ...]
    flash: tuple[Amount, ...]
    code: str
    equal: tuple[tuple[str, str, str], ...]
    steps: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)


def source(name: str, text: str | bytes, says: str) -> File:
    """A file among the sources."""
    content = text if isinstance(text, bytes) else text.encode()
    return File(f"{SOURCE_FOLDER}/{name}", content, says)
