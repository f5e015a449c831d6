"""How fast the interpreter is beside tflite-runtime's reference kernels, in one run."""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph
from firmware_ref.run import Interpreter
from firmware_ref.verify import random_inputs

BATCH = 64
ROUNDS = 7


@dataclass(frozen=True)
class Speed:
    """Median milliseconds an input: the reference kernels, one input here, one of a batch here.

    The ratios are medians of ratios within a round, which the machine's load changes little.
    """

    reference_ms: float
    one_ms: float
    batched_ms: float
    one_ratio: float
    batched_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

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
    """Time both in turn, ``rounds`` times; ``data`` are the bytes that ``graph`` was read from.

    Only the output is asked for: the reference interpreter runs the file as it is.
    """
    interpreter = Interpreter(graph)
    inputs = random_inputs(graph, BATCH, 0)
    try:
        module = importlib.import_module("tflite_runtime.interpreter")
    except ImportError:
        raise InputError(
            "tflite-runtime is not installed; run: pip install 'tinyscene[convert]'"
        ) from None
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

    for warm_up in (run_reference, run_one, run_batch):
        warm_up()
    times = np.array(
        [
            (_seconds(run_reference, 5), _seconds(run_one, 5), _seconds(run_batch, 1) / BATCH)
            for _ in range(rounds)
        ]
    )
    reference_ms, one_ms, batched_ms = (1000 * float(t) for t in np.median(times, axis=0))
    one_ratio, batched_ratio = (
        statistics.median((times[:, 0] / times[:, place]).tolist()) for place in (1, 2)
    )
    return Speed(reference_ms, one_ms, batched_ms, one_ratio, batched_ratio)


def _seconds(work: Callable[[], None], times: int) -> float:
    """Mean seconds of one call."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times
