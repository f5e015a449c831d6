"""Charts of a page as inline SVG: figures by layer, and activations step by step.

Lengths are units of a `WIDTH` wide drawing, which the page scales; its colours are classes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from budgets.lines import printable
from budgets.names import shortened

WIDTH = 320.0
# How many layers have a bar of their own; a phone shows no more at once.
LARGEST = 12
# More steps than this would be narrower than a unit.
MOST_STEPS = 300

_CHARACTER = 6.7  # of the widest usual monospace font at the page's 11 units
_LINE = 11.0
_ROW, _BAR = 27.0, 6.0
_GUTTER, _TOP, _PLOT, _BOTTOM = 40.0, 30.0, 170.0, 20.0
# A limit further above the peak would flatten what is drawn.
_HIGHEST_LIMIT = 3

Figure = tuple[str, int]  # a layer's name and its value


def markup(name: str) -> str:
    """Any name as text of a page."""
    return escape(printable(name))


def bars(layers: Sequence[Figure], unit: str) -> str:
    """A bar for each of the `LARGEST` values and one for the sum of the others.

    Layers of 0 have none, and where all are 0 the chart is empty text.
    """
    ranked = sorted((layer for layer in layers if layer[1]), key=lambda layer: -layer[1])
    if not ranked:
        return ""
    # One more layer takes no more room than "1 other" would.
    cut = LARGEST if len(ranked) > LARGEST + 1 else len(ranked)
    shown = [(printable(name), value) for name, value in ranked[:cut]]
    others = ranked[cut:]
    if others:
        shown.append((f"{len(others):,} others", sum(value for _, value in others)))
    total = sum(value for _, value in ranked)
    longest = max(value for _, value in shown)
    drawn = [
        _bar(place * _ROW, name, value, total, longest, unit, place == cut)
        for place, (name, value) in enumerate(shown)
    ]
    first = ", ".join(f"{name} {value:,}" for name, value in shown[:3])
    says = f"{unit} by layer, {total:,} in total, the most in: {first}"
    return _svg(_ROW * len(shown), says, drawn)


def _bar(
    top: float, name: str, value: int, total: int, longest: int, unit: str, others: bool
) -> str:
    """A line of name and value above their bar, whose title gives both in full."""
    percent = f"{100 * value / total:.1f} %"
    figure = f"{value:,}  {percent}"
    short = _shortened(name, WIDTH - _CHARACTER * (len(figure) + 2))
    across = f'y="{top + 15:g}" height="{_BAR:g}" rx="2"'
    return (
        f"<g><title>{escape(name)}: {value:,} {unit}, {percent}</title>"
        f'<text y="{top + _LINE:g}">{escape(short)}</text>'
        f'<text class="end" x="{WIDTH:g}" y="{top + _LINE:g}">{figure}</text>'
        f'<rect class="track" {across} width="{WIDTH:g}"/>'
        f'<rect class="{"rest" if others else "bar"}" {across} '
        f'width="{WIDTH * value / longest:.2f}"/></g>'
    )


def timeline(steps: Sequence[Figure], limit: int | None) -> str:
    """Bytes alive at every step, named after its operator, with the peak and the limit marked.

    More than `MOST_STEPS` are drawn several at a time, the most of each. Empty text where nothing
    is alive.
    """
    most = max((value for _, value in steps), default=0)
    if not most:
        return ""
    near = limit is not None and limit <= _HIGHEST_LIMIT * most
    highest = max(most, limit if near and limit else 0)
    size = -(-len(steps) // MOST_STEPS)
    width = (WIDTH - _GUTTER) / -(-len(steps) // size)
    path, columns = [f"M{_GUTTER:g} {_y(0, highest):g}"], []
    for first in range(0, len(steps), size):
        group = steps[first : first + size]
        name, value = max(group, key=lambda step: step[1])
        left = _GUTTER + first // size * width
        path.append(f"V{_y(value, highest):.2f}H{left + width:.2f}")
        span = f"step {first + 1:,}"
        if len(group) > 1:
            span += f" to {first + len(group):,}, at most"
        columns.append(
            f'<rect class="step" x="{left:.2f}" y="{_TOP:g}" width="{width:.2f}" '
            f'height="{_PLOT:g}"><title>{span}, {markup(name)}: {value:,} bytes</title></rect>'
        )
    path.append(f"V{_y(0, highest):g}Z")
    place = [value for _, value in steps].index(most)
    name = printable(steps[place][0])
    x = _GUTTER + (place // size + 0.5) * width
    drawn = [
        *_scale(highest, len(steps)),
        f'<path class="area" d="{"".join(path)}"/>',
        *([] if limit is None else _limit(limit, near, highest)),
        *_peak(x, _y(most, highest), name, most, limit is not None and most > limit),
        *columns,
    ]
    says = f"activations alive in {len(steps):,} steps, at most {most:,} bytes, in {name}"
    says += f"; the limit is {limit:,}" if limit is not None else ""
    return _svg(_TOP + _PLOT + _BOTTOM, says, drawn)


def _y(value: int, highest: int) -> float:
    return _TOP + _PLOT * (1 - value / highest)


def _scale(highest: int, steps: int) -> list[str]:
    """Lines at round numbers of bytes, and what runs from left to right."""
    unit = 10 ** (len(str(highest)) - 1)
    if highest >= 5 * unit:
        unit *= 2
    elif highest < 2 * unit and unit > 1:
        unit //= 2
    drawn = []
    for value in range(0, highest + 1, unit):
        y = _y(value, highest)
        drawn.append(f'<path class="grid" d="M{_GUTTER:g} {y:.2f}H{WIDTH:g}"/>')
        drawn.append(
            f'<text class="faint end" x="{_GUTTER - 5:g}" y="{y + 4:.2f}">{_brief(value)}</text>'
        )
    y = _TOP + _PLOT + 15
    return [
        *drawn,
        f'<text class="faint" x="{_GUTTER:g}" y="{y:g}">step 1</text>',
        f'<text class="faint end" x="{WIDTH:g}" y="{y:g}">{steps:,}</text>',
    ]


def _limit(limit: int, near: bool, highest: int) -> list[str]:
    """A line with its words, or the words alone where the line would lie above the chart."""
    if not near:
        words, y = f"limit {limit:,}, above the chart", _TOP + _LINE
        return [f'<text class="limit halo end" x="{WIDTH:g}" y="{y:g}">{words}</text>']
    y = _y(limit, highest)
    # Words above a high line would run into those of the peak.
    words_y = y + _LINE + 2 if y < _TOP + 2 * _LINE else y - 4
    return [
        f'<path class="limit" d="M{_GUTTER:g} {y:.2f}H{WIDTH:g}"/>',
        f'<text class="limit halo end" x="{WIDTH:g}" y="{words_y:.2f}">limit {limit:,}</text>',
    ]


def _peak(x: float, y: float, name: str, most: int, over: bool) -> list[str]:
    """A dot on the peak, and a line from there up to its words."""
    figure = f"peak {most:,} in "
    words = figure + _shortened(name, WIDTH - _CHARACTER * len(figure))
    length = _CHARACTER * len(words)
    left = min(max(x - length / 2, 0.0), WIDTH - length)
    mark = "peak over" if over else "peak"
    return [
        f'<path class="{mark}" d="M{x:.2f} {_LINE + 4:g}V{y:.2f}"/>',
        f'<circle class="{mark}" cx="{x:.2f}" cy="{y:.2f}" r="3"/>',
        f'<text class="{mark}" x="{left:.2f}" y="{_LINE:g}">{escape(words)}</text>',
    ]


def _brief(value: int) -> str:
    """Three or four characters of a round number, for instance ``50k``."""
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:g}{letter}"
    return str(value)


def _shortened(name: str, room: float) -> str:
    """``name`` in so many units."""
    return shortened(name, max(int(room / _CHARACTER), 3), "…")


def _svg(height: float, says: str, drawn: Sequence[str]) -> str:
    """``says`` is what a screen reader reads."""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(says)}">'
        f"{''.join(drawn)}</svg>"
    )
