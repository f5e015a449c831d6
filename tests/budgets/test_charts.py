from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from budgets.charts import LARGEST, MOST_STEPS, WIDTH, Figure, bars, timeline
from budgets.lines import printable

HOSTILE = '</title><script>alert("1")</script>&\x1b[31m\n\u202e\udc80' + "x" * 500
CHARACTER = 6.7


def parts(chart: str) -> list[tuple[str, ElementTree.Element]]:
    """Every element of a chart with its class; a chart that is no well-formed XML fails."""
    return [(e.get("class", ""), e) for e in ElementTree.fromstring(chart).iter()]


def titles(chart: str) -> list[str]:
    return [e.text or "" for _, e in parts(chart) if e.tag == "title"]


def widths(chart: str, name: str) -> list[float]:
    return [float(e.attrib["width"]) for c, e in parts(chart) if c == name]


def texts_fit(chart: str) -> bool:
    """Whether the text of every line of a chart has room beside the others of its line."""
    lengths: dict[str, float] = {}
    for _, element in parts(chart):
        if element.tag == "text":
            line = element.attrib["y"]
            lengths[line] = lengths.get(line, 0.0) + len(element.text or "") * CHARACTER
    return max(lengths.values()) <= WIDTH


def curve(chart: str) -> list[float]:
    """Heights of the area at every step, in units above its foot."""
    drawn = next(e.attrib["d"] for c, e in parts(chart) if c == "area")
    foot = float(re.match(r"M[\d.]+ ([\d.]+)", drawn)[1])  # type: ignore[index]
    return [foot - float(y) for y in re.findall(r"V([\d.]+)H", drawn)]


def layers(values: Sequence[int]) -> list[Figure]:
    return [(f"layer{place}", value) for place, value in enumerate(values)]


def test_bars_are_as_long_as_their_values() -> None:
    chart = bars([("stem", 300), ("free", 0), ("head", 1_200), ("a<b", 1)], "parameters")
    assert titles(chart) == [
        "head: 1,200 parameters, 79.9 %",
        "stem: 300 parameters, 20.0 %",
        "a<b: 1 parameters, 0.1 %",
    ]
    assert widths(chart, "bar") == [WIDTH, WIDTH / 4, pytest.approx(WIDTH / 1_200, abs=0.005)]
    assert widths(chart, "rest") == []
    shown = [e.text for _, e in parts(chart) if e.tag == "text"]
    assert shown == ["head", "1,200  79.9 %", "stem", "300  20.0 %", "a<b", "1  0.1 %"]
    label = ElementTree.fromstring(chart).attrib["aria-label"]
    assert label == (
        "parameters by layer, 1,501 in total, the most in: head 1,200, stem 300, a<b 1"
    )


def test_a_nudged_value_moves_its_bar() -> None:
    values = [1_000, 500, 250]
    before = bars(layers(values), "MACs")
    after = bars(layers([1_000, 505, 250]), "MACs")
    moved = zip(widths(before, "bar"), widths(after, "bar"), strict=True)
    assert [round(b - a, 2) for a, b in moved] == [0.0, pytest.approx(WIDTH / 200, abs=0.01), 0.0]
    assert titles(after)[1].startswith("layer1: 505 MACs")


def test_many_layers_share_one_bar() -> None:
    values = list(range(1, 151))
    chart = bars(layers(values), "MACs")
    assert len(titles(chart)) == LARGEST + 1
    assert titles(chart)[0].startswith("layer149: 150 MACs")
    others = sum(sorted(values)[:-LARGEST])
    share = 100 * others / sum(values)
    assert titles(chart)[-1] == f"{150 - LARGEST} others: {others:,} MACs, {share:.1f} %"
    assert widths(chart, "rest") == [WIDTH]  # the longest here
    assert widths(chart, "bar")[0] == pytest.approx(WIDTH * 150 / others, abs=0.005)
    assert len(titles(bars(layers([1] * (LARGEST + 1)), "MACs"))) == LARGEST + 1
    assert titles(bars(layers([1] * (LARGEST + 2)), "MACs"))[-1].startswith("2 others: 2 MACs")


def test_nothing_to_draw() -> None:
    for empty in ([], layers([0, 0])):
        assert bars(empty, "MACs") == ""
        assert timeline(empty, 100) == ""


