"""Figure 2 of the report: the confusion matrix of the clips, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.report import printable

CELL_INCHES = 0.62
DOTS_PER_INCH = 130
LABEL_CHARACTERS, TITLE_CHARACTERS = 40, 80
# So far beyond 100 % does the scale of blues go on that black is read on all that is drawn.
DARKEST_PERCENT = 180
# The last character of Latin Extended-B; the font has no more than parts of what follows.
LAST_CHARACTER = "\u024f"


def row_percentages(confusion: np.ndarray) -> np.ndarray:
    """Shares of each true class in %, (classes, classes) float64; 0 where it has no clips."""
    return 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def confusion_png(confusion: np.ndarray, labels: Sequence[str], title: str) -> bytes:
    """A PNG of confusion[true, predicted], (classes, classes) integer counts.

    Each cell has the percentage of its row above the count, and nothing where that is 0. The same
    input gives the same bytes. ``title`` may have several lines.
    """
    percentages = row_percentages(confusion)
    size = CELL_INCHES * len(labels)
    figure = Figure(figsize=(size, size), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(percentages, cmap="Blues", vmin=0, vmax=DARKEST_PERCENT)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            words = f"{percentages[row, column]:.1f}\n{count:,}"
            axes.text(column, row, words, ha="center", va="center", fontsize=8)
    names, places = [_drawable(label, LABEL_CHARACTERS) for label in labels], range(len(labels))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    lines = [_drawable(line, TITLE_CHARACTERS) for line in title.split("\n")]
    axes.set_title("\n".join([*lines, "% of the true class, and clips"]), parse_math=False)
    picture = io.BytesIO()
    # The canvas grows around all labels, and carries no version.
    figure.savefig(
        picture, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None}
    )
    return picture.getvalue()


def _drawable(text: str, most: int) -> str:
    """``text`` in characters that matplotlib's own font has, at ``most`` so many."""
    text = printable(text) if max(text, default="") <= LAST_CHARACTER else ascii(text)[1:-1]
    return text if len(text) <= most else f"{text[: most - 3]}..."
