"""The same counts as an aligned table, as Markdown for a pull request, and as JSON.

`budgets.page` makes the HTML.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from budgets.count import CONVENTIONS, Count
from budgets.limits import Limits, Violation

SCHEMA_VERSION = 1
# GitHub refuses a comment of more than 65,536 characters.
COMMENT_CHARACTERS = 60_000
NAME_CHARACTERS = 100
# Why the weights are more than those of the bundle's manifest, which counts what the file holds.
SIZES_NOTE = "a constant counts at each use; the file stores it once"

RED, GREEN, BOLD, RESET = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Verdict:
    """One subject's count with the limits it breaks."""

    count: Count
    violations: tuple[Violation, ...]


@dataclass(frozen=True)
class Share:
    """How much of one numeric limit a subject uses."""

    what: str
    value: int
    allowed: int

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.allowed

    @property
    def percent(self) -> float:
        """Value as a percentage of the limit."""
        return 100 * self.value / self.allowed

    @property
    def line(self) -> str:
        """For instance ``125,330 of 128,000 parameters, 97.9 %``."""
        over = "" if self.holds else f", over by {self.value - self.allowed:,}"
        return f"{self.value:,} of {self.allowed:,} {self.what}, {self.percent:.1f} %{over}"


def shares(count: Count, limits: Limits) -> tuple[Share, ...]:
    """The use of each numeric limit."""
    return (
        Share("parameters", count.parameters, limits.parameters),
        Share("MACs", count.macs, limits.multiply_accumulates),
    )


def printable(text: str) -> str:
    """``text`` without control or non-ASCII characters, shortened: safe for any terminal."""
    if not (text.isascii() and text.isprintable()):
        text = ascii(text)[1:-1]
    return text if len(text) <= NAME_CHARACTERS else text[: NAME_CHARACTERS - 3] + "..."


def shape_text(shape: Iterable[int]) -> str:
    """For instance ``40 x 64 x 22``."""
    return " x ".join(str(size) for size in shape)


def total_lines(count: Count) -> list[str]:
    """A line for the bytes of a flatbuffer, and one for each convention's totals."""
    parts = ", ".join(f"{what} {size:,}" for what, size in count.sizes.items())
    lines = [f"bytes: {parts} ({SIZES_NOTE})"] if parts else []
    if count.instructions:
        cores = ", ".join(
            f"{total / 1e6:.1f} M on {core}" for core, total in count.instructions.items()
        )
        without = f", without {', '.join(count.not_costed)}" if count.not_costed else ""
        lines.append(f"instructions, estimated for TFLM with CMSIS-NN: {cores}{without}")
    return lines + [
        f"{name}: {total.parameters:,} parameters, {total.macs:,} MACs ({CONVENTIONS[name]})"
        for name, total in count.conventions.items()
    ]


def as_table(verdicts: Sequence[Verdict], limits: Limits, colour: bool = False) -> str:
    """Aligned text; ``colour`` adds ANSI colours."""
    return "\n".join(_table(verdict, limits, colour) for verdict in verdicts)


