from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from budgets import cost
from budgets.baseline import Change
from budgets.charts import MOST_STEPS
from budgets.check import check, unchecked
from budgets.count import Count, LayerCount, Total, count_graph, count_network
from budgets.deployed import deployed_graph
from budgets.limits import LayerLimit, Limits, load_limits
from budgets.lines import FIRST_CORE, printable, shares, total_lines
from budgets.page import LINES_LISTED, LINES_SHOWN, as_html
from budgets.table import cells
from budgets.verdict import Verdict
from firmware_ref.arch import preset
from firmware_ref.graph import MAX_OPERATORS

LIMITS = load_limits()
CLOCK_MHZ = 100.0
VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """What a page holds, and that every opened tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.table: list[list[str]] = []  # of all tables, line by line
        self.titles: dict[str, list[str]] = {}  # of the elements of a drawing, by its label
        self.items: list[str] = []
        self.label = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "svg":
            self.label = self.elements[-1][1]["aria-label"]
            self.titles[self.label] = []
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
        elif tag == "li":
            self.items.append("")
        elif tag == "title" and self.label:
            self.titles[self.label].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # elsewhere the slash closes nothing
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "svg":
            self.label = ""

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data
        elif "li" in self.open:
            self.items[-1] += data
        elif self.label and self.open[-1] == "title":
            self.titles[self.label][-1] += data

    def drawing(self, start: str) -> list[str]:
        """Titles within the one drawing whose label starts so."""
        (found,) = (titles for label, titles in self.titles.items() if label.startswith(start))
        return found

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def judge(count: Count, limits: Limits = LIMITS, changes: Sequence[Change] = ()) -> Verdict:
    violations, missing = check(count, limits), unchecked(count, limits)
    baseline = count.name if changes else None
    return Verdict(count, tuple(violations), tuple(missing), tuple(changes), baseline)


def page_of(count: Count, limits: Limits = LIMITS, changes: Sequence[Change] = ()) -> str:
    return as_html([judge(count, limits, changes)], limits, CLOCK_MHZ)


@pytest.fixture(scope="module")
def deployed() -> Count:
    """The shipped architecture as a device graph."""
    return count_graph(deployed_graph(preset("report-125k")), "model.tflite", 176_000)


@pytest.fixture
def hostile() -> Count:
    """A flatbuffer whose names try every markup and a terminal escape."""
    name = '</title></style><script>alert("1")</script>\x1b[31m\n\u202e\udc80' + "x" * 500
    row = LayerCount(
        *(name, "CUSTOM:<b>", (1, 2), 3, 4), live_bytes=9, instructions={FIRST_CORE: 5}
    )
    return Count(
        name=name,
        kind="tflite",
        layers=(row, replace(row, name="W" * 400), replace(row, name="\u5c42" * 99)),
        conventions={"plain": Total(3, 4), "nessi_tflite": Total(3, 4)},
        sizes={"weights": 3, "biases": 0, "file": 9},
        peak_bytes=9,
        peak_layer=name,
        not_costed=("CUSTOM:<b>",),
        not_int8=(f"{name}: float32",),
        not_counted=(f"{name}: CUSTOM",),
    )


@pytest.fixture
def empty() -> Count:
    return Count("empty.tflite", "tflite", (), {"plain": Total(0, 0)}, {"weights": 0})


@pytest.fixture
def many(deployed: Count) -> Count:
    """As many layers as a flatbuffer may have."""
    return replace(deployed, layers=(deployed.layers * 100)[:MAX_OPERATORS])


def test_whole_and_fetches_nothing(deployed: Count) -> None:
    text = page_of(deployed)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "use", "form"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "srcset", "href", "xlink:href"}
    assert not re.search(r"url\(|https?:|@import|//", text)
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "width=device-width, initial-scale=1" in page.attributes("content")
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) == 4
    assert all(a["role"] == "img" and a["aria-label"] and a["viewbox"] for a in drawings)
    assert len(text.encode()) < 400_000


def test_links_lead_to_subjects_of_the_same_page(deployed: Count) -> None:
    page = Page(as_html([judge(deployed)] * 3, LIMITS, CLOCK_MHZ))
    links = page.attributes("href")
    assert links == [f"#{name}" for name in page.attributes("id")]
    assert len(links) == 3
    assert page.items[:3] == ["model.tflite within the limits"] * 3


def test_bars_of_the_limits(deployed: Count) -> None:
    within, macs = shares(deployed, LIMITS)
    text = page_of(deployed)
    assert f"{within.value:,} of 128,000 parameters, {within.percent:.1f}&nbsp;%" in text
    assert Page(text).attributes("style")[:2] == [
        f"width:{within.percent:.2f}%",
        f"width:{macs.percent:.2f}%",
    ]
    assert 'class="over"' not in text

    text = page_of(count_network(preset("qti-c80")))
    assert "314,650 of 128,000 parameters, 245.8&nbsp;%, over by 186,650" in text
    assert Page(text).attributes("style")[:2] == ["width:100.00%", f"left:{12_800 / 314.65:.2f}%"]
    assert text.count('<p class="over">') == 2
    assert "breaks 2 limits" in text


def test_charts_show_the_count(deployed: Count) -> None:
    page = Page(page_of(deployed))
    values: dict[str, Callable[[LayerCount], int]] = {
        "parameters": lambda row: row.parameters,
        "MACs": lambda row: row.macs,
        "instructions": lambda row: row.instructions[FIRST_CORE],
    }
    for unit, value in values.items():
        total = sum(map(value, deployed.layers))
        found = page.drawing(f"{unit} by layer, {total:,} in total")
        *bars, others = (re.fullmatch(rf"(.*): ([\d,]+) {unit}, [\d.]+ %", t) for t in found)
        shown = [(bar[1], int(bar[2].replace(",", ""))) for bar in bars if bar]
        layers = [(row.name, value(row)) for row in deployed.layers if value(row)]
        assert shown == sorted(layers, key=lambda layer: -layer[1])[: len(shown)]
        assert others and others[1] == f"{len(layers) - len(shown)} others"
        assert int(others[2].replace(",", "")) == total - sum(number for _, number in shown)

    label = f"activations alive in {len(deployed.layers)} steps, at most {deployed.peak_bytes:,} "
    assert page.drawing(label + f"bytes, in {deployed.peak_layer}") == [
        f"step {step}, {row.name}: {row.live_bytes:,} bytes"
        for step, row in enumerate(deployed.layers, 1)
    ]


def test_tables_show_the_count(deployed: Count) -> None:
    page = Page(as_html([judge(deployed)], LIMITS, 64.0))
    assert page.table[0] == ["core", "instructions", "error", "at 64 MHz"]
    for line, (name, core) in zip(page.table[1:5], cost.cores().items(), strict=True):
        instructions = deployed.instructions[name]
        time_ms = f"{core.milliseconds(instructions, 64.0):,.0f} ms"
        error = "not measured, as cortex-m4" if name == "cortex-m7" else "up to 2 %"
        assert line == [name, f"{instructions:,}", error, time_ms]
    assert page.table[5:] == cells(deployed)
    assert page.items == [line.strip() for line in total_lines(deployed, 64.0)]
    assert "without some" not in page_of(deployed)
    assert "without some" in page_of(replace(deployed, not_costed=("SIN",)))


def test_a_network_shows_what_is_trained_and_deployed() -> None:
    count = count_network(preset("report-125k"))
    text = page_of(count)
    page = Page(text)
    assert page.table[5:] == cells(count)
    assert page.drawing("parameters by layer, 125,330 in total")
    assert page.drawing("MACs by layer, 8,637,000 in total")
    assert len(page.drawing("activations alive")) == len(count.on_device.layers)
    assert text.count("by layer, as trained") == 2


@pytest.mark.parametrize("figure", ["parameters", "macs", "live_bytes", "reductions"])
def test_a_nudged_value_is_seen(deployed: Count, figure: str) -> None:
    rows = list(deployed.layers)
    place = next(i for i, row in enumerate(rows) if row.name == "head.conv")
    rows[place] = replace(rows[place], **{figure: getattr(rows[place], figure) + 1})
    before, after = Page(page_of(deployed)), Page(page_of(replace(deployed, layers=tuple(rows))))
    differing = [a[0] for a, b in zip(before.table, after.table, strict=True) if a != b]
    assert differing == (["head.conv"] if figure == "live_bytes" else ["head.conv", "total"])
    assert (before.titles == after.titles) == (figure == "reductions")


def test_the_limit_of_memory_is_drawn(deployed: Count) -> None:
    most = deployed.peak_bytes - 1
    limits = replace(LIMITS, model={**LIMITS.model, "peak_activation_bytes": most})
    text = page_of(deployed, limits)
    assert f">limit {most:,}</text>" in text
    assert 'class="peak over"' in text
    assert f"; the limit is {most:,}" in text
    assert f"{most + 1:,} of {most:,} bytes of activations at once" in text
    assert "limit" not in page_of(deployed).partition("<svg")[2].replace("limits", "")


def test_a_layer_over_its_limit_is_red(deployed: Count) -> None:
    limits = replace(LIMITS, layers=(LayerLimit("head.conv", {"parameters": 1}),))
    text = page_of(deployed, limits)
    assert '<th scope="row" class="over">head.<wbr>conv</th>' in text
    assert text.count('<th scope="row" class="over">') == 1
    assert "model.tflite: head.conv: parameters=" in Page(text).items[0]


def test_limits_without_a_figure_are_named() -> None:
    limits = replace(LIMITS, model={**LIMITS.model, "flatbuffer_bytes": 1})
    text = page_of(count_network(preset("report-125k"), kind="preset"), limits)
    assert "not checked, not known of a preset: flatbuffer_bytes" in text


def test_long_lists_of_changes_are_folded(deployed: Count) -> None:
    changes = [Change(f"a<{place}>", "macs", 1_000, place) for place in range(LINES_LISTED + 5)]
    few = page_of(deployed, changes=changes[:LINES_SHOWN])
    assert "<details>" not in few
    assert Page(few).items[1] == "a<1>: macs 1,000 -> 1 (-999, -99.9 %)"
    assert "<summary>1 more</summary>" in page_of(deployed, changes=changes[: LINES_SHOWN + 1])
    page = Page(page_of(deployed, changes=changes))
    assert page.items[LINES_LISTED - 1].startswith(f"a<{LINES_LISTED - 1}>")
    assert page.items[LINES_LISTED] == "and 5 more"
    assert "<h3>Changed since the baseline</h3>" in few
    assert "since the baseline" not in page_of(deployed)


def test_it_says_that_nothing_changed_and_since_which_baseline(deployed: Count) -> None:
    same = replace(judge(deployed), baseline=deployed.name)
    text = as_html([same], LIMITS, CLOCK_MHZ)
    assert "<h3>Nothing changed since the baseline</h3>\n<p>No figure differs.</p>" in text
    Page(text)
    other = replace(same, baseline="<b>/m.tflite")
    text = as_html([other], LIMITS, CLOCK_MHZ)
    assert "<h3>Nothing changed since the baseline of &lt;b&gt;/m.tflite</h3>" in text
    Page(text)


def test_hostile_names_do_no_harm(hostile: Count) -> None:
    text = page_of(hostile, changes=[Change(hostile.name, "<i>", None, 1)])
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "b", "i"}
    assert text.isascii() or set(text) - set(map(chr, range(128))) == {"…"}
    assert "\x1b" not in text
    assert page.table[1][:2] == [printable(hostile.name), "CUSTOM:<b>"]
    assert f"{printable(hostile.name)}: <i> none -> 1" in page.items


def test_a_subject_without_layers(empty: Count) -> None:
    text = page_of(empty)
    page = Page(text)
    assert not page.titles
    assert page.table == cells(empty)
    assert "0 of 128,000 parameters" in text
    assert 'class="pair"' not in text


def test_ten_thousand_layers(many: Count) -> None:
    limits = replace(LIMITS, layers=(LayerLimit("*", {"live_bytes": 1}),))
    verdict, started = judge(many, limits), time.process_time()
    text = as_html([verdict], limits, CLOCK_MHZ)
    assert time.process_time() - started < 3
    assert len(text.encode()) < 10_000_000
    page = Page(text)
    assert len(page.drawing(f"activations alive in {MAX_OPERATORS:,} steps")) <= MOST_STEPS
    assert len(page.table) == MAX_OPERATORS + 2 + 5
