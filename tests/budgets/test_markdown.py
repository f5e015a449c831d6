"""The report as GitHub Markdown: it fits a comment, and names do nothing in it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from budgets.baseline import Change
from budgets.count import Count, Total, count_network
from budgets.limits import LayerLimit, Limits, load_limits
from budgets.markdown import CHANGES_SHOWN, COMMENT_CHARACTERS, as_markdown
from firmware_ref.arch import PRESETS, preset
from tests.budgets.counts import LIMITS, STEM, flatbuffer, hostile, judged, network

# A cell as GitHub's cmark-gfm scans it (extensions/ext_scanners.re): a backslash takes the
# punctuation after it along, another backslash too.
CELL = re.compile(r"(?:\\[!-/:-@\[-`{-~]|[^|\r\n])+")


def cells(row: str) -> list[str]:
    """The cells of a row of a table, as GitHub splits them."""
    return [cell.strip() for cell in CELL.findall(row.strip("|"))]


def report(text: str, start: str) -> list[list[str]]:
    """The rows of the first table whose heading starts so, the rule left out."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(start))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return [rows[0], *rows[2:]]


def test_the_table_of_subjects() -> None:
    limits = Limits({"parameters": 1_100, "flatbuffer_bytes": 10_000, "arena_bytes": 1_033})
    text = as_markdown([judged(flatbuffer(), limits), judged(network(), limits)], limits, 100.0)
    assert text.startswith("### Budgets\n")
    heading, file, net = report(text, "| subject |")
    assert heading == [
        "subject",
        *("parameters", "of limit", "bytes of flatbuffer", "of limit"),
        *("bytes of TFLM arena", "of limit", ""),
    ]
    assert file == [
        "`m.tflite`",
        "1,027",
        "93.4 %",
        "2,500",
        "25.0 %",
        "1,034",
        "100.1 %",
        "**over**",
    ]
    assert net == ["`net`", "1,012", "92.0 %", "-", "-", "1,034", "100.1 %", "**over**"]
    assert (
        "\nLimits: 1,100 parameters, 10,000 bytes of flatbuffer, 1,033 bytes of TFLM arena.\n"
        in text
    )
    assert "\n- `m.tflite: arena_bytes=1,034; allowed are 1,033; save 1 with fewer" in text
    assert "\n- `not checked, not known of a preset: flatbuffer_bytes`\n" in text


def test_within_and_over() -> None:
    text = as_markdown([judged(flatbuffer())], LIMITS, 100.0)
    assert "| within |" in text and "**over**" not in text
    assert "**over**" in as_markdown([judged(flatbuffer(not_int8=("t: x",)))], LIMITS, 100.0)


def test_layers_are_folded_away() -> None:
    count = count_network(preset("report-125k"))
    text = as_markdown([judged(count)], load_limits(), 100.0)
    assert text.count("<details>") == text.count("</details>") == 1
    heading, *rows, total = report(text, "| layer |")
    assert heading[:5] == ["layer", "op", "output shape", "trained", "deployed"]
    assert {len(row) for row in rows} | {len(heading)} == {15}
    assert rows[0][:2] == ["`input_norm.mean_over_channels`", "`CONV_2D`"]
    stem = next(row for row in rows if row[0] == "`stem.conv`")
    assert stem[2:5] == ["1 x 64 x 22 x 40", "3,040", "3,040"]
    assert total[0] == "**total**" and total[3] == "**125,330**"
    assert "- `torchinfo: 125,330 parameters, 8,915,378 MACs" in text


def test_changes_are_listed_up_to_a_number() -> None:
    changes = tuple(Change(f"l{n}", "parameters", n, n + 1) for n in range(CHANGES_SHOWN + 3))
    text = as_markdown([judged(flatbuffer(), changes=changes)], LIMITS, 100.0)
    assert "\n`m.tflite`: changed since the baseline:\n\n- `l0: parameters 0 -> 1 (+1)`\n" in text
    assert f"- `l{CHANGES_SHOWN - 1}: " in text and f"`l{CHANGES_SHOWN}: " not in text
    assert "\n- and 3 more\n" in text
    few = as_markdown([judged(flatbuffer(), changes=changes[:CHANGES_SHOWN])], LIMITS, 100.0)
    assert "more\n" not in few
    assert "since the baseline" not in as_markdown([judged(flatbuffer())], LIMITS, 100.0)


def test_it_says_that_nothing_changed_and_since_which_baseline() -> None:
    text = as_markdown([judged(flatbuffer(), baseline="m.tflite")], LIMITS, 100.0)
    assert "\n\n`m.tflite`: nothing changed since the baseline.\n\n" in text
    text = as_markdown([judged(flatbuffer(), baseline="old|`/m.tflite")], LIMITS, 100.0)
    assert "`m.tflite`: nothing changed since the baseline of `old/'/m.tflite`.\n" in text


