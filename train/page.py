"""The evaluation report as one self-contained page, and all its files."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from firmware_ref.errors import write_whole
from train.figures import confusion_png
from train.report import MARK, Report, confusion_file, printable
from train.tables import as_markdown, tables

METRICS_FILE, MARKDOWN_FILE, PAGE_FILE = "metrics.json", "report.md", "report.html"


def as_html(report: Report, figures: Mapping[str, bytes]) -> str:
    """One page: nothing fetched, no script, every name escaped; ``figures`` are PNGs by model."""
    environment = Environment(
        loader=PackageLoader("train"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        mark=MARK,
        tables=tables(report),
        figures={
            model: "data:image/png;base64," + base64.b64encode(picture).decode()
            for model, picture in figures.items()
        },
    )


def confusion_figures(report: Report) -> dict[str, bytes]:
    """The confusion matrix of each model as a PNG."""
    return {
        model: confusion_png(
            metrics.confusion,
            report.labels,
            report.figure_title(model),
        )
        for model, metrics in report.metrics.items()
    }


def write_report(report: Report, folder: Path) -> None:
    """Write metrics.json, report.md, report.html and confusion-<model>.png, each whole or not."""
    figures = confusion_figures(report)
    files = {confusion_file(model): picture for model, picture in figures.items()}
    files[MARKDOWN_FILE] = as_markdown(report).encode()
    files[PAGE_FILE] = as_html(report, figures).encode()
    values = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    files[METRICS_FILE] = f"{values}\n".encode()
    for name, data in files.items():
        write_whole(folder / name, data)
