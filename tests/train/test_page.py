"""The page and the files of a report: self-contained, escaped, marked, whole or not at all."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.errors import InputError
from tests.train.reports import LABELS, metrics, report
from train.device import Fidelity, LayerFidelity
from train.page import as_html, confusion_figures, write_report
from train.report import MARK, WARNING, Report
from train.tables import as_markdown, as_text, tables

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}\u202e\x00")


class Page(HTMLParser):
    """Elements, attributes and text; refuses tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "br":
            self.cells[-1][-1] += "\n"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def page(of: Report) -> Page:
    return Page(as_html(of, {"float": b"float's picture", "int8": b"int8's picture"}))


def test_every_table_is_on_the_page() -> None:
    expected = [list(row) for t in tables(report()) for row in (t.head, *t.rows)]
    assert page(report()).cells == expected
    nudged = report(metrics={"float": metrics(nudge=0.002), "int8": metrics(nudge=0.1)})
    assert page(nudged).cells != expected


def test_the_facts_are_on_the_page() -> None:
    found = page(report())
    assert found.texts["h1"] == found.texts["title"] == ["Evaluation of report-125k"]
    names, values = found.texts["dt"], found.texts["dd"]
    assert dict(zip(names, values, strict=True)) == {
        "dataset": "ESC-10-Devices",
        "split": "fold 1",
        "selection": "the last epoch; the test split selected nothing",
        "seed": "3",
        "versions": "torch 2.13.0",
        "parameters": "125,330",
    }
    assert "1,000 resamples of 6 sources" in found.texts["li"][0]


def test_the_page_fetches_nothing() -> None:
    found = page(report())
    sources = [value for _, name, value in found.attributes if name in ("src", "href")]
    assert [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources] == [
        b"float's picture",
        b"int8's picture",
    ]
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    html = as_html(report(), {})
    assert "http:" not in html and "https:" not in html and "url(" not in html
    assert "default-src 'none'" in html and "@import" not in html


def test_light_and_dark_and_figures_to_the_right() -> None:
    style = "".join(page(report()).texts["style"])
    assert "prefers-color-scheme: dark" in style and "color-scheme: light dark" in style
    assert "tabular-nums" in style and "text-align: right" in style


def test_hostile_names_are_text() -> None:
    provenance = {HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}}
    hostile = report(
        title=HOSTILE[0],
        dataset=HOSTILE[1],
        split=HOSTILE[2],
        labels=HOSTILE,
        devices=HOSTILE,
        selection=HOSTILE[0],
        provenance=provenance,
    )
    html = as_html(hostile, {"float": b""})
    found = Page(html)
    assert "script" not in found.tags and found.tags.count("img") == 1
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert found.texts["h1"] == [HOSTILE[0]] and "{{ 7 * 7 }}" in html
    assert "\u202e" not in html and "\x00" not in html
    assert [cells[0] for cells in found.cells if "script" in cells[0]] == [HOSTILE[0]] * 2


def test_selection_on_the_reported_split_is_seen_in_every_rendering() -> None:
    flattered = report(selected_on_reported_split=True)
    html, text, markdown = as_html(flattered, {}), as_text(flattered), as_markdown(flattered)
    values = flattered.to_dict()
    assert Page(html).texts["p"] == [f"{MARK} {WARNING}"]
    assert WARNING in text and WARNING in markdown and values["warning"] == WARNING
    assert values["selected_on_reported_split"] is True
    assert f"int8{MARK}" in {cell.split("\n")[0] for row in Page(html).cells for cell in row}
    assert "selected on the reported split" in flattered.figure_title("int8")
    assert confusion_figures(flattered) != confusion_figures(report())


def test_nothing_is_marked_without_cause() -> None:
    for rendered in (as_html(report(), {}), as_text(report()), as_markdown(report())):
        assert "WARNING" not in rendered and f"int8{MARK}" not in rendered
    assert report().to_dict()["warning"] is None
    assert "selected on" not in report().figure_title("int8")


def test_the_files(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    figures = confusion_figures(report())
    assert files.pop("confusion-float.png") == figures["float"]
    assert files.pop("confusion-int8.png") == figures["int8"] != figures["float"]
    assert files.pop("report.html").decode() == as_html(report(), figures)
    assert files.pop("report.md").decode() == as_markdown(report())
    assert json.loads(files.pop("metrics.json")) == report().to_dict()
    assert files == {}
    links = re.findall(r"\]\((.*?)\)", as_markdown(report()))
    assert all((tmp_path / "out" / name).is_file() for name in links) and len(links) == 2


def test_the_same_report_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(report(), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_form_for_json() -> None:
    values = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert values["metrics"]["float"] == report().metrics["float"].to_dict(
        LABELS, ("A", "S1", "S4")
    )
    assert values["metrics"]["int8"]["device_accuracy"] == {"A": 0.75, "S1": None, "S4": 1.0}
    assert values["metrics"]["int8"]["class_log_loss"]["tram"] is None
    assert values["provenance"]["seed"] == 3 and "fidelity" not in values
    one = report(devices=("A",), metrics={"qat": metrics(devices=1)}).to_dict()
    assert not any(key.startswith("device") for key in one["metrics"]["qat"])


def test_fidelity_is_told_everywhere() -> None:
    fidelity = Fidelity(6, 1.0, 0.875, (LayerFidelity("head/conv", "CONV_2D", 0.01, 1),))
    told = report(fidelity=fidelity)
    assert told.to_dict()["fidelity"]["as_float"] == 0.875
    for line in fidelity.lines():
        assert line in as_text(told) and line in page(told).texts["li"]
        assert line in as_markdown(told).replace("\\_", "_")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(report(), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("model", ["../int8", "", "a b", "<b>", "INT8"])
def test_a_model_whose_name_makes_no_file_name_is_refused(model: str) -> None:
    with pytest.raises(InputError, match="model="):
        report(metrics={model: metrics()})


def test_names_must_fit_the_figures() -> None:
    for names in ({"labels": LABELS[:2]}, {"devices": ("A",)}):
        with pytest.raises(AssertionError, match="for every"):
            report(**names)


def test_the_confusion_matrix_is_that_of_the_model() -> None:
    assert metrics().confusion.tolist() == [[3, 0, 0], [1, 2, 0], [0, 0, 0]]
    changed = report()
    changed.metrics["float"].confusion[0] = np.array([2, 1, 0])
    assert confusion_figures(changed)["float"] != confusion_figures(report())["float"]
