"""The report as aligned text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from budgets.count import Count, LayerCount
from budgets.limits import Limits
from budgets.lines import (
    FIRST_CORE,
    Row,
    change_line,
    changes_heading,
    other_lines,
    printable,
    rows,
    shape_text,
    shares,
    total_lines,
    unchecked_lines,
)
from budgets.verdict import Verdict

RED, GREEN, BOLD, RESET = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"
TEXT_COLUMNS = 3  # aligned to the left

Number = Callable[[LayerCount], int | None]


def _field(row: LayerCount) -> str:
    """Bands by frames of the receptive field, and milliseconds of sound."""
    field = f"{row.receptive_bands} x {row.receptive_frames}"
    return field if row.receptive_ms is None else f"{field} {row.receptive_ms:>5,.0f} ms"


# Of the device graph; the total is a sum, unless there is none.
COLUMNS: tuple[tuple[str, Number, bool], ...] = (
    ("deployed", lambda row: row.parameters, True),
    ("weights B", lambda row: row.weight_bytes, True),
    ("biases B", lambda row: row.bias_bytes, True),
    ("other B", lambda row: row.other_bytes, True),
    ("MACs", lambda row: row.macs, True),
    ("element-wise", lambda row: row.elementwise, True),
    ("reduced", lambda row: row.reductions, True),
    ("output B", lambda row: row.activation_bytes, False),
    ("live B", lambda row: row.live_bytes, False),
    (f"{FIRST_CORE} instr.", lambda row: row.instructions.get(FIRST_CORE), True),
)


def as_table(
    verdicts: Sequence[Verdict], limits: Limits, clock_mhz: float, colour: bool = False
) -> str:
    """Every subject's layers, limits and totals; ``colour`` adds ANSI colours."""
    return "\n".join(_table(verdict, limits, clock_mhz, colour) for verdict in verdicts)


def _table(verdict: Verdict, limits: Limits, clock_mhz: float, colour: bool) -> str:
    def paint(code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if colour and text else text

    count = verdict.count
    lines = aligned(cells(count))
    rule = "-" * max(map(len, lines))
    out = [paint(BOLD, f"{printable(count.name)} ({count.kind})"), ""]
    out += [paint(BOLD, lines[0]), rule, *lines[1:-1], rule, paint(BOLD, lines[-1]), ""]
    out += [paint(GREEN if s.holds else RED, s.line) for s in shares(count, limits)]
    out += [paint(RED, line) for line in other_lines(verdict, limits)]
    out += [*unchecked_lines(verdict), *total_lines(count, clock_mhz)]
    if heading := changes_heading(verdict):
        out += ["", paint(BOLD, f"{heading}:" if verdict.changes else heading)]
        out += [f"  {change_line(change)}" for change in verdict.changes]
    return "\n".join([*out, ""])


def cells(count: Count) -> list[list[str]]:
    """Headings, a line for each layer, and totals; a network has a column of what is trained."""
    found = rows(count)
    trained = count.deployed is not None
    table = [["layer", "op", "output shape", *(["trained"] if trained else [])]]
    table[0] += [heading for heading, _, _ in COLUMNS] + ["receptive field"]
    table += [_cells(row, trained) for row in found]
    device = [row.deployed for row in found if row.deployed]
    last = ["total", "", "", *([f"{count.parameters:,}"] if trained else [])]
    for _, number, summed in COLUMNS:
        values = [number(row) for row in device]
        last.append(f"{sum(v for v in values if v is not None):,}" if summed else "")
    return [*table, [*last, ""]]


def _cells(row: Row, trained: bool) -> list[str]:
    shown = row.shown
    out = [printable(shown.name), printable(shown.op), shape_text(shown.output_shape)]
    if trained:
        out.append("" if row.trained is None else f"{row.trained.parameters:,}")
    if row.deployed is None:
        return [*out, "folded", *[""] * len(COLUMNS)]
    values = [number(row.deployed) for _, number, _ in COLUMNS]
    return [*out, *("-" if v is None else f"{v:,}" for v in values), _field(row.deployed)]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns to equal width: text to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            text.ljust(width) if column < TEXT_COLUMNS else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
