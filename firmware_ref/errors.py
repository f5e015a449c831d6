"""The errors people see, and the one way a command reports them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

HOLDS = 0
CHECK_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class Main(Protocol):
    """A command: arguments in (``sys.argv`` where None), exit code out."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


class InputError(Exception):
    """Bad input or usage: one line that names the value, what is allowed, and what to do."""


def guarded(main: Main) -> Main:
    """Wrap a command's ``main`` so that an `InputError` is one line on stderr and exit code 2."""

    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            print("interrupted; nothing half-written was left behind", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # The reader (head, less) went away; that is no fault of ours.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until exit
            return HOLDS

    return run


def read_bytes(path: str | Path, limit_bytes: int, what: str) -> bytes:
    """Read a whole file of at most ``limit_bytes``; ``what`` names it in the error."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{what} {str(path)!r} is not a file; give the path of a file")
        if size > limit_bytes:
            raise InputError(
                f"{what} {str(path)!r} has {size:,} bytes; at most {limit_bytes:,} are accepted"
            )
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{what} {str(path)!r} cannot be read: {reason}; check the path") from None


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{str(path)!r} cannot be written: {reason}; give a writable --out"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
