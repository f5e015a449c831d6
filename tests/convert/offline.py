"""The network closed, in this process and in every Python it starts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

METHODS = ("connect", "connect_ex", "sendto")
LOOKUPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex")
# Python imports a module of this name when it starts.
SITE_CUSTOMIZE = f"""\
import socket, sys
def note(text):
    with open({{log!r}}, "a") as stream:
        stream.write(text + "\\n")
def refuse(*args, **kwargs):
    note("attempt " + repr(args))
    raise OSError("the network is closed")
for name in {METHODS}:
    setattr(socket.socket, name, refuse)
for name in {LOOKUPS}:
    setattr(socket, name, refuse)
note("closed in " + " ".join(sys.orig_argv))
"""


@contextlib.contextmanager
def offline(folder: Path) -> Iterator[Path]:
    """Refuse every connection; yields a log with a line for each child and each attempt."""
    log = folder / "network.log"
    log.touch()
    (folder / "sitecustomize.py").write_text(SITE_CUSTOMIZE.format(log=str(log)))

    def refuse(*args: Any, **_: Any) -> None:
        with log.open("a") as stream:
            stream.write(f"attempt {args!r}\n")
        raise OSError("the network is closed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        for name in METHODS:
            patch.setattr(socket.socket, name, refuse)
        for name in LOOKUPS:
            patch.setattr(socket, name, refuse)
        yield log
