"""Figure 2: percentages by hand, the same bytes every time, nothing cut off."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import matplotlib.image
import numpy as np
import pytest

from train.figures import confusion_png, row_percentages

CONFUSION = np.array([[3, 1, 0], [0, 8, 2], [0, 0, 0]])
LABELS = ("airport", "metro_station", "tram")


def chunks(png: bytes) -> list[bytes]:
    """The kinds of a PNG's chunks."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        found.append(png[place + 4 : place + 8])
        place += size + 12
    return found


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) in [0, 1]."""
    return matplotlib.image.imread(io.BytesIO(png))[:, :, :3]


def test_percentages_by_hand() -> None:
    np.testing.assert_allclose(row_percentages(CONFUSION), [[75, 25, 0], [0, 80, 20], [0, 0, 0]])


def test_the_same_input_gives_the_same_bytes() -> None:
    png = confusion_png(CONFUSION, LABELS, "int8\nESC-10, fold 1")
    assert png == confusion_png(CONFUSION.copy(), list(LABELS), "int8\nESC-10, fold 1")
    # No time and no version in it.
    assert set(chunks(png)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (2, 1)])
def test_one_nudged_count_shows(place: tuple[int, int]) -> None:
    nudged = CONFUSION.copy()
    nudged[place] += 1
    assert confusion_png(nudged, LABELS, "int8") != confusion_png(CONFUSION, LABELS, "int8")


@pytest.mark.parametrize("labels", [("a", "b", "c"), ("a" * 30, "b" * 300, "street_pedestrian")])
def test_nothing_is_cut_off(labels: Sequence[str]) -> None:
    found = pixels(confusion_png(CONFUSION, labels, "a title much longer than the picture is wide"))
    for edge in (found[:5], found[-5:], found[:, :5], found[:, -5:]):
        assert (edge == 1).all()


def test_longer_labels_make_the_picture_larger() -> None:
    short = pixels(confusion_png(CONFUSION, ("a", "b", "c"), "int8")).shape
    long = pixels(confusion_png(CONFUSION, ("a", "b" * 30, "c"), "int8")).shape
    assert long[0] > short[0] and long[1] > short[1]


def test_the_diagonal_is_where_true_meets_predicted() -> None:
    """Rows are true classes from the top, columns predicted ones from the left."""
    confusion = np.zeros((3, 3), np.int64)
    confusion[0, 2] = 5
    found = pixels(confusion_png(confusion, ("a", "b", "c"), "int8"))
    blue = (found[:, :, 2] - found[:, :, 0]) > 0.3
    rows, columns = np.nonzero(blue)
    height, width = blue.shape
    assert rows.mean() < height / 2 and columns.mean() > width / 2


@pytest.mark.parametrize(
    "label", ["$\\frac{a$", "地铁站", "Straßenbahn", "a\x00\x1b[31m\n", "\u202ereversed", ""]
)
def test_any_label_is_drawn_without_a_warning(label: str) -> None:
    png = confusion_png(CONFUSION, (label, "b", "c"), f"{label}\n{label}")
    assert png != confusion_png(CONFUSION, ("other", "b", "c"), "other")


def test_one_class_and_many() -> None:
    assert pixels(confusion_png(np.array([[7]]), ("a",), "int8")).size
    many = np.diag(np.arange(30) * 1000)
    assert pixels(confusion_png(many, [f"class {i}" for i in range(30)], "int8")).size