def test_limits_that_are_of_layers_alone() -> None:
    limits = Limits({}, (LayerLimit("*", {"live_bytes": 479}),))
    text = as_markdown([judged(flatbuffer(), limits)], limits, 100.0)
    assert report(text, "| subject |") == [["subject", ""], ["`m.tflite`", "**over**"]]
    lines = text.splitlines()
    rule = lines[lines.index("| subject |  |") + 1]
    assert rule.count("|") == 3 and "Limits: " not in text


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_with_its_layers(name: str) -> None:
    text = as_markdown([judged(count_network(preset(name)))], load_limits(), 100.0)
    assert len(text) <= COMMENT_CHARACTERS and "<details>" in text


def test_many_subjects_fit_without_layers() -> None:
    many = as_markdown([judged(flatbuffer())] * 100, LIMITS, 100.0)
    assert len(many) <= COMMENT_CHARACTERS
    assert "stem.conv" not in many and "Too many layers" in many
    assert len(report(many, "| subject |")) == 101


def test_any_number_of_subjects_violations_and_changes_fits() -> None:
    layers = tuple(dataclasses.replace(STEM, name=f"{n}" + "n" * 200) for n in range(2_000))
    limits = Limits(LIMITS.model, (LayerLimit("*", {"live_bytes": 1}),))
    changes = tuple(Change("c" * 300, "live_bytes", 1, 2) for _ in range(1_000))
    verdict = judged(flatbuffer(layers=layers), limits, changes=changes)
    assert len(verdict.violations) == 2_000
    text = as_markdown([verdict] * 3, limits, 100.0)
    assert 50_000 < len(text) <= COMMENT_CHARACTERS
    assert text.endswith("`\n") and text.count("`") % 2 == 0
    text = as_markdown([judged(flatbuffer())] * 5_000, LIMITS, 100.0)
    assert len(text) <= COMMENT_CHARACTERS and text.endswith("|\n")


class _Text(HTMLParser):
    """Tags, and the text that is not in a code span."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.inside: list[str] = []
        self.plain = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "code":
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "code":
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.plain += data


NAMES = [
    "@all",
    "<b>x</b>",
    "a|b",
    "a\\|[x](//y) @all",
    "`",
    "``",
    "a`<b>`b",
    "\\",
    "</details>",
    "|",
]


def hostile_reports() -> list[tuple[Count, Limits]]:
    """A count whose every text is hostile, for each of them."""
    counts = [hostile()]
    for name in NAMES:
        row = dataclasses.replace(STEM, name=name, op=name)
        counts.append(
            flatbuffer(
                name=name,
                layers=(row, row),
                peak_layer=name,
                not_costed=(name,),
                not_int8=(name,),
                not_counted=(name,),
            )
        )
    limits = Limits(LIMITS.model, (LayerLimit("*", {"live_bytes": 1}),))
    return [(count, limits) for count in counts]


@pytest.mark.parametrize(("count", "limits"), hostile_reports())
def test_hostile_names_stay_in_code_spans(count: Count, limits: Limits) -> None:
    changes = (Change(count.name, count.name, None, 3),)
    text = as_markdown([judged(count, limits, changes=changes)], limits, 100.0)
    assert text.isascii() and "\x1b" not in text
    assert max(map(len, text.splitlines())) < 700
    (_, subject), (_, *rows, total) = report(text, "| subject |"), report(text, "| layer |")
    assert len(subject) == 6
    assert {len(row) for row in rows} == {len(total)} == {14}
    for row in rows:
        assert all(re.fullmatch("`[^`]+`", cell) for cell in row[:2])
        assert not any("`" in cell for cell in row[2:])


@pytest.mark.parametrize(("count", "limits"), hostile_reports())
def test_hostile_names_render_as_code(count: Count, limits: Limits) -> None:
    """By another reader of Markdown, HTML let through as GitHub does."""
    markdown_it = pytest.importorskip("markdown_it")
    reader = markdown_it.MarkdownIt("commonmark").enable("table")
    page = _Text()
    changes = (Change(count.name, count.name, None, 3),)
    page.feed(reader.render(as_markdown([judged(count, limits, changes=changes)], limits, 100.0)))
    assert page.tags <= {
        *("h3", "table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "code", "strong"),
        *("details", "summary"),
    }
    assert not re.search(r"[@<>\\|`\[]", page.plain)


def test_an_empty_graph() -> None:
    text = as_markdown([judged(Count("", "tflite", (), {"plain": Total(0, 0)}))], LIMITS, 100.0)
    assert report(text, "| layer |")[-1][0] == "**total**"
