"""Emulated Cortex-M boards: how to build for them, run on them, and count instructions.

QEMU 7.2 with ``-icount shift=5`` advances its clock by 32 ns an instruction; the boards' FPGAIO
counter runs at a rate of their own, so that an instruction is a fixed share of a tick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """One board: QEMU's ``machine``, flags for the compiler, memory as (address, bytes).

    ``counter`` is the address of its tick counter; ``instructions_per_tick`` what a tick is worth.
    """

    core: str
    machine: str
    flags: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    counter: int
    instructions_per_tick: float


BOARDS: Mapping[str, Board] = {
    board.core: board
    for board in (
        Board(
            core="cortex-m4",
            machine="mps2-an386",
            flags=("-mcpu=cortex-m4", "-mfloat-abi=soft"),
            flash=(0x0000_0000, 4 << 20),
            ram=(0x2000_0000, 4 << 20),
            counter=0x4002_8018,
            instructions_per_tick=1.25,
        ),
        Board(
            core="cortex-m7",
            machine="mps2-an500",
            flags=("-mcpu=cortex-m7", "-mfloat-abi=soft"),
            flash=(0x0000_0000, 4 << 20),
            ram=(0x2000_0000, 4 << 20),
            counter=0x4002_8018,
            instructions_per_tick=1.25,
        ),
        Board(
            core="cortex-m33",
            machine="mps2-an505",
            flags=("-mcpu=cortex-m33", "-mfloat-abi=soft"),
            flash=(0x1000_0000, 4 << 20),
            ram=(0x3800_0000, 2 << 20),
            counter=0x5030_2018,
            instructions_per_tick=1.5625,
        ),
        Board(
            core="cortex-m55",
            machine="mps3-an547",
            flags=("-mcpu=cortex-m55", "-mfloat-abi=hard"),
            flash=(0x0000_0000, 512 << 10),
            ram=(0x0100_0000, 2 << 20),
            counter=0x5930_2018,
            instructions_per_tick=1.5625,
        ),
    )
}
