"""The report as one self-contained HTML page: no script, nothing fetched, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from budgets import cost
from budgets.charts import bars, markup, timeline
from budgets.count import Count
from budgets.figures import INSTRUCTIONS, model_figures
from budgets.limits import Limits
from budgets.lines import (
    FIRST_CORE,
    Share,
    change_line,
    changes_heading,
    error_text,
    label,
    other_lines,
    rows,
    shares,
    total_lines,
    unchecked_lines,
)
from budgets.table import cells
from budgets.verdict import Verdict

# A long list is folded, and then cut: every figure of every layer may have changed.
LINES_SHOWN = 8
LINES_LISTED = 1000

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2126; --faint: #5a646d; --ground: #f4f6f8;
  --card: #fff; --line: #dce2e7; --track: #e9edf1; --good: #1d7a46; --over: #b3261e;
  --parameters: #2f6fb4; --macs: #a85a16; --instructions: #7a4fb0; --memory: #17817a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaed; --faint: #a0abb4; --ground: #101316;
  --card: #181c20; --line: #2f363c; --track: #272d33; --good: #62c98d; --over: #ff8a80;
  --parameters: #6aa9ea; --macs: #e39a57; --instructions: #b596e8; --memory: #4fc0b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem .75rem 3rem; max-width: 66rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .7rem; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; }
small { color: var(--faint); font-weight: normal; font-size: .85rem; }
section { margin-top: 2.2rem; }
a { color: inherit; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem .75rem; margin: 0 0 .75rem; min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 0 .75rem; }
.badge { display: inline-block; font-size: .8rem; font-weight: 600; padding: 0 .55rem;
  border: 1px solid; border-radius: 1rem; vertical-align: .1em; }
.within { color: var(--good); } .over { color: var(--over); font-weight: 600; }
ul.over { font-weight: normal; }
.track { display: block; position: relative; height: .55rem; margin-top: .15rem;
  border-radius: .3rem; background: var(--track); }
.track span { display: block; height: 100%; border-radius: .3rem; background: var(--good); }
.over .track span { background: var(--over); }
.track i { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px;
  background: var(--ink); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 0; }
dt { color: var(--faint); font-size: .85rem; } dd { margin: 0; font-size: 1.15rem;
  font-weight: 600; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; max-width: 34rem;
  font: 11px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
text { fill: var(--ink); white-space: pre; } .end { text-anchor: end; }
text.faint { fill: var(--faint); }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
rect.track { fill: var(--track); } .bar { fill: var(--hue); }
.rest { fill: var(--hue); opacity: .45; }
.grid { stroke: var(--line); } .area { fill: var(--hue); opacity: .75; }
.step { fill: transparent; } .step:hover { fill: var(--ink); opacity: .2; }
path.limit { stroke: var(--over); stroke-width: 1.5; stroke-dasharray: 5 3; }
text.limit { fill: var(--over); }
path.peak { stroke: var(--ink); stroke-width: .7; } circle.peak { fill: var(--ink); }
path.peak.over { stroke: var(--over); } circle.over, text.over { fill: var(--over); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .28rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
  font-weight: normal; }
thead th { color: var(--faint); vertical-align: bottom; } th:first-child { text-align: left; }
.cores { width: 100%; } .cores th, .cores td { padding-inline: .2rem; }
.wide { overflow: auto; max-height: 85vh; overflow-wrap: normal; }
.wide table { width: 100%; border-collapse: separate; border-spacing: 0; }
.wide td { white-space: nowrap; }
.wide thead th { position: sticky; top: 0; background: var(--card); z-index: 1; }
.wide th:first-child { position: sticky; left: 0; background: var(--card); min-width: 15rem;
  overflow-wrap: anywhere; border-right: 1px solid var(--line); }
.wide thead th:first-child { z-index: 2; }
.wide :is(td, thead th):nth-child(-n+3) { text-align: left; }
.wide tbody tr:hover > * { background: var(--track); }
.wide tfoot > tr > * { font-weight: 600; border-bottom: 0; }
summary { cursor: pointer; }
@media (max-width: 40rem) { .wide th:first-child { min-width: 8.5rem; } }
"""


