from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from budgets.count import Count, LayerCount, Total, count_network
from budgets.limits import Limits, check, load_limits
from budgets.page import as_html
from budgets.report import (
    COMMENT_CHARACTERS,
    Verdict,
    as_json,
    as_markdown,
    as_table,
    printable,
    shares,
)
from firmware_ref.arch import preset

LIMITS = load_limits()


def judge(count: Count, limits: Limits = LIMITS) -> Verdict:
    return Verdict(count, tuple(check(count, limits)))


@pytest.fixture
def hostile() -> Count:
    """A flatbuffer whose names try every markup and a terminal escape."""
    name = '<script>alert("1")</script>|`\x1b[31m\n\u202e\udc80' + "x" * 500
    row = LayerCount(name, "CUSTOM:<b>|", (1, 2), 3, 4)
    return Count(
        name=name,
        kind="tflite",
        layers=(row,),
        conventions={"plain": Total(3, 4), "nessi_tflite": Total(3, 4)},
        sizes={"weights": 3, "biases": 0, "file": 9},
        not_int8=(f"{name}: float32",),
        not_counted=(f"{name}: CUSTOM",),
    )


def test_share_line_is_the_one_people_read() -> None:
    parameters, macs = shares(count_network(preset("report-125k")), LIMITS)
    assert parameters.line == "125,330 of 128,000 parameters, 97.9 %"
    assert macs.line == "8,637,000 of 30,000,000 MACs, 28.8 %"
    assert parameters.holds
    over, _ = shares(count_network(preset("qti-c80")), LIMITS)
    assert not over.holds
    assert over.line == "314,650 of 128,000 parameters, 245.8 %, over by 186,650"


def test_table_is_aligned_and_totalled() -> None:
    count = count_network(preset("report-125k"))
    lines = as_table([judge(count)], LIMITS).splitlines()
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"-"}]
    rows = lines[rules[0] - 1 : rules[0]] + lines[rules[0] + 1 : rules[1]] + [lines[rules[1] + 1]]
    assert len(rows) == len(count.layers) + 2
    assert {len(row) for row in rows} == {len(lines[rules[0]])}
    assert rows[-1].split() == ["total", "125,330", "8,637,000"]
    assert "125,330 of 128,000 parameters, 97.9 %" in lines
    assert any(line.startswith("torchinfo: 125,330 parameters, 8,915,378 MACs") for line in lines)


def test_table_has_colour_only_when_asked() -> None:
    verdict = judge(count_network(preset("qti-c80")))
    assert "\x1b" not in as_table([verdict], LIMITS)
    assert "\x1b[31m314,650 of" in as_table([verdict], LIMITS, colour=True)


def test_json_holds_what_it_promises() -> None:
    verdicts = [judge(count_network(preset(name))) for name in ("report-125k", "qti-c80")]
    document = json.loads(as_json(verdicts, LIMITS))
    assert document["ok"] is False
    assert document["schema_version"] == 1
    assert document["limits"] == {"parameters": 128_000, "multiply_accumulates": 30_000_000}
    small, large = document["subjects"]
    assert (small["name"], small["parameters"], small["macs"]) == (
        "report-125k",
        125_330,
        8_637_000,
    )
    assert small["violations"] == []
    assert small["conventions"]["torchinfo"]["macs"] == 8_915_378
    stem = next(row for row in small["layers"] if row["name"] == "stem.conv")
    assert stem == {
        "name": "stem.conv",
        "op": "conv",
        "parameters": 3_040,
        "macs": 4_224_000,
        "output_shape": [40, 64, 22],
        "instructions": {},
    }
    assert [v["limit"] for v in large["violations"]] == ["parameters", "multiply_accumulates"]
    assert (large["violations"][0]["value"], large["violations"][0]["allowed"]) == (
        314_650,
        128_000,
    )
    assert json.loads(as_json(verdicts[:1], LIMITS))["ok"] is True


def test_markdown_fits_a_comment_however_large() -> None:
    verdict = judge(count_network(preset("report-125k")))
    text = as_markdown([verdict], LIMITS)
    assert "| `report-125k` | 125,330 | 97.9 % | 8,637,000 | 28.8 % | within |" in text
    assert "| `stem.conv` | `conv` | 40 x 64 x 22 | 3,040 | 4,224,000 |" in text
    assert text.count("<details>") == text.count("</details>") == 1
    many = as_markdown([verdict] * 50, LIMITS)
    assert len(many) <= COMMENT_CHARACTERS
    assert "stem.conv" not in many
    assert "Too many layers" in many
    assert "**over**" in as_markdown([judge(count_network(preset("qti-c80")))], LIMITS)


class _Page(HTMLParser):
    """Collects tags and attributes, and that every opened tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    assert page.open == []
    return page


def test_page_is_whole_and_fetches_nothing() -> None:
    count = count_network(preset("report-125k"))
    text = as_html([judge(count)], LIMITS)
    page = read_page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "onload", "onclick"}
    assert "url(" not in text
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert ("meta", "name", "viewport") in page.attributes
    bars = [value for _, name, value in page.attributes if name == "style"]
    costly = [(row.parameters > 0) + (row.macs > 0) for row in count.layers]
    assert len(bars) == 2 + sum(costly)
    assert "width:100.00%" in bars and "width:97.91%" in bars


def test_hostile_names_do_no_harm(hostile: Count) -> None:
    verdicts = [judge(hostile)]
    for text in (as_table(verdicts, LIMITS), as_markdown(verdicts, LIMITS)):
        assert text.isascii()
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) < 700
    rows = as_markdown(verdicts, LIMITS).splitlines()
    cells = next(row for row in rows if row.startswith("| `<script>") and "CUSTOM" in row)
    assert cells.replace("\\|", "").count("|") == 6
    assert cells.count("`") == 4
    page = as_html(verdicts, LIMITS)
    assert "<script>" not in page
    assert not read_page(page).tags & {"script", "b"}
    assert json.loads(as_json(verdicts, LIMITS))["subjects"][0]["name"] == hostile.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1.block1.mean", "stage1.block1.mean"),
        ("it's", "it's"),
        ("a\x1b[0m", "a\\x1b[0m"),
        ("caf\xe9\n", "caf\\xe9\\n"),
        ("x" * 101, "x" * 97 + "..."),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
