"""``./scripts/emulate``: the C99 bundle on emulated Cortex-M boards, bit for bit, and its cost."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgets.lines import printable
from convert.boards import BOARDS, Board
from convert.c99.generate import C_FOLDER, Generated, generate
from convert.frontend_tables import write_frontend
from convert.golden import Golden, goldens, made_seconds, seconds_of
from firmware_ref import graph as graphs
from firmware_ref.cli import Parser
from firmware_ref.errors import HOLDS, CheckFailedError, InputError, guarded, without_commands
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.frontend import probabilities
from firmware_ref.graph import Graph
from firmware_ref.manifest import model_metadata

COMPILER, EMULATOR, SIZE = "arm-none-eabi-gcc", "qemu-system-arm", "arm-none-eabi-size"
PACKAGES = "gcc-arm-none-eabi libnewlib-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror")
BUILDS = {"portable": (), "simd": ("-DTINYSCENE_SIMD=1",)}
SECONDS = 600
# What GNU ld says of a section or region.
TOO_LARGE = re.compile(r"will not fit in region|region \S+ overflowed")
LINKER_SCRIPT = """\
__flash = {flash[0]:#x}; __flash_size = {flash[1]:#x};
__ram = {ram[0]:#x}; __ram_size = {ram[1]:#x}; __stack_size = 32k;
INCLUDE picolibc.ld
"""


@dataclass(frozen=True)
class Layer:
    """Instructions of one function of the generated C."""

    name: str
    instructions: int


@dataclass(frozen=True)
class Measured:
    """What one build of the bundle costs on one core; instructions of the first window.

    RAM is static: ``memory_bytes`` of the network, ``frontend_bytes`` of the front end; and stack.
    ``flash_bytes`` is code and constants of network and front end, without the C library.
    """

    core: str
    build: str
    windows: int
    instructions: int
    hop_instructions: int
    finish_instructions: int
    memory_bytes: int
    frontend_bytes: int
    network_stack_bytes: int
    frontend_stack_bytes: int
    flash_bytes: int
    layers: tuple[Layer, ...]

    @property
    def network_ram_bytes(self) -> int:
        """All RAM of the network."""
        return self.memory_bytes + self.network_stack_bytes


def emulate(
    graph: Graph, sounds: Sequence[tuple[str, np.ndarray]], cores: Sequence[str], optimize: str
) -> tuple[list[Measured], list[Golden]]:
    """Build and run on each core, portable and with SIMD; every window equal bit for bit.

    Raises `CheckFailedError` naming core, window and the first layer that differs, `InputError`
    where a tool is missing or fails, and where the model is too large for a board.
    """
    if missing := missing_tools():
        raise InputError(f"{missing[0]} is not installed; on Debian: apt-get install {PACKAGES}")
    generated = generate(graph)
    expected = goldens(graph, sounds, generated.traced)
    measured = []
    with tempfile.TemporaryDirectory(prefix="tinyscene-") as name:
        folder = Path(name)
        for file, text in generated.files.items():
            (folder / file).write_text(text, encoding="ascii")
        write_frontend(FixedFrontend.of_graph(graph), folder)
        shutil.copy(C_FOLDER / "emulate.c", folder)
        samples = np.stack([golden.samples for golden in expected]).astype("<i2")
        (folder / "windows.pcm").write_bytes(samples.tobytes())
        for core in cores:
            for build, flags in BUILDS.items():
                board = BOARDS[core]
                layers = f"-DTINYSCENE_LAYERS={len(generated.traced)}"
                flash = _build(board, folder, (*flags, optimize, layers))
                output = _run(board, folder)
                measured.append(_read(output, graph, generated, expected, board, build, flash))
    return measured, expected


def missing_tools() -> list[str]:
    """What `emulate` needs and is not installed here."""
    return [tool for tool in (COMPILER, EMULATOR, SIZE) if shutil.which(tool) is None]


def _build(board: Board, folder: Path, flags: Sequence[str]) -> int:
    """Compile and link; returns bytes of code and constants of network and front end, untraced."""
    (folder / "board.ld").write_text(LINKER_SCRIPT.format(**asdict(board)), encoding="ascii")
    common = ["--specs=picolibc.specs", "-mthumb", *board.flags, *flags, "-ffunction-sections"]
    # The model twice: as it ships, to be sized, and as it runs here.
    for source, made, extra in (
        ("tinyscene_model.c", "model.o", ()),
        ("tinyscene_frontend.c", "frontend.o", ()),
        ("tinyscene_model.c", "traced.o", ("-DTINYSCENE_TRACE",)),
        ("emulate.c", "emulate.o", (f"-DTINYSCENE_COUNTER={board.counter:#x}u", "-std=gnu99")),
    ):
        _tool([COMPILER, *common, *WARNINGS, *extra, "-c", source, "-o", made], folder)
    link = ["--oslib=semihost", "--crt0=hosted", "-Tboard.ld", "-o", "emulate.elf"]
    try:
        _tool([COMPILER, *common, *link, "traced.o", "frontend.o", "emulate.o"], folder)
    except InputError as error:
        if not TOO_LARGE.search(str(error)):
            raise
        raise InputError(
            f"the model does not fit {board.core}'s board, {board.machine}, of {board.flash[1]:,} "
            f"bytes of flash and {board.ram[1]:,} of RAM; give a smaller model, or another --core"
        ) from None
    sizes = _tool([SIZE, "model.o", "frontend.o"], folder).splitlines()[1:]
    return sum(int(line.split()[0]) + int(line.split()[1]) for line in sizes)


def _run(board: Board, folder: Path) -> str:
    return _tool(
        [
            EMULATOR,
            *("-M", board.machine, "-kernel", "emulate.elf"),
            *("-display", "none", "-serial", "none", "-monitor", "none"),
            *("-chardev", "stdio,id=console"),
            *("-semihosting-config", "enable=on,target=native,chardev=console"),
            *("-icount", "shift=5,align=off,sleep=off"),
        ],
        folder,
    )


def _tool(command: Sequence[str], folder: Path) -> str:
    """What a tool prints, run in the folder; `InputError` where it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{command[0]} did not end within {SECONDS} s; give less sound, or one --core"
        ) from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[:1000]
        raise InputError(
            f"{command[0]} ended with {done.returncode}: {words}; check that {PACKAGES} are "
            "installed, or give another model"
        )
    return done.stdout


def _read(
    output: str,
    graph: Graph,
    generated: Generated,
    expected: Sequence[Golden],
    board: Board,
    build: str,
    flash_bytes: int,
) -> Measured:
    """What the board printed, held against the goldens."""
    lines = [line.split() for line in output.splitlines() if line]
    if lines[-1:] != [["end"]]:
        raise CheckFailedError(f"{board.core}, {build}: the program ended early: {output[-200:]!r}")

    def all_of(word: str) -> list[list[str]]:
        return [line[1:] for line in lines if line[0] == word]

    inputs, logits, layers = all_of("input"), all_of("logits"), all_of("layer")
    count = len(generated.traced)
    if (len(inputs), len(layers)) != (len(expected), count * len(expected)):
        raise CheckFailedError(f"{board.core}, {build}: {len(inputs)} of {len(expected)} windows")
    for number, golden in enumerate(expected):
        where = f"{board.core}, {build}, {printable(golden.name)}"
        if int(inputs[number][2]) != golden.input_crc32:
            raise CheckFailedError(f"{where}: the network's input differs from the NumPy front end")
        for tensor, line in zip(generated.traced, layers[number * count :], strict=False):
            if int(line[2]) != golden.layers[tensor]:
                layer = printable(graph.tensors[tensor].name)
                raise CheckFailedError(f"{where}: layer {layer} differs")
        if [int(word) for word in logits[number]] != golden.logits.tolist():
            raise CheckFailedError(f"{where}: the logits differ")

    def instructions(ticks: str) -> int:
        return round(int(ticks) * board.instructions_per_tick)

    found = tuple(
        Layer(graph.tensors[t].name, instructions(line[1]))
        for t, line in zip(generated.traced, layers, strict=False)
    )
    memory, stack = all_of("memory")[0], np.array(all_of("stack"), np.int64).max(axis=0)
    return Measured(
        core=board.core,
        build=build,
        windows=len(expected),
        instructions=sum(layer.instructions for layer in found),
        hop_instructions=instructions(inputs[0][0]),
        finish_instructions=instructions(inputs[0][1]),
        memory_bytes=int(memory[0]),
        frontend_bytes=int(memory[1]),
        network_stack_bytes=int(stack[1]),
        frontend_stack_bytes=int(stack[0]),
        flash_bytes=flash_bytes,
        layers=found,
    )


def as_text(measured: Sequence[Measured]) -> str:
    """A table of layers, in thousands of instructions by core and build, and one of totals."""
    columns = [f"{m.core.removeprefix('cortex-')} {m.build}" for m in measured]
    lines = [f"{'instructions, thousands':<34}" + "".join(f"{c:>14}" for c in columns)]
    for rows in zip(*(m.layers for m in measured), strict=True):
        cells = "".join(f"{row.instructions / 1e3:>14,.0f}" for row in rows)
        lines.append(f"{printable(rows[0].name):<34}{cells}")
    totals = {
        "network, one second": lambda m: f"{m.instructions / 1e3:,.0f}",
        "front end, a hop at most": lambda m: f"{m.hop_instructions / 1e3:,.0f}",
        "front end, the last hop": lambda m: f"{m.finish_instructions / 1e3:,.0f}",
    }
    bytes_ = {
        "network RAM": lambda m: f"{m.memory_bytes:,}",
        "network stack": lambda m: f"{m.network_stack_bytes:,}",
        "front end RAM": lambda m: f"{m.frontend_bytes:,}",
        "front end stack": lambda m: f"{m.frontend_stack_bytes:,}",
        "flash, both": lambda m: f"{m.flash_bytes:,}",
    }
    lines.append("-" * len(lines[0]))
    lines += [f"{k:<34}" + "".join(f"{f(m):>14}" for m in measured) for k, f in totals.items()]
    lines += ["", f"{'bytes':<34}" + "".join(f"{c:>14}" for c in columns)]
    lines += [f"{k:<34}" + "".join(f"{f(m):>14}" for m in measured) for k, f in bytes_.items()]
    return "\n".join(lines) + "\n"


def labels_of(graph: Graph, expected: Sequence[Golden]) -> list[tuple[str, str, float]]:
    """Window, label and probability of each: what the device says it hears."""
    metadata = model_metadata(graph)
    quantization = graph.tensors[graph.outputs[0]].quantization
    assert quantization is not None
    found = []
    for golden in expected:
        shares = probabilities(golden.logits[None], quantization)[0]
        best = int(shares.argmax())
        found.append((golden.name, metadata.labels[best], float(shares[best])))
    return found


def parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m convert.emulate``."""
    result = Parser(
        prog="python -m convert.emulate",
        description="Run the C99 bundle of a model under QEMU, from sound to label: equal bit for "
        "bit to firmware_ref in every layer, with instructions, RAM and flash.",
        epilog="example: ./scripts/emulate clip.wav --core cortex-m4",
    )
    result.add_argument("audio", nargs="*", help="sound files (default: sounds made by code)")
    result.add_argument(
        "--model", default="build/bundle/model.tflite", help="default: build/bundle/model.tflite"
    )
    result.add_argument(
        "--core", action="append", choices=tuple(BOARDS), help="one or more (default: all)"
    )
    result.add_argument("--optimize", choices=("O2", "O3", "Os"), default="O3", help="default: O3")
    result.add_argument("--json", action="store_true", help="print the result as JSON")
    return result


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every window is equal on every core, 1 if not."""
    args = parser().parse_args(argv)
    graph = graphs.read(args.model)
    sounds = seconds_of(args.audio) if args.audio else made_seconds()
    measured, expected = emulate(graph, sounds, args.core or list(BOARDS), f"-{args.optimize}")
    heard = labels_of(graph, expected)
    if args.json:
        document: dict[str, Any] = {
            "ok": True,
            "optimize": args.optimize,
            "windows": [{"name": n, "label": label, "probability": p} for n, label, p in heard],
            "measured": [asdict(item) for item in measured],
        }
        print(json.dumps(document, indent=2).replace("##[", "\\u0023#["))
        return HOLDS
    for name, label, share in heard:
        print(without_commands(f"{printable(name)}: {label} ({share:.0%})"))
    layers = sum(len(item.layers) for item in measured[:1])
    print(
        f"\n{len(expected)} windows, {layers} layers each: equal bit for bit on "
        f"{len(measured)} builds (-{args.optimize})\n"
    )
    print(as_text(measured), end="")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
