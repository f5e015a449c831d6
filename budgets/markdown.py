"""The report as GitHub Markdown that fits one comment of a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from budgets.limits import Limits
from budgets.lines import (
    change_line,
    changes_heading,
    label,
    printable,
    shares,
    total_lines,
    unchecked_lines,
    violation_line,
)
from budgets.table import TEXT_COLUMNS, cells
from budgets.verdict import Verdict

# GitHub refuses a comment of more than 65,536 characters.
COMMENT_CHARACTERS = 60_000
CHANGES_SHOWN = 40


def as_markdown(verdicts: Sequence[Verdict], limits: Limits, clock_mhz: float) -> str:
    """A table of subjects, what breaks a limit, what changed, and the layers folded away.

    Where that is too long for a comment, layers are left out, and last all but the first table.
    """
    head = "\n".join([*_subjects(verdicts, limits), ""])
    foot = [_folded(verdict, clock_mhz) for verdict in verdicts]
    for details in (foot, ["*Too many layers to list here.*\n"]):
        text = "\n".join([head, *details])
        if len(text) <= COMMENT_CHARACTERS:
            return text
    return head[:COMMENT_CHARACTERS].rpartition("\n")[0] + "\n"


def _subjects(verdicts: Sequence[Verdict], limits: Limits) -> list[str]:
    figures = list(limits.model)
    heading = ["subject", *(cell for f in figures for cell in (label(f), "of limit")), ""]
    lines = ["### Budgets", "", f"| {' | '.join(heading)} |"]
    lines.append("|---|" + "--:|--:|" * len(figures) + "---|")
    for verdict in verdicts:
        known = {s.figure: s for s in shares(verdict.count, limits)}
        used = [
            f"{known[f].value:,} | {known[f].percent:.1f} %" if f in known else "- | -"
            for f in figures
        ]
        word = "**over**" if verdict.violations else "within"
        lines.append(f"| {' | '.join([_code(verdict.count.name), *used, word])} |")
    most = ", ".join(f"{limits.model[figure]:,} {label(figure)}" for figure in figures)
    lines += ["", *([f"Limits: {most}.", ""] if figures else [])]
    lines += [f"- {_span(line)}" for v in verdicts for line in map(violation_line, v.violations)]
    for verdict in verdicts:
        lines += _changes(verdict)
    return lines


def _changes(verdict: Verdict) -> list[str]:
    heading = changes_heading(verdict, _code)
    if not verdict.changes:
        return ["", f"{_code(verdict.count.name)}: {heading}."] if heading else []
    more = len(verdict.changes) - CHANGES_SHOWN
    return [
        "",
        f"{_code(verdict.count.name)}: {heading}:",
        "",
        *(f"- {_span(change_line(change))}" for change in verdict.changes[:CHANGES_SHOWN]),
        *([f"- and {more:,} more"] if more > 0 else []),
    ]


def _folded(verdict: Verdict, clock_mhz: float) -> str:
    count = verdict.count
    head, *body, last = cells(count)
    aligned = ["---"] * TEXT_COLUMNS + ["--:"] * (len(head) - TEXT_COLUMNS)
    lines = [
        f"{_code(count.name)} ({count.kind})",
        "",
        "<details><summary>Layers</summary>",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join(aligned)}|",
    ]
    lines += [f"| {_code(r[0])} | {_code(r[1])} | {' | '.join(r[2:])} |" for r in body]
    lines += [f"| {' | '.join(f'**{text}**' if text else '' for text in last)} |", ""]
    notes = [*unchecked_lines(verdict), *total_lines(count, clock_mhz)]
    lines += [f"- {_span(line.strip())}" for line in notes]
    return "\n".join([*lines, "", "</details>", ""])


def _code(text: str) -> str:
    """A code span that holds inside a table cell, whatever the text."""
    return _span(printable(text))


def _span(line: str) -> str:
    """The same of a printable line, however long."""
    # An escaped pipe stays in its cell of a table, but not after a backslash of the name's own.
    return "`" + line.replace("`", "'").replace("|", "/") + "`"