def test_timeline_is_as_high_as_its_values() -> None:
    values = [100, 400, 400, 50, 0, 200]
    chart = timeline(layers(values), None)
    heights = curve(chart)
    assert [h / heights[1] for h in heights] == pytest.approx([v / 400 for v in values], abs=1e-3)
    assert titles(chart)[3] == "step 4, layer3: 50 bytes"
    assert len(titles(chart)) == len(values)
    peak = next(e for c, e in parts(chart) if c == "peak" and e.tag == "circle")
    hover = next(e for c, e in parts(chart) if c == "step" and "layer1:" in (e[0].text or ""))
    assert heights[1] == float(hover.attrib["height"])  # the peak is as high as the chart
    left, width = float(hover.attrib["x"]), float(hover.attrib["width"])
    assert float(peak.attrib["cx"]) == pytest.approx(left + width / 2, abs=0.02)
    words = [e.text for c, e in parts(chart) if c == "peak" and e.tag == "text"]
    assert words == ["peak 400 in layer1"]
    assert not [c for c, _ in parts(chart) if "limit" in c]

    nudged = curve(timeline(layers([100, 400, 400, 58, 0, 200]), None))
    assert [n - h for n, h in zip(nudged, heights, strict=True)] == [
        *(0.0, 0.0, 0.0),
        pytest.approx(heights[1] * 8 / 400, abs=0.02),
        *(0.0, 0.0),
    ]


@pytest.mark.parametrize("limit", [200, 399, 400, 800])
def test_the_limit_is_a_line(limit: int) -> None:
    chart = timeline(layers([100, 400, 50]), limit)
    line = next(e for c, e in parts(chart) if c == "limit" and e.tag == "path")
    y = float(re.search(r" ([\d.]+)H", line.attrib["d"])[1])  # type: ignore[index]
    foot, heights = _foot(chart), curve(chart)
    assert (foot - y) / heights[1] == pytest.approx(limit / 400, abs=1e-3)
    assert any(e.text == f"limit {limit}" for _, e in parts(chart))
    over = [c for c, _ in parts(chart) if c == "peak over"]
    assert bool(over) == (limit < 400)
    assert ElementTree.fromstring(chart).attrib["aria-label"].endswith(f"; the limit is {limit}")


def _foot(chart: str) -> float:
    drawn = next(e.attrib["d"] for c, e in parts(chart) if c == "area")
    return float(drawn.split()[1].partition("V")[0])


def test_a_limit_far_above_flattens_nothing() -> None:
    chart = timeline(layers([100, 400, 50]), 10**12)
    assert curve(chart) == curve(timeline(layers([100, 400, 50]), None))
    assert [e.tag for c, e in parts(chart) if c.startswith("limit")] == ["text"]
    assert "limit 1,000,000,000,000, above the chart" in chart


def test_many_steps_keep_their_peaks() -> None:
    values = [100] * 10_000
    values[4_321], values[9_999] = 5_000, 300
    chart = timeline(layers(values), None)
    heights = curve(chart)
    size = -(-10_000 // MOST_STEPS)
    assert len(heights) == len(titles(chart)) == -(-10_000 // size) <= MOST_STEPS
    assert max(range(len(heights)), key=heights.__getitem__) == 4_321 // size
    assert heights[-1] == pytest.approx(max(heights) * 300 / 5_000, abs=0.01)
    at = 4_321 // size * size
    title = f"step {at + 1:,} to {at + size:,}, at most, layer4321: 5,000 bytes"
    assert titles(chart)[4_321 // size] == title
    last = [e for c, e in parts(chart) if c == "step"][-1]
    right = float(last.attrib["x"]) + float(last.attrib["width"])
    assert right == pytest.approx(WIDTH, abs=0.02)
    assert len(chart) < 60_000


@pytest.mark.parametrize("value", [1, 3, 4_999, 25_600, 114_400, 950_000, 10**9, 10**12])
def test_the_scale_has_a_few_round_numbers(value: int) -> None:
    chart = timeline(layers([value, 1]), None)
    marks = [e.text or "" for c, e in parts(chart) if c == "faint end"][:-1]
    assert 2 <= len(marks) <= 6
    assert marks[0] == "0"
    assert max(map(len, marks)) <= 5
    assert len(set(marks)) == len(marks)


def test_hostile_names_stay_text() -> None:
    steps = [(HOSTILE, 12_345_678), ("y" * 1_000, 3)]
    for chart in (bars(steps, "instructions"), timeline(steps, 1_000)):
        assert {e.tag for _, e in parts(chart)} <= {"svg", "g", "title", "text", "rect", "path"} | {
            "circle"
        }
        assert all(character.isprintable() for character in chart)
        assert any(printable(HOSTILE) in title for title in titles(chart))
        assert texts_fit(chart)
