"""REPORT.md and REPORT.html: the same facts, those of the manifest, whatever the labels."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convert.bundle.contents import Bundle, bundle
from convert.bundle.facts import Facts
from convert.bundle.render import c_float, c_string, coded, numbers
from tests.convert.bundles import HOSTILE, facts_of, hostile_bundle
from tests.convert.members import Converted

TITLES = [
    "What it is",
    "What it costs",
    "What it equals, bit for bit",
    "What it scores",
    "Into your firmware",
    "The windows of the self-test",
    "The labels",
    "The files",
]


@pytest.fixture(scope="module")
def facts(small: Converted) -> Facts:
    return facts_of(small.checkpoint)


@pytest.fixture(scope="module", params=["c99", "tflite-micro"])
def made(request: pytest.FixtureRequest, facts: Facts) -> Bundle:
    return bundle(facts, request.param)


class Page(HTMLParser):
    """The cells of a page's tables by heading, its list items, and every tag and attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.items: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self._inside.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.tables.setdefault(self.headings[-1], []).append([])
        if tag in ("td", "th"):
            self.tables[self.headings[-1]][-1].append("")
        if tag == "li":
            self.items.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "h2":
            self.headings[-1] += data
        if inside in ("td", "th"):
            self.tables[self.headings[-1]][-1][-1] += data
        if "li" in self._inside:
            self.items[-1] += data


def page(made: Bundle) -> Page:
    return Page(made.files["REPORT.html"].decode())


def markdown(made: Bundle) -> Page:
    """REPORT.md as a reader of GitHub's tables shows it."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    return Page(reader.render(made.files["REPORT.md"].decode()))


def test_both_forms_say_the_same(made: Bundle) -> None:
    html, text = page(made), markdown(made)
    assert html.headings == text.headings == TITLES
    assert html.items == text.items and len(html.items) == 5
    for title, rows in html.tables.items():
        # Markdown has a heading to every table, an empty one where a page has none.
        assert [row for row in text.tables[title] if any(row)] == rows, title


def test_it_says_what_the_manifest_says(made: Bundle) -> None:
    values, tables = made.manifest, page(made).tables
    what, costs = dict(tables["What it is"]), dict(tables["What it costs"])
    model = values["model"]
    assert what["target"] == values["target"] and what["SHA-256"] == model["sha256"]
    assert what["model.tflite"] == f"{model['bytes']:,} bytes, CRC-32 {model['crc32']}"
    assert what["operators"] == ", ".join(model["operators"])
    assert costs["parameters"] == f"{model['parameters']:,}"
    assert costs["multiply-accumulates, one second"] == f"{model['multiply_accumulates']:,}"
    for kind, key in (("RAM", "ram_bytes"), ("flash", "flash_bytes")):
        assert costs[f"{kind}, together"] == f"{sum(values[key].values()):,}"
        for name, size in values[key].items():
            assert costs[f"{kind}: {name.replace('_', ' ')}"] == f"{size:,}"
    files = [row[0] for row in tables["The files"][1:]]
    assert len(files) == len(set(files)) and set(files) == set(made.files)
    assert tables["The labels"][1:] == [[str(n), x] for n, x in enumerate(values["labels"])]
    assert {row[0] for row in tables["The windows of the self-test"][1:]} == {
        golden["name"] for golden in values["goldens"]
    }


def test_it_says_what_equals_what(made: Bundle) -> None:
    rows = page(made).tables["What it equals, bit for bit"][1:]
    for oracle in made.manifest["verified"]["oracles"]:
        words = f"{oracle['name']} {oracle['version']}, {oracle['kernels']}"
        (row,) = (row for row in rows if row[1] == words)
        assert f"{oracle['tensors']} tensors, {oracle['values']:,} values, 0 differ" in row[2]
    assert any(row[0] == "src/tinyscene_frontend.c" for row in rows)
    text = made.files["REPORT.md"].decode()
    assert "Not equal:" in text and "XNNPACK" in text


def test_what_is_named_is_there(made: Bundle) -> None:
    """Every function, macro and file that the steps name is in the bundle's sources."""
    sources = "".join(
        content.decode()
        for name, content in made.files.items()
        if name.endswith((".c", ".h", ".cc"))
    )
    steps = re.findall(r"^\d\. .*$", made.files["REPORT.md"].decode(), re.MULTILINE)
    names = {name for step in steps for name in re.findall(r"`(?:\w+ )?(\w+)[`(]", step)}
    assert {"tinyscene_self_test", "tinyscene_frontend_push", "TINYSCENE_LABELS"} <= names
    outside = {"add_subdirectory", "TFLM_DIR", "tflm", "tinyscene", "PASS", "Invoke"}
    assert {name for name in names - outside if not re.search(rf"\b{name}\b", sources)} == set()


def test_the_page_fetches_nothing_and_runs_nothing(made: Bundle) -> None:
    text = made.files["REPORT.html"].decode()
    found = page(made)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "a"}
    assert not any(name.startswith("on") for _, names in found.tags for name in names)
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert ("html", {"lang": "en"}) in found.tags


@pytest.mark.parametrize("target", ["c99", "tflite-micro"])
def test_hostile_labels_stand_in_both_as_they_are(tmp_path: Path, target: str) -> None:
    made = hostile_bundle(tmp_path, target)
    html, text = page(made), markdown(made)
    for found in (html, text):
        tags = {tag for tag, _ in found.tags}
        assert not tags & {"script", "strong", "a", "s", "b"}
        rows = found.tables["The labels"][1:]
        # Markdown strips spaces at the ends of a cell.
        assert [row[1].strip() for row in rows] == [label.strip() for label in HOSTILE]
        assert found.headings == TITLES
    assert made.manifest["labels"] == list(HOSTILE)
    for name in made.files:
        if name.startswith(("CMake", "zephyr", "library", "examples", "main")):
            text_of = made.files[name].decode()
            assert not any(label.strip() in text_of for label in HOSTILE), name


def test_strings_and_numbers_in_c() -> None:
    assert c_string('a"\\?\n1') == '"a\\"\\\\\\?\\0121"'
    assert c_string("é7") == '"\\303\\2517"'
    assert c_string("\udc80") == '"\\\\udc80"'  # a byte of a file's name that is no text
    assert c_float(0.1) == "0.1f" and c_float(1e-10) == "1e-10f"
    assert numbers([-32768] * 13).count("\n") == 1
    assert max(map(len, numbers([-32768] * 500).splitlines())) <= 100
    assert coded("`<a>` & b") == "<code>&lt;a&gt;</code> &amp; b"
