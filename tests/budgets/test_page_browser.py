"""How the page looks: its colours, and its widths in a browser where one is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from budgets.baseline import Change
from budgets.check import check
from budgets.count import Count, LayerCount, Total, count_network
from budgets.limits import Limits, load_limits
from budgets.page import as_html
from budgets.verdict import Verdict
from firmware_ref.arch import preset

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
LIMITS = load_limits()
TIGHT = replace(LIMITS, model={**LIMITS.model, "peak_activation_bytes": 100_000})
WINDOWS = ((360, 800), (1280, 900))

# Of every frame: how wide its page is, and which texts of drawings reach beyond them.
MEASURE = """
onload = () => {
  const frames = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const beyond = [...page.querySelectorAll("svg text")].filter(text => {
      const [inner, outer] = [text, text.closest("svg")].map(e => e.getBoundingClientRect());
      return inner.left < outer.left - 1 || inner.right > outer.right + 1;
    });
    return {inner: frame.contentWindow.innerWidth, scroll: page.documentElement.scrollWidth,
      beyond: beyond.map(text => text.textContent), subjects:
      page.querySelectorAll("section").length, ground:
      frame.contentWindow.getComputedStyle(page.body).backgroundColor};
  });
  document.querySelector("pre").textContent = JSON.stringify(frames);
};
"""


def render(
    folder: Path, pages: Sequence[str], *options: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each page in each of `WINDOWS`: what is measured there, and the lines of the console."""
    if CHROMIUM is None:
        pytest.skip(f"needs a browser, one of {', '.join(NAMES)}: apt-get install chromium")
    frames = "".join(
        f'<iframe style="width:{width}px;height:{height}px;border:0" srcdoc="{escape(page)}">'
        "</iframe>"
        for page in pages
        for width, height in WINDOWS
    )
    harness = folder / "harness.html"
    harness.write_text(
        '<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><pre></pre>'
        f"{frames}<script>{MEASURE}</script>",
        encoding="utf-8",
    )
    command = [CHROMIUM, "--headless", "--disable-gpu", "--enable-logging=stderr"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # as root Chromium starts only so
    command += [f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(\[.*?\])</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console


def page_of(count: Count, limits: Limits = LIMITS, changes: Sequence[Change] = ()) -> str:
    verdict = Verdict(count, tuple(check(count, limits)), (), tuple(changes))
    return as_html([verdict, verdict], limits, 100.0)


def test_fits_a_phone_and_a_desk(tmp_path: Path) -> None:
    count = count_network(preset("report-125k"))
    wide = '</title><script>alert("1")</script>\x1b[31m' + "W" * 500
    renamed = [replace(row, name=wide, op=wide) for row in count.on_device.layers]
    hostile = replace(count.on_device, name=wide, layers=tuple(renamed), not_int8=(wide,) * 9)
    pages = [
        page_of(count),
        page_of(count_network(preset("qti-c80")), TIGHT),
        page_of(hostile, TIGHT, [Change(wide, wide, None, 10**12)] * 20),
        page_of(Count("empty", "tflite", (), {"plain": Total(0, 0)})),
        page_of(Count("one", "tflite", (LayerCount("a", "ADD", (1,), 1, 1),), count.conventions)),
    ]
    frames, console = render(tmp_path, pages)
    assert console == []
    assert [frame["inner"] for frame in frames] == [360, 1280] * len(pages)
    assert [frame["subjects"] for frame in frames] == [2] * len(frames)
    assert [frame for frame in frames if frame["scroll"] > frame["inner"]] == []
    assert [frame["beyond"] for frame in frames] == [[]] * len(frames)

    dark, console = render(tmp_path, pages[:1], "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert dark[0]["ground"] != frames[0]["ground"]


def test_a_page_too_wide_or_fetching_is_seen(tmp_path: Path) -> None:
    page = page_of(count_network(preset("report-125k")))
    wide = page.replace("</body>", '<p style="width:500px">a</p></body>')
    fetching = page.replace("</body>", '<img src="https://example.org/a.png"></body>')
    long = page.replace(">head.conv<", f">{'W' * 60}<", 1)
    frames, console = render(tmp_path, [wide, fetching, long])
    assert [frame["scroll"] > frame["inner"] for frame in frames[::2]] == [True, False, False]
    assert [len(frame["beyond"]) for frame in frames[::2]] == [0, 0, 1]
    assert any("Content Security Policy" in line for line in console)


def test_colours_have_contrast() -> None:
    """Text and bars against what they stand on, by WCAG's formula: 4.5 for text, 3 for shapes."""
    schemes = re.findall(r":root \{([^}]*)\}", page_of(count_network(preset("report-125k"))))
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+);", scheme))
        grounds = [_luminance(colours[name]) for name in ("card", "ground")]
        for name in {*colours} - {"card", "ground", "line", "track"}:
            least = 4.5 if name in ("ink", "faint", "good", "over") else 3
            for ground in grounds:
                low, high = sorted((ground, _luminance(colours[name])))
                assert (high + 0.05) / (low + 0.05) >= least, name


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    linear = []
    for at in (0, 2, 4):
        value = int(digits[at : at + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
