"""The report as one self-contained HTML page: no script, nothing fetched, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from budgets.count import Count, LayerCount
from budgets.limits import Limits
from budgets.report import (
    Share,
    Verdict,
    named_lines,
    printable,
    shape_text,
    shares,
    total_lines,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #5c646c; --ground: #fff; --line: #d8dde2;
  --parameters: #2f6fb4; --macs: #b4631e; --over: #b3261e; --track: #eceff2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --faint: #a2abb3; --ground: #15181b;
  --line: #343a40; --parameters: #6aa9ea; --macs: #e39a57; --over: #ff8a80; --track: #262b30; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
small { color: var(--faint); font-weight: normal; overflow-wrap: anywhere; }
.over { color: var(--over); font-weight: 600; overflow-wrap: anywhere; }
.track { display: block; height: .5rem; background: var(--track); }
.bar { display: block; height: 100%; }
.parameters { background: var(--parameters); } .macs { background: var(--macs); }
table { width: 100%; border-collapse: collapse; table-layout: fixed; margin-top: .8rem; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); vertical-align: top;
  text-align: left; font-variant-numeric: tabular-nums; }
th:first-child { width: 44%; overflow-wrap: anywhere; } tbody th { font-weight: normal; }
tbody small { display: block; }
tfoot th, tfoot td { font-weight: 600; border: 0; }
"""


def as_html(verdicts: Sequence[Verdict], limits: Limits) -> str:
    """A whole page; every name is escaped, and a policy in its head forbids fetching anything."""
    body = "\n".join(_subject(verdict, limits) for verdict in verdicts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Budgets</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Budgets</h1>
{body}
</body>
</html>
"""


def _subject(verdict: Verdict, limits: Limits) -> str:
    count = verdict.count
    lines = [f"<h2>{_text(count.name)} <small>{count.kind}</small></h2>"]
    lines += [_share(share) for share in shares(count, limits)]
    lines += [f'<p class="over">{escape(line)}</p>' for line in named_lines(verdict)]
    lines += ["<ul>", *(f"<li>{escape(line)}</li>" for line in total_lines(count)), "</ul>"]
    return "\n".join([*lines, _layers(count)])


def _share(share: Share) -> str:
    kind = "parameters" if share.what == "parameters" else "macs"
    style = "" if share.holds else ' class="over"'
    return f"<p{style}>{share.line}{_bar(kind, share.value, share.allowed)}</p>"


def _layers(count: Count) -> str:
    most_parameters = max((row.parameters for row in count.layers), default=0)
    most_macs = max((row.macs for row in count.layers), default=0)
    rows = "\n".join(_row(row, most_parameters, most_macs) for row in count.layers)
    return f"""<table>
<thead><tr>
<th scope="col">Layer</th><th scope="col">Parameters</th><th scope="col">MACs</th>
</tr></thead>
<tbody>
{rows}
</tbody>
<tfoot><tr>
<th scope="row">total</th><td>{count.parameters:,}</td><td>{count.macs:,}</td>
</tr></tfoot>
</table>"""


def _row(row: LayerCount, most_parameters: int, most_macs: int) -> str:
    return (
        f'<tr><th scope="row">{_text(row.name)}'
        f"<small>{_text(row.op)}, {shape_text(row.output_shape)}</small></th>"
        f"<td>{row.parameters:,}{_bar('parameters', row.parameters, most_parameters)}</td>"
        f"<td>{row.macs:,}{_bar('macs', row.macs, most_macs)}</td></tr>"
    )


def _bar(kind: str, value: int, most: int) -> str:
    """A horizontal bar as long as ``value`` is of ``most``; none for 0."""
    if not value:
        return ""
    width = min(100 * value / most, 100)
    return f'<span class="track"><span class="bar {kind}" style="width:{width:.2f}%"></span></span>'


def _text(name: str) -> str:
    return escape(printable(name))
