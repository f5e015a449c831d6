"""The tables of an evaluation report, described once; as aligned text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from train.evaluate import Group
from train.report import MARK, Report, confusion_file, printable

# A figure of no clips.
ABSENT = "-"
# What the lines of the overall table are means over, and the prefix of these figures in `Metrics`.
OVER = {"clips": "clip", "classes": "macro", "windows": "window"}


@dataclass(frozen=True)
class Table:
    """Cells as text. ``left`` columns of names come first, ``averages`` rows of means last.

    A heading of two lines has the model above the figure.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    averages: int = 0


def tables(report: Report) -> list[Table]:
    """Every table of a report; the device-wise one where there is more than one device."""
    found = [overall(report), class_wise(report)]
    return [*found, device_wise(report)] if len(report.devices) > 1 else found


def overall(report: Report) -> Table:
    """A line for each model: means over clips, over classes, and over windows."""
    rows = []
    for over, prefix in OVER.items():
        for model, metrics in report.metrics.items():
            values = metrics.to_dict(report.labels)
            count = {
                "clips": metrics.clips,
                "classes": sum(group.clips > 0 for group in metrics.classes),
                "windows": metrics.windows,
            }
            accuracy, log_loss = f"{prefix}_accuracy", f"{prefix}_log_loss"
            sure = values.get("intervals", {})
            rows.append(
                (
                    over,
                    report.model_name(model),
                    f"{count[over]:,}",
                    _percent(values[accuracy]),
                    _range([_percent(end) for end in sure.get(accuracy, ())]),
                    _nats(values[log_loss]),
                    _range([_nats(end) for end in sure.get(log_loss, ())]),
                )
            )
    head = ("mean over", "model", "n", "acc. (%)", "95 % interval", "log-loss", "95 % interval")
    return Table("Overall accuracy and log-loss", head, tuple(rows), left=2)


def class_wise(report: Report) -> Table:
    """Table 1 of the report: accuracy and log-loss of the clips of each class."""
    groups = [metrics.classes for metrics in report.metrics.values()]
    rows = [_row((label,), [group[i] for group in groups]) for i, label in enumerate(report.labels)]
    rows.append(_row(("average",), [metrics.macro for metrics in report.metrics.values()]))
    title = "Table 1. Class-wise accuracy and log-loss, clips"
    return Table(title, _head(report, "class"), tuple(rows), averages=1)


def device_wise(report: Report) -> Table:
    """Table 2 of the report: accuracy and log-loss of the clips of each device.

    The averages are those of the devices' figures, heard in training (seen) or not.
    """
    measured = list(report.metrics.values())
    seen = measured[0].seen
    rows = [
        _row((name, "seen" if seen[i] else "unseen"), [metrics.devices[i] for metrics in measured])
        for i, name in enumerate(report.devices)
    ]
    devices = len(rows)
    if any(seen):
        rows.append(_row(("average", "seen"), [m.seen_devices for m in measured]))
    if not all(seen):
        rows.append(_row(("average", "unseen"), [m.unseen_devices for m in measured]))
    title = "Table 2. Device-wise accuracy and log-loss, clips"
    head = _head(report, "device", "in training")
    return Table(title, head, tuple(rows), left=2, averages=len(rows) - devices)


def _head(report: Report, *names: str) -> tuple[str, ...]:
    models = [report.model_name(model) for model in report.metrics]
    figures = [f"{model}\n{figure}" for model in models for figure in ("acc. (%)", "log-loss")]
    return (*names, "clips", *figures)


def _row(names: tuple[str, ...], groups: Sequence[Group]) -> tuple[str, ...]:
    """Names, clips (the same for every model), then two figures a model."""
    figures = [text for g in groups for text in (_percent(g.accuracy), _nats(g.log_loss))]
    return (*map(printable, names), f"{groups[0].clips:,}", *figures)


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _nats(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _range(ends: Sequence[str]) -> str:
    return " - ".join(ends) or ABSENT


def as_text(report: Report) -> str:
    """The whole report for a terminal."""
    lines = [printable(report.title), ""]
    lines += [f"{printable(name)}: {printable(value)}" for name, value in report.facts()]
    if report.warning:
        lines += ["", f"{MARK} {report.warning}"]
    for table in tables(report):
        lines += ["", table.title, "", table_text(table)]
    return "\n".join([*lines, "", *map(printable, report.notes()), ""])


def table_text(table: Table) -> str:
    """Aligned columns: names to the left, figures to the right."""
    heads = [cell.split("\n") for cell in table.head]
    depth = max(map(len, heads))
    above = list(zip(*([*[""] * (depth - len(head)), *head] for head in heads), strict=True))
    rows = [*above, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < table.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    last = len(lines) - table.averages
    averages = [rule, *lines[last:]] if table.averages else []
    return "\n".join([*lines[:depth], rule, *lines[depth:last], *averages])


def as_markdown(report: Report) -> str:
    """The whole report as Markdown, with the figures that `train.page.write_report` lays by it."""
    lines = [f"# {_escaped(report.title)}", ""]
    if report.warning:
        lines += [f"> **{_escaped(f'{MARK} {report.warning}')}**", ""]
    lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in report.facts()]
    for table in tables(report):
        lines += ["", f"## {_escaped(table.title)}", "", table_markdown(table)]
    lines += ["", "## Figure 2. Confusion matrices, clips", ""]
    lines += [f"![{name}]({confusion_file(name)})" for name in report.metrics]
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in report.notes()), ""])


def table_markdown(table: Table) -> str:
    """GitHub's tables; averages in bold."""
    columns = range(len(table.head))
    rule = ["---" if column < table.left else "--:" for column in columns]
    rows = [[_escaped(cell) for cell in row] for row in table.rows]
    for row in rows[len(rows) - table.averages :]:
        row[:] = [f"**{cell}**" for cell in row]
    head = [_escaped(cell.replace("\n", " ")) for cell in table.head]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _escaped(words: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", escape(printable(words), quote=False))
