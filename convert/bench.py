"""``./scripts/bench``: speed and cost, here and on Cortex-M4, each beside the plain way."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from budgets.count import Count, count_graph
from convert import emulate
from convert.__main__ import SHIPPED_CHECKPOINT
from convert.bundle import arena
from convert.golden import made_seconds
from convert.pipeline import Conversion, convert
from convert.stock import convert_stock
from firmware_ref import graph as graphs
from firmware_ref.bench import measure_speed
from firmware_ref.cli import Parser
from firmware_ref.errors import (
    HOLDS,
    CheckFailedError,
    InputError,
    check_folder,
    guarded,
    write_whole,
)
from train.bench import bench as bench_training

DEFAULT_OUT = "build/bench.json"
CORE = "cortex-m4"
STOCK = "onnx2tf's own INT8 conversion of the float network"
IN_TFLM = f"{STOCK} in TFLite Micro with CMSIS-NN, estimated"
ARENA = f"the arena of {STOCK}"
REFERENCE_KERNELS = "tflite-runtime's reference kernels"
PLAIN = {
    "training": "an eager NCHW loop without augmentation",
    "extraction": "librosa, one clip at a time",
}
MAKERS = ("torch", "onnx2tf", "tensorflow", "tflite-runtime", "tflite-micro", "numpy")


@dataclass(frozen=True)
class Comparison:
    """One figure ``here`` and by the ``plain`` way, in ``unit``; what plain is, ``plain_is``.

    Both are measured in this run, but what a line calls estimated.
    """

    what: str
    unit: str
    here: float
    plain: float
    plain_is: str
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times better than the plain way; below 1, worse."""
        return self.here / self.plain if self.more_is_better else self.plain / self.here


def bench(say: Callable[[str], None]) -> list[Comparison]:
    """Measure everything in turn; ``say`` is told what is measured, and what cannot be here."""
    found = [
        Comparison(r.what, "examples/s", r.here, r.plain, PLAIN[r.what.split(",")[0]], True)
        for r in bench_training(say)
    ]
    say("conversion, here and by onnx2tf alone")
    started = time.perf_counter()
    conversion = convert(SHIPPED_CHECKPOINT, lambda stage: None)
    here = time.perf_counter() - started
    started = time.perf_counter()
    stock = convert_stock(conversion.checkpoint.network)
    plain = time.perf_counter() - started
    found.append(Comparison("conversion", "s", here, plain, STOCK))
    say("the reference interpreter")
    speed = measure_speed(conversion.graph, conversion.model)
    if speed.warning:
        say(speed.warning)
    for what, ms in (("one input", speed.one_ms), ("a batch of 64", speed.batched_ms)):
        name = f"firmware_ref, {what}"
        found.append(Comparison(name, "ms an input", ms, speed.reference_ms, REFERENCE_KERNELS))
    return found + on_device(conversion, stock, say)


def on_device(conversion: Conversion, stock: bytes, say: Callable[[str], None]) -> list[Comparison]:
    """The flatbuffer and the C99 network, each beside the stock flatbuffer in TFLite Micro."""
    say("both flatbuffers in TFLite Micro")
    here = _estimated(conversion.count)
    plain = _estimated(count_graph(graphs.parse(stock), "stock", len(stock)))
    arena_bytes, stock_arena_bytes = (arena.measure(m).least for m in (conversion.model, stock))
    found = [
        Comparison("flatbuffer", "bytes", len(conversion.model), len(stock), STOCK),
        Comparison("flatbuffer: TFLM arena", "bytes", arena_bytes, stock_arena_bytes, STOCK),
        Comparison(f"flatbuffer: {CORE}, estimated", "M instructions", here, plain, IN_TFLM),
    ]
    if missing := emulate.missing_tools():
        say(f"C on an emulated board is not measured: {missing[0]} is not installed")
        return found
    say(f"C on an emulated {CORE}")
    measured, _ = emulate.emulate(conversion.graph, made_seconds(["noise"]), [CORE], "-O3")
    for m in measured:
        what, instructions = f"C, {m.build}: {CORE}, QEMU", m.instructions / 1e6
        found.append(Comparison(what, "M instructions", instructions, plain, IN_TFLM))
    ram = max(m.network_ram_bytes for m in measured)
    return [*found, Comparison("C: RAM with stack", "bytes", ram, stock_arena_bytes, ARENA)]


def _estimated(count: Count) -> float:
    """Millions of instructions in TFLite Micro with CMSIS-NN."""
    if count.not_costed:
        raise CheckFailedError(f"{count.name}: operators of unknown cost: {count.not_costed}")
    return count.instructions[CORE] / 1e6


def as_text(comparisons: Sequence[Comparison]) -> str:
    """An aligned table, and under it what the plain ways are."""
    plain = list(dict.fromkeys(c.plain_is for c in comparisons))
    width = max(len(c.what) for c in comparisons) + 2
    lines = [f"{'':<{width}}{'here':>12}{'plain':>12}{'times':>8}  {'':<15}plain is"]
    lines += [
        f"{c.what:<{width}}{_figure(c.here):>12}{_figure(c.plain):>12}{c.ratio:>8.2f}  "
        f"{c.unit:<15}({plain.index(c.plain_is) + 1})"
        for c in comparisons
    ]
    lines.append("times: how many times better; all of one run on this machine")
    return "\n".join([*lines, *(f"({n}) {text}" for n, text in enumerate(plain, 1))])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def as_document(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Plain values for JSON, with what they were measured on."""
    return {
        "schema_version": 1,
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in MAKERS},
        },
        "comparisons": [asdict(c) | {"ratio": c.ratio} for c in comparisons],
    }


def parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m convert.bench``."""
    result = Parser(
        prog="python -m convert.bench",
        description="Measure training, features, conversion, the reference interpreter and the C "
        "on an emulated board, each beside the plain way in one run.",
        epilog="example: ./scripts/bench --out build/bench.json",
    )
    result.add_argument("--out", default=DEFAULT_OUT, help=f"JSON file (default: {DEFAULT_OUT})")
    result.add_argument("--json", action="store_true", help="print the JSON, too, in place of text")
    result.add_argument("--quiet", action="store_true", help="do not say what is measured")
    return result


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_args(argv)
    out = Path(args.out)
    check_folder(out.parent, "--out")
    if out.exists() and not out.is_file():
        raise InputError(f"--out {args.out!r} is no regular file; give the path of a file")

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    comparisons = bench(say)
    document = json.dumps(as_document(comparisons), indent=2) + "\n"
    write_whole(out, document.encode())
    print(document if args.json else as_text(comparisons), end="" if args.json else "\n")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
