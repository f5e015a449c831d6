"""``python -m budgets``: parameters and MACs of presets, checkpoints and ``.tflite`` files."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from budgets.baseline import changes, grown, load_baseline, subject_of
from budgets.check import check, growth_of, refuse_unused, unchecked
from budgets.count import CONVENTIONS, Count, count_graph, count_network
from budgets.deployed import refuse_endless
from budgets.document import as_json
from budgets.github import append_summary, notice, workflow_commands
from budgets.limits import DEFAULT_FILE, Limits, load_limits
from budgets.lines import printable, violation_line
from budgets.markdown import as_markdown
from budgets.page import as_html
from budgets.table import as_table
from budgets.verdict import Verdict
from firmware_ref import graph
from firmware_ref.arch import PRESETS, Network, layers, preset
from firmware_ref.cli import Parser
from firmware_ref.errors import CHECK_FAILED, HOLDS, InputError, guarded, read_bytes, write_whole
from firmware_ref.lowering import lower
from firmware_ref.manifest import read_checkpoint_header

EXAMPLE = "python -m budgets report-125k"
FORMATS = ("table", "markdown", "json", "html")
SUFFIXES = {".html": "html", ".md": "markdown", ".json": "json"}
CLOCKS_MHZ = (1.0, 10_000.0)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m budgets",
        description="Count what a network costs on a device against the limits, by layer.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {EXAMPLE}\n\nconventions:\n"
        + "".join(f"  {name}: {text}\n" for name, text in CONVENTIONS.items())
        + "\nexit code: 0 within every limit, 1 over one, 2 bad input or usage",
    )
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="SUBJECT",
        help=f"a preset ({', '.join(PRESETS)}), a checkpoint (.safetensors) or a .tflite file",
    )
    parser.add_argument(
        "--limits", metavar="FILE", help=f"use these limits instead of budgets/{DEFAULT_FILE.name}"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--format", choices=FORMATS, help="default: by the end of --out's FILE, else table"
    )
    forms.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="an earlier report by --json: show what changed, and hold the limits of growth",
    )
    parser.add_argument(
        "--baseline-optional",
        action="store_true",
        help="let the file of --baseline be missing, as in a first run: growth is not checked then",
    )
    parser.add_argument(
        "--clock-mhz",
        type=float,
        default=100.0,
        metavar="MHZ",
        help="clock that estimated milliseconds are for (default: 100)",
    )
    parser.add_argument(
        "--github",
        action="store_true",
        help="in GitHub Actions: annotate broken limits, and add the report to the step's summary "
        "in place of printing it",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"write the report there, not to stdout; {', '.join(SUFFIXES)} say in which format",
    )
    parser.add_argument(
        "--allow-unused",
        action="store_true",
        help="let patterns of layers match none: where limits are of more models than are given",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print nothing but broken limits (to stderr), and JSON where that is asked for",
    )
    return parser


def count_subject(subject: str) -> Count:
    """Count a preset by name, or a ``.safetensors`` or ``.tflite`` file by path."""
    if subject in PRESETS:
        return count_network(preset(subject), kind="preset")
    path = Path(subject)
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        data = read_bytes(path, graph.MAX_FILE_BYTES, "model")
        model = graph.parse(data, f"model {str(path)!r}")
        count = count_graph(model, name=subject, file_bytes=len(data))
        return replace(count, sha256=hashlib.sha256(data).hexdigest())
    if suffix == ".safetensors":
        manifest, elements = read_checkpoint_header(path)
        network = Network.from_dict(manifest["network"])
        refuse_endless(network)
        _check_tensors(subject, network, manifest["stage"], elements)
        return count_network(network, name=subject, kind="checkpoint")
    raise InputError(
        f"unknown subject {subject!r}; give a preset ({', '.join(PRESETS)}), a .safetensors "
        "checkpoint or a .tflite file"
    )


def _check_tensors(subject: str, network: Network, stage: str, elements: Mapping[str, int]) -> None:
    """Refuse a checkpoint whose weights are not of the sizes of the network it claims."""
    if stage == "qat":
        wanted = {
            t.name: math.prod(t.shape)
            for t in lower(network).tensors
            if t.data is None and t.name.endswith(("/weight", "/bias"))
        }
    else:
        inner = {"sub_spectral_norm": ".norm.weight"}
        wanted = {
            f"{layer.name}{inner.get(layer.kind, '.weight')}": layer.weights
            for layer in layers(network)
            if layer.weights
        }
    held = {name: elements.get(name, elements.get(f"module/{name}", 0)) for name in wanted}
    for name, size in wanted.items():
        if held[name] != size:
            raise InputError(
                f"checkpoint {subject!r}: tensor {name!r} has {held[name]:,} elements, the network "
                f"it claims {size:,}; restore the file"
            )


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Report on every subject; 0 if all are within the limits, 1 if not."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.subjects:
        raise InputError(f"no SUBJECT given; for example: {EXAMPLE} (--help lists all)")
    if not CLOCKS_MHZ[0] <= options.clock_mhz <= CLOCKS_MHZ[1]:
        raise InputError(
            f"--clock-mhz={options.clock_mhz:g}; allowed is a number from {CLOCKS_MHZ[0]:g} to "
            f"{CLOCKS_MHZ[1]:,.0f}"
        )
    if options.baseline_optional and options.baseline is None:
        raise InputError("--baseline-optional is of --baseline FILE, which is not given; give both")
    limits = load_limits(options.limits)
    counts = [count_subject(name) for name in options.subjects]
    if not options.allow_unused:
        refuse_unused(limits, counts)
    verdicts = judge(counts, limits, options.baseline, options.baseline_optional)
    said = []
    if options.baseline is not None and verdicts[0].baseline is None:
        said = [f"baseline {printable(options.baseline)} is not there yet: growth is not checked"]

    form = _form(options)
    text = render(form, verdicts, limits, options.clock_mhz)
    if options.github:
        append_summary(as_markdown(verdicts, limits, options.clock_mhz))
        print("".join(map(notice, said)) + workflow_commands(verdicts), end="")
    if options.out:
        write_whole(options.out, text.encode())
    elif not options.github and (form == "json" or not options.quiet):
        if form == "table" and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            text = as_table(verdicts, limits, options.clock_mhz, colour=True)
        print(text, end="")
    if options.out and not options.quiet:
        print(f"wrote {options.out!a}")
    if said and not options.github and not options.quiet:
        print(f"note: {said[0]}", file=sys.stderr)
    broken = [violation for verdict in verdicts for violation in verdict.violations]
    for violation in broken:
        print(f"over limit: {violation_line(violation)}", file=sys.stderr)
    return CHECK_FAILED if broken else HOLDS


def _form(options: argparse.Namespace) -> str:
    """One of `FORMATS`: as asked for, else as the file of ``--out`` is called."""
    if options.json or options.format:
        return "json" if options.json else str(options.format)
    return SUFFIXES.get(Path(options.out or "").suffix.lower(), "table")


def judge(
    counts: Sequence[Count], limits: Limits, baseline_file: str | None, optional: bool = False
) -> list[Verdict]:
    """Hold every count against the limits, and against the baseline where there is one.

    Without a file where it is ``optional``, growth is unchecked.
    """
    if baseline_file is None and limits.growth_percent:
        raise InputError("growth is limited, and no --baseline FILE given to compare with")
    if baseline_file is None or (optional and not os.path.exists(baseline_file)):
        growth = list(map(growth_of, limits.growth_percent))
        return [
            Verdict(c, tuple(check(c, limits)), tuple(dict.fromkeys(unchecked(c, limits) + growth)))
            for c in counts
        ]
    baseline = load_baseline(baseline_file)
    verdicts = []
    for count in counts:
        name, before = subject_of(baseline, count, baseline_file, only=len(counts) == 1)
        violations = (*check(count, limits), *grown(count, before, limits))
        changed = tuple(changes(count, before))
        verdicts.append(Verdict(count, violations, tuple(unchecked(count, limits)), changed, name))
    return verdicts


def render(form: str, verdicts: Sequence[Verdict], limits: Limits, clock_mhz: float) -> str:
    """The report in one of `FORMATS`."""
    if form == "json":
        return as_json(verdicts, limits)
    write = {"table": as_table, "markdown": as_markdown, "html": as_html}[form]
    return write(verdicts, limits, clock_mhz)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
