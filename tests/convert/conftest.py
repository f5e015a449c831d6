"""Two networks converted once, by the command itself, with every way to the network closed."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from convert import pipeline
from convert.__main__ import main
from firmware_ref.arch import Network
from firmware_ref.graph import Graph
from tests.convert.members import REPORT, SMALL, Converted, save_checkpoint

# Python imports this module when it starts; child processes inherit the path to it.
BLOCK = """\
import os, socket, sys
log = {log!r}
def note(text):
    with open(log, "a") as stream:
        stream.write(text + "\\n")
def refuse(*args, **kwargs):
    note("attempt " + repr(args))
    raise OSError("the network is closed")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, refuse)
note("closed in " + " ".join(sys.orig_argv))
"""
CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def network_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Close the network, here and in every child; the log has each child and each attempt."""
    folder = tmp_path_factory.mktemp("offline")
    log = folder / "network.log"
    (folder / "sitecustomize.py").write_text(BLOCK.format(log=str(log)))
    log.touch()

    def refuse(*args: Any, **_: Any) -> None:
        with log.open("a") as stream:
            stream.write(f"attempt {args!r}\n")
        raise OSError("the network is closed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, CLOSED_PORT)
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse, raising=True)
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            patch.setattr(socket, name, refuse)
        yield log


def _convert(network: Network, folder: Path) -> Converted:
    checkpoint, bundle = folder / "qat.safetensors", folder / "bundle"
    save_checkpoint(network, checkpoint)
    seen: list[Graph] = []
    match: Callable[..., dict[int, int]] = pipeline.match

    def keep(exported: Graph, *rest: Any) -> dict[int, int]:
        seen.append(exported)
        return match(exported, *rest)

    stdout, stderr = io.StringIO(), io.StringIO()
    arguments = ["--target", "tflite-micro", "--checkpoint", str(checkpoint), "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "match", keep)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([*arguments, "--out", str(bundle)])
    assert code == 0, stderr.getvalue()
    return Converted(checkpoint, bundle, code, stdout.getvalue(), stderr.getvalue(), *seen)


@pytest.fixture(scope="session")
def report(network_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """``report-125k``, converted."""
    return _convert(REPORT, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def small(network_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The small member of the family, converted."""
    return _convert(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(params=["report", "small"])
def converted(request: pytest.FixtureRequest) -> Converted:
    """Each of the two in turn."""
    found: Converted = request.getfixturevalue(request.param)
    return found