def _table(verdict: Verdict, limits: Limits, colour: bool) -> str:
    def paint(code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if colour else text

    count = verdict.count
    rows = [["layer", "op", "output shape", "parameters", "MACs"]]
    for row in count.layers:
        name, op, shape = printable(row.name), printable(row.op), shape_text(row.output_shape)
        rows.append([name, op, shape, f"{row.parameters:,}", f"{row.macs:,}"])
    rows.append(["total", "", "", f"{count.parameters:,}", f"{count.macs:,}"])
    if count.instructions:
        core = next(iter(count.instructions))
        column = [row.instructions.get(core) for row in count.layers]
        texts = ["-" if value is None else f"{value:,}" for value in column]
        for cells, text in zip(
            rows, [f"{core} instr.", *texts, f"{count.instructions[core]:,}"], strict=True
        ):
            cells.append(text)
    lines = _aligned(rows)
    rule = "-" * max(map(len, lines))
    out = [paint(BOLD, f"{printable(count.name)} ({count.kind})"), ""]
    out += [paint(BOLD, lines[0]), rule, *lines[1:-1], rule, paint(BOLD, lines[-1]), ""]
    for share in shares(count, limits):
        out.append(paint(GREEN if share.holds else RED, share.line))
    out += [paint(RED, line) for line in named_lines(verdict)]
    return "\n".join([*out, *total_lines(count), ""])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns to equal width: the first three to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column < 3 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def violation_line(violation: Violation) -> str:
    """The violation's message with the subject and every name made printable."""
    return dataclasses.replace(
        violation,
        subject=printable(violation.subject),
        names=tuple(map(printable, violation.names)),
    ).message


def named_lines(verdict: Verdict) -> list[str]:
    """Lines for the violations that no `Share` shows: those that name tensors or operators."""
    return [violation_line(violation) for violation in verdict.violations if violation.names]


def as_markdown(verdicts: Sequence[Verdict], limits: Limits) -> str:
    """GitHub Markdown that fits one comment: layers are folded away, or left out if too many."""
    text = _markdown(verdicts, limits, _folded_layers)
    if len(text) > COMMENT_CHARACTERS:
        text = _markdown(verdicts, limits, lambda count: "*Too many layers to list here.*\n")
    return text


def _markdown(verdicts: Sequence[Verdict], limits: Limits, listing: Callable[[Count], str]) -> str:
    lines = [
        "### Budgets",
        "",
        "| subject | parameters | of limit | MACs | of limit | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for verdict in verdicts:
        used = [f"{s.value:,} | {s.percent:.1f} %" for s in shares(verdict.count, limits)]
        word = "**over**" if verdict.violations else "within"
        lines.append(f"| {_code(verdict.count.name)} | {' | '.join(used)} | {word} |")
    lines += [
        "",
        f"Limits: {limits.parameters:,} parameters, {limits.multiply_accumulates:,} MACs.",
        "",
    ]
    lines += [f"- {_code(line)}" for v in verdicts for line in map(violation_line, v.violations)]
    return "\n".join([*lines, "", *(listing(verdict.count) for verdict in verdicts)])


def _folded_layers(count: Count) -> str:
    lines = [
        f"{_code(count.name)} ({count.kind})",
        "",
        "<details><summary>Layers</summary>",
        "",
        "| layer | op | output shape | parameters | MACs |",
        "|---|---|---|--:|--:|",
    ]
    lines += [
        f"| {_code(row.name)} | {_code(row.op)} | {shape_text(row.output_shape)} "
        f"| {row.parameters:,} | {row.macs:,} |"
        for row in count.layers
    ]
    lines += [f"| **total** | | | **{count.parameters:,}** | **{count.macs:,}** |", ""]
    lines += [f"- {line}" for line in total_lines(count)]
    return "\n".join([*lines, "", "</details>", ""])


def _code(text: str) -> str:
    """A code span that holds inside a table cell, whatever the text."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"


def as_json(verdicts: Sequence[Verdict], limits: Limits) -> str:
    """One JSON object; ``schema_version`` changes when a key changes its meaning or goes away."""
    document = {
        "ok": not any(verdict.violations for verdict in verdicts),
        "schema_version": SCHEMA_VERSION,
        "limits": dataclasses.asdict(limits),
        "subjects": [_json_subject(verdict) for verdict in verdicts],
    }
    return json.dumps(document, indent=2) + "\n"


def _json_subject(verdict: Verdict) -> dict[str, Any]:
    count = verdict.count
    return {
        "name": count.name,
        "kind": count.kind,
        "parameters": count.parameters,
        "macs": count.macs,
        "conventions": {
            name: {"definition": CONVENTIONS[name], **dataclasses.asdict(total)}
            for name, total in count.conventions.items()
        },
        "bytes": dict(count.sizes),
        "instructions": dict(count.instructions),
        "violations": [
            {**dataclasses.asdict(violation), "message": violation.message}
            for violation in verdict.violations
        ],
        "layers": [dataclasses.asdict(row) for row in count.layers],
    }
