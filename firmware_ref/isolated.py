"""An oracle in a process of its own: what kills the C++ interpreter is one line here."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph
from firmware_ref.oracle import Oracle, Session, loaded, session


def isolated(oracle: Oracle, data: bytes, graph: Graph) -> Session:
    """`oracle.session` in a child process, which ends when the session is dropped.

    Where the child dies, by an abort or a segmentation fault, that is an `InputError`. Only Linux
    forks safely; elsewhere the interpreter runs in this process.
    """
    if sys.platform != "linux":
        return session(oracle, data, graph)
    loaded(oracle)  # here, once: the child has it then
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(ours, theirs, oracle, data, graph), daemon=True)
    child.start()
    theirs.close()

    def answer(example: np.ndarray | None = None) -> dict[int, np.ndarray]:
        found: object = None
        with contextlib.suppress(EOFError, ConnectionError):
            if example is not None:
                ours.send(example)
            found = ours.recv()
        if isinstance(found, dict):
            return found
        if found is not None:
            raise InputError(str(found))
        child.join()
        raise InputError(
            f"oracle {oracle.name} {oracle.version} died on this model (exit code "
            f"{child.exitcode}): what it dies on cannot be verified; change the model, or name "
            "the other one with --oracle"
        )

    answer()
    return answer


def _serve(ours: Connection, theirs: Connection, oracle: Oracle, data: bytes, graph: Graph) -> None:
    """In the child: an answer once the model is loaded and to every example; refusals as text."""
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says that it was interrupted
    faulthandler.disable()
    # What a dying interpreter says there would be more lines than the parent's one.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            run = session(oracle, data, graph)
            theirs.send({})
            while True:
                theirs.send(run(theirs.recv()))
        except InputError as error:
            theirs.send(str(error))
