"""The tables: figures worked by hand, and one description behind both renderings."""

from __future__ import annotations

import re

from tests.train.reports import metrics, report
from train.report import MARK, WARNING
from train.tables import (
    Table,
    as_markdown,
    as_text,
    class_wise,
    device_wise,
    overall,
    table_markdown,
    table_text,
    tables,
)


def text_cells(text: str) -> list[list[str]]:
    """Rows of an aligned table, headings and rules left out."""
    body = text.split("---\n", 1)[1].splitlines()
    return [re.split(r" {2,}", line) for line in body if set(line) != {"-"}]


def markdown_cells(text: str) -> list[list[str]]:
    """Rows of a Markdown table, heading left out, escapes and bold undone."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    plain = [[re.sub(r"\\(.)", r"\1", cell.replace("**", "")) for cell in row] for row in rows]
    return plain


def test_table_1_by_hand() -> None:
    # airport: 0.7, 0.5, 0.9, all right; metro_station: 0.2 wrong, 0.8, 0.5. int8 has 0.6 for 0.7.
    assert class_wise(report()).rows == (
        ("airport", "3", "100.0", "0.385", "100.0", "0.436"),
        ("metro_station", "3", "66.7", "0.842", "66.7", "0.842"),
        ("tram", "0", "-", "-", "-", "-"),
        ("average", "6", "83.3", "0.613", "83.3", "0.639"),
    )


def test_table_2_by_hand() -> None:
    # A: 0.7, 0.2 wrong, 0.9, 0.5; S4: 0.5, 0.8; nothing through S1.
    assert device_wise(report()).rows == (
        ("A", "seen", "4", "75.0", "0.691", "75.0", "0.730"),
        ("S1", "seen", "0", "-", "-", "-", "-"),
        ("S4", "unseen", "2", "100.0", "0.458", "100.0", "0.458"),
        ("average", "seen", "4", "75.0", "0.691", "75.0", "0.730"),
        ("average", "unseen", "2", "100.0", "0.458", "100.0", "0.458"),
    )


def test_the_overall_table() -> None:
    rows = overall(report()).rows
    assert [row[:4] for row in rows] == [
        ("clips", "float", "6", "83.3"),
        ("clips", "int8", "6", "83.3"),
        ("classes", "float", "2", "83.3"),
        ("classes", "int8", "2", "83.3"),
        ("windows", "float", "6", "83.3"),
        ("windows", "int8", "6", "83.3"),
    ]
    assert [row[5] for row in rows[:2]] == ["0.613", "0.639"]
    sure = report().metrics["float"].intervals
    assert sure is not None
    low, high = sure.clip_log_loss
    assert rows[0][4] == "50.0 - 100.0" and rows[0][6] == f"{low:.3f} - {high:.3f}"


def test_two_renderings_of_one_table() -> None:
    for table in tables(report()):
        rows = [list(row) for row in table.rows]
        assert text_cells(table_text(table)) == rows
        assert markdown_cells(table_markdown(table)) == rows


def test_one_nudged_value_shows_in_both() -> None:
    nudged = report(metrics={"float": metrics(nudge=0.002), "int8": metrics(nudge=0.1)})
    rows = [list(row) for row in class_wise(report()).rows]
    assert text_cells(table_text(class_wise(nudged))) != rows
    assert markdown_cells(table_markdown(class_wise(nudged))) != rows


def test_aligned_text() -> None:
    table = Table("t", ("class", "clips", "float\nacc. (%)"), (("tram", "1,200", "7.5"),) * 2, 1, 1)
    assert table_text(table).splitlines() == [
        "                 float",
        "class  clips  acc. (%)",
        "----------------------",
        "tram   1,200       7.5",
        "----------------------",
        "tram   1,200       7.5",
    ]


def test_markdown_text() -> None:
    table = Table("t", ("a|b", "float\nacc. (%)"), (("x_y", "7.5"), ("average", "7.5")), 1, 1)
    assert table_markdown(table).splitlines() == [
        "| a\\|b | float acc. (%) |",
        "| --- | --: |",
        "| x\\_y | 7.5 |",
        "| **average** | **7.5** |",
    ]


def test_one_device_has_no_table_2() -> None:
    one = report(devices=("A",), metrics={"float": metrics(devices=1)})
    assert [table.title[:7] for table in tables(one)] == ["Overall", "Table 1"]
    assert "Device-wise" not in as_text(one) + as_markdown(one)


def test_averages_only_over_devices_there_are() -> None:
    found = metrics()
    assert found.seen == (True, True, False)
    all_seen = report(metrics={"float": type(found)(**vars(found) | {"seen": (True,) * 3})})
    assert [row[:2] for row in device_wise(all_seen).rows[3:]] == [("average", "seen")]
    none_seen = report(metrics={"float": type(found)(**vars(found) | {"seen": (False,) * 3})})
    assert [row[:2] for row in device_wise(none_seen).rows[3:]] == [("average", "unseen")]


def test_the_whole_report_as_text_and_markdown() -> None:
    for render in (as_text, as_markdown):
        text = render(report())
        for words in (
            "ESC-10-Devices",
            "fold 1",
            "the test split selected nothing",
            "torch 2.13.0",
            "125,330",
            "1,000 resamples of 6 sources",
            "Table 1. Class-wise",
            "Table 2. Device-wise",
        ):
            assert words in text
        assert (
            text.endswith("\n")
            and "WARNING" not in text
            and MARK not in table_text(overall(report()))
        )
    assert "![int8](confusion-int8.png)" in as_markdown(report())


def test_selection_on_the_reported_split_is_seen() -> None:
    flattered = report(selected_on_reported_split=True)
    assert f"{MARK} {WARNING}" in as_text(flattered)
    assert f"> **\\{MARK} {WARNING}**" in as_markdown(flattered)
    # The mark travels with every table that is copied alone.
    for table in tables(flattered):
        assert f"float{MARK}" in table_text(table) and f"int8{MARK}" in table_text(table)
        assert f"float\\{MARK}" in table_markdown(table)


HOSTILE = ("<script>x</script>", "a|b*c_d`e`[f](g)", "\x1b[31mred\u202e\n# head")


def test_hostile_names() -> None:
    hostile = report(labels=HOSTILE, dataset=HOSTILE[0], provenance={HOSTILE[2]: HOSTILE[1]})
    text, markdown = as_text(hostile), as_markdown(hostile)
    for rendered in (text, markdown):
        assert "\x1b" not in rendered and "\u202e" not in rendered and "\n# head" not in rendered
    assert "<script>" not in markdown and "&lt;script&gt;" in markdown
    assert r"a\|b\*c\_d\`e\`\[f\](g)" in markdown
    cells = markdown_cells(table_markdown(class_wise(hostile)))
    assert all("".join(row).count("script") in (0, 2) for row in cells) and len(cells) == 4
