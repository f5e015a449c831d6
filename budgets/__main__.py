"""``python -m budgets``: parameters and MACs of presets, checkpoints and ``.tflite`` files."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from budgets.count import CONVENTIONS, Count, count_graph, count_network
from budgets.limits import DEFAULT_FILE, Limits, check, load_limits
from budgets.page import as_html
from budgets.report import Verdict, as_json, as_markdown, as_table, violation_line
from firmware_ref import graph
from firmware_ref.arch import PRESETS, Network, layers, preset
from firmware_ref.cli import Parser
from firmware_ref.errors import CHECK_FAILED, HOLDS, InputError, guarded, write_whole
from firmware_ref.lowering import lower
from firmware_ref.manifest import read_checkpoint_header

EXAMPLE = "python -m budgets report-125k"
FORMATS: Mapping[str, Callable[[Sequence[Verdict], Limits], str]] = {
    "table": as_table,
    "markdown": as_markdown,
    "json": as_json,
    "html": as_html,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m budgets",
        description="Count parameters and multiply-accumulates against the limits, by layer.",
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
    forms.add_argument("--format", choices=tuple(FORMATS), default="table", help="default: table")
    forms.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--out", metavar="FILE", help="write the report there, not to stdout")
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but broken limits (to stderr)"
    )
    return parser


def count_subject(subject: str) -> Count:
    """Count a preset by name, or a ``.safetensors`` or ``.tflite`` file by path."""
    if subject in PRESETS:
        return count_network(preset(subject), kind="preset")
    path = Path(subject)
    if path.suffix == ".tflite":
        model = graph.read(path)
        return count_graph(model, name=subject, file_bytes=path.stat().st_size)
    if path.suffix == ".safetensors":
        manifest, elements = read_checkpoint_header(path)
        network = Network.from_dict(manifest["network"])
        _check_tensors(subject, network, manifest["stage"], elements)
        return count_network(network, name=subject, kind="checkpoint")
    raise InputError(
        f"unknown subject {subject!r}; give a preset ({', '.join(PRESETS)}), a .safetensors "
        "checkpoint or a .tflite file"
    )


def _check_tensors(subject: str, network: Network, stage: str, elements: Mapping[str, int]) -> None:
    """Refuse a checkpoint whose weights are not of the sizes of the network it claims."""
    if stage == "qat":
        graph = lower(network)
        wanted = {
            t.name: math.prod(t.shape)
            for t in graph.tensors
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
    limits = load_limits(options.limits)
    counts = [count_subject(subject) for subject in options.subjects]
    verdicts = [Verdict(count, tuple(check(count, limits))) for count in counts]

    render = FORMATS["json" if options.json else options.format]
    if options.out:
        write_whole(options.out, render(verdicts, limits).encode())
    elif options.json or not options.quiet:
        if render is as_table and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            render = partial(as_table, colour=True)
        print(render(verdicts, limits), end="")
    if options.out and not options.quiet:
        print(f"wrote {options.out!a}")
    broken = [violation for verdict in verdicts for violation in verdict.violations]
    for violation in broken:
        print(f"over limit: {violation_line(violation)}", file=sys.stderr)
    return CHECK_FAILED if broken else HOLDS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