def as_html(verdicts: Sequence[Verdict], limits: Limits, clock_mhz: float) -> str:
    """A whole page; every name is escaped, and a policy in its head forbids fetching anything.

    ``clock_mhz`` is the clock that milliseconds are for.
    """
    body = [_contents(verdicts)] if len(verdicts) > 1 else []
    body += [
        _subject(place, verdict, limits, clock_mhz) for place, verdict in enumerate(verdicts, 1)
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Budgets</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Budgets</h1>
{_joined(body)}
</body>
</html>
"""


def _contents(verdicts: Sequence[Verdict]) -> str:
    items = [
        f'<li><a href="#subject-{place}">{markup(v.count.name)}</a> {_badge(v)}</li>'
        for place, v in enumerate(verdicts, 1)
    ]
    return f'<nav class="card"><ul>{"".join(items)}</ul></nav>'


def _subject(place: int, verdict: Verdict, limits: Limits, clock_mhz: float) -> str:
    count = verdict.count
    notes = [line.strip() for line in total_lines(count, clock_mhz)]
    parts = [
        f'<section id="subject-{place}">',
        f"<h2>{markup(count.name)} <small>{escape(count.kind)}</small> {_badge(verdict)}</h2>",
        _card("Limits", _limits(verdict, limits)),
        _changes(verdict),
        _card("Figures without a limit", _figures(count, limits)),
        _charts(count, limits, clock_mhz),
        _layers(verdict),
        _card("Notes", f"<ul>{_items(notes)}</ul>"),
        "</section>",
    ]
    return _joined(parts)


def _badge(verdict: Verdict) -> str:
    broken = len(verdict.violations)
    if not broken:
        return '<span class="badge within">within the limits</span>'
    return f'<span class="badge over">breaks {broken:,} limit{"s" if broken > 1 else ""}</span>'


def _limits(verdict: Verdict, limits: Limits) -> str:
    return _joined(
        [
            *map(_share, shares(verdict.count, limits)),
            _lines(other_lines(verdict, limits), ' class="over"'),
            *(f"<p><small>{escape(line)}</small></p>" for line in unchecked_lines(verdict)),
        ]
    )


def _share(share: Share) -> str:
    """A bar as long as the use of the limit; beyond it, of what is used, with a mark at the limit.

    A bar of 245 % would leave the page.
    """
    width, style, mark = share.percent, "", ""
    if not share.holds:
        width, style = 100.0, ' class="over"'
        mark = f'<i style="left:{100 * share.allowed / share.value:.2f}%"></i>'
    bar = f'<span style="width:{width:.2f}%"></span>{mark}'
    line = escape(share.line).replace(" %", "&nbsp;%")
    return f'<p{style}>{line}<span class="track">{bar}</span></p>'


def _lines(lines: Sequence[str], style: str = "") -> str:
    """A list of printable lines, folded from `LINES_SHOWN` on."""
    if not lines:
        return ""
    text = f"<ul{style}>{_items(lines[:LINES_SHOWN])}</ul>"
    folded = list(lines[LINES_SHOWN:LINES_LISTED])
    if not folded:
        return text
    if len(lines) > LINES_LISTED:
        folded.append(f"and {len(lines) - LINES_LISTED:,} more")
    summary = f"<summary>{len(lines) - LINES_SHOWN:,} more</summary>"
    return f"{text}<details>{summary}<ul{style}>{_items(folded)}</ul></details>"


def _changes(verdict: Verdict) -> str:
    heading = changes_heading(verdict)
    if not heading:
        return ""
    lines = _lines(list(map(change_line, verdict.changes)))
    return _card(escape(heading[0].upper() + heading[1:]), lines or "<p>No figure differs.</p>")


def _figures(count: Count, limits: Limits) -> str:
    """Those that no bar shows; instructions have a table of their own."""
    shown = {
        name: value
        for name, value in model_figures(count).items()
        if name not in limits.model and not name.startswith(INSTRUCTIONS)
    }
    items = "".join(
        f"<div><dt>{label(name)}</dt><dd>{value:,}</dd></div>" for name, value in shown.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def _charts(count: Count, limits: Limits, clock_mhz: float) -> str:
    """Parameters and MACs as the limits count them; instructions and memory of the device graph."""
    device = count.on_device
    trained = "by layer" if count.deployed is None else "by layer, as trained"
    parameters = bars([(row.name, row.parameters) for row in count.layers], "parameters")
    macs = bars([(row.name, row.macs) for row in count.layers], "MACs")
    first = [(row.name, row.instructions.get(FIRST_CORE, 0)) for row in device.layers]
    estimated = bars(first, "instructions")
    alive = [(row.name, row.live_bytes) for row in device.layers]
    memory = timeline(alive, limits.model.get("peak_activation_bytes"))
    without = ", without some operators (see notes)" if device.not_costed else ""
    beside = _joined(
        [
            _figure("Memory over time", "memory", "bytes alive, step by step", memory),
            _card(f"Cores <small>estimated{without}</small>", _cores(device, clock_mhz)),
        ]
    )
    figures = _joined(
        [
            _figure("Parameters", "parameters", trained, parameters),
            _figure("MACs", "macs", trained, macs),
            _figure(
                "Instructions", "instructions", f"by layer, {FIRST_CORE}, estimated", estimated
            ),
            f"<div>{beside}</div>" if beside else "",
        ]
    )
    return f'<div class="pair">{figures}</div>' if figures else ""


def _figure(title: str, hue: str, says: str, chart: str) -> str:
    return _card(f"{title} <small>{says}</small>", chart, f' style="--hue:var(--{hue})"')


def _cores(device: Count, clock_mhz: float) -> str:
    """Instructions and time by core; nothing where no operator's cost is known."""
    if not any(device.instructions.values()):
        return ""
    lines = []
    for name, instructions in device.instructions.items():
        core = cost.cores()[name]
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{instructions:,}</td>'
            f"<td>{error_text(core)}</td>"
            f"<td>{core.milliseconds(instructions, clock_mhz):,.0f} ms</td></tr>"
        )
    return (
        '<table class="cores"><thead><tr><th scope="col">core</th>'
        '<th scope="col">instructions</th><th scope="col">error</th>'
        f'<th scope="col">at {clock_mhz:g} MHz</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _layers(verdict: Verdict) -> str:
    """The whole table, in a box of its own that scrolls; a layer over a limit is red."""
    head, *body, last = cells(verdict.count)
    over = {violation.layer for violation in verdict.violations if violation.layer}
    lines = [
        _row(line, "td", ' class="over"' if row.shown.name in over else "")
        for line, row in zip(body, rows(verdict.count), strict=True)
    ]
    return _card(
        "Layers",
        '<div class="wide" role="region" aria-label="Layers" tabindex="0"><table>'
        f"<thead>{_row(head, 'th')}</thead>\n<tbody>\n{_joined(lines)}\n</tbody>\n"
        f"<tfoot>{_row(last, 'td')}</tfoot></table></div>",
    )


def _row(line: Sequence[str], tag: str, style: str = "") -> str:
    """A line of printable cells, the first a heading that may wrap where a name has its parts."""
    first, *others = map(escape, line)
    for mark in "._/":
        first = first.replace(mark, f"{mark}<wbr>")
    scope, opened = ("row", "<td>") if tag == "td" else ("col", '<th scope="col">')
    text = "".join(f"{opened}{cell}</{tag}>" for cell in others)
    return f'<tr><th scope="{scope}"{style}>{first}</th>{text}</tr>'


def _card(title: str, text: str, style: str = "") -> str:
    """A box with a heading; nothing where there is nothing to say."""
    return f'<div class="card"{style}><h3>{title}</h3>\n{text}\n</div>' if text else ""


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part)
