"""How fast the interpreter is beside tflite-runtime's reference kernels, in one run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_ref.graph import Graph
from firmware_ref.oracle import loaded, oracle, refusals
from firmware_ref.run import Interpreter
from firmware_ref.verify import random_inputs

BATCH = 64
ROUNDS = 21
# An idle machine stays below both: median of the times over the least, load over cores.
MOST_SPREAD = 1.25
MOST_LOAD = 0.5


@dataclass(frozen=True)
class Speed:
    """Least milliseconds an input: the reference kernels, one input here, one of a batch here.

    What else runs on a machine only adds time, so the least is nearest to the work itself, and the
    ratios are of the least. ``spread`` is the largest of the three medians over their least,
    ``load`` the machine's load average over its cores before the measurement.
    """

    reference_ms: float
    one_ms: float
    batched_ms: float
    one_ratio: float
    batched_ratio: float
    spread: float
    load: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @property
    def warning(self) -> str | None:
        """Why the figures may mislead, in one line, where the machine was busy."""
        if self.spread <= MOST_SPREAD and self.load <= MOST_LOAD:
            return None
        return (
            f"the machine is busy (load {self.load:.2f} a core, allowed {MOST_LOAD:g}; times "
            f"{self.spread:.2f} times their least, allowed {MOST_SPREAD:g}): these ratios may "
            "mislead; run again when it is idle"
        )

    def lines(self) -> list[str]:
        """An aligned table for people."""
        head = f"{'':<44}{'ms an input':>12}{'times as fast':>15}"
        rows = (
            ("tflite-runtime, reference kernels, 1 thread", self.reference_ms, 1.0),
            ("firmware_ref, one input", self.one_ms, self.one_ratio),
            (f"firmware_ref, a batch of {BATCH}", self.batched_ms, self.batched_ratio),
        )
        return [head, *(f"{name:<44}{ms:>12.2f}{ratio:>15.2f}" for name, ms, ratio in rows)]


def measure_speed(graph: Graph, data: bytes, rounds: int = ROUNDS) -> Speed:
    """Time all three in turn, ``rounds`` times; ``data`` are the bytes ``graph`` was read from.

    Only the output is asked for: the reference interpreter runs the file as it is.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    interpreter = Interpreter(graph)
    inputs = random_inputs(graph, BATCH, 0)
    runtime = oracle("tflite-runtime")
    module = loaded(runtime)
    with refusals(runtime):
        reference = module.Interpreter(
            model_content=data,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
            num_threads=1,
        )
        reference.allocate_tensors()

    def run_reference() -> None:
        reference.set_tensor(graph.inputs[0], inputs[:1])
        reference.invoke()

    def run_one() -> None:
        interpreter.run(inputs[:1])

    def run_batch() -> None:
        interpreter.run(inputs)

    works = (run_reference, run_one, run_batch)
    with refusals(runtime):
        run_reference()
    for warm_up in works[1:]:
        warm_up()
    # In turn, so that what makes the machine slow for a while makes all of them slow.
    seconds = np.array([[_seconds(work) for work in works] for _ in range(rounds)])
    return _speed(seconds / (1, 1, BATCH), load)


def _speed(seconds: np.ndarray, load: float) -> Speed:
    """From the seconds an input, (rounds, 3), of the reference, of one and of a batch."""
    least = seconds.min(axis=0)
    reference, one, batched = least.tolist()
    return Speed(
        reference_ms=1000 * reference,
        one_ms=1000 * one,
        batched_ms=1000 * batched,
        one_ratio=reference / one,
        batched_ratio=reference / batched,
        spread=float((np.median(seconds, axis=0) / least).max()),
        load=load,
    )


def _seconds(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
