"""``python -m convert --target c99``: a QAT checkpoint to a bundle for firmware."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from firmware_ref.cli import Parser
from firmware_ref.errors import HOLDS, InputError, check_folder, guarded

if TYPE_CHECKING:
    from convert.bundle.contents import Bundle

TARGETS = ("c99", "tflite-micro")
SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "esc10-report-125k.safetensors"
DEFAULT_OUT = "build/bundle"


def parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m convert``."""
    result = Parser(
        prog="python -m convert",
        description="Turn a QAT checkpoint into firmware: a full INT8 TFLite flatbuffer, and with "
        "it front end, network and self-test in C. The scales are those training learned; nothing "
        "calibrates again.",
        epilog="example: python -m convert --target c99 --out build/bundle",
    )
    result.add_argument("--target", required=True, help=f"one of: {', '.join(TARGETS)}")
    result.add_argument(
        "--checkpoint", default=str(SHIPPED_CHECKPOINT), help="qat.safetensors (default: shipped)"
    )
    result.add_argument(
        "--out", default=DEFAULT_OUT, help=f"folder to write into (default: {DEFAULT_OUT})"
    )
    result.add_argument(
        "--golden",
        action="append",
        default=[],
        metavar="SOUND",
        help="a sound file for the self-test; may be repeated (default: sounds made by code)",
    )
    result.add_argument("--limits", help="limits.toml to hold (default: the shipped one)")
    result.add_argument("--json", action="store_true", help="print the manifest as JSON")
    result.add_argument("--quiet", action="store_true", help="do not say each stage")
    return result


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_args(argv)
    if args.target not in TARGETS:
        raise InputError(f"--target {args.target!r} is unknown; known: {', '.join(TARGETS)}")
    check_folder(args.out, "--out")
    from convert.bundle.contents import MANIFEST_FILE, bundle
    from convert.bundle.install import install
    from convert.bundle.windows import chosen, prove
    from convert.pipeline import convert

    started = time.perf_counter()

    def say(stage: str) -> None:
        if not args.quiet:
            elapsed = time.perf_counter() - started
            print(f"[{elapsed:5.1f} s] {stage}", file=sys.stderr, flush=True)

    sounds = chosen(args.golden, say)
    conversion = convert(args.checkpoint, say, args.limits)
    say("every tensor of the self-test's windows against the reference interpreters")
    facts = prove(conversion, sounds)
    say(f"files for {args.target}")
    made = bundle(facts, args.target)
    install(made.files, Path(args.out), MANIFEST_FILE)
    say("done")
    if args.json:
        print(json.dumps({"ok": True, **made.manifest}, indent=2))
    else:
        print_bundle(made, args.out)
    return HOLDS


def print_bundle(made: Bundle, out: str) -> None:
    """Files, totals, and what to do next."""
    from convert.bundle.contents import MODEL_FILE

    for path, content in made.files.items():
        print(f"{len(content):>9,} bytes  {Path(out) / path}")
    ram, flash = made.manifest["ram_bytes"], made.manifest["flash_bytes"]
    print(f"RAM   {_sum(ram)}, and the stack")
    print(f"flash {_sum(flash)}, and {made.parts.code}")
    model = "" if out == DEFAULT_OUT else f" --model {shlex.quote(str(Path(out) / MODEL_FILE))}"
    print(f"next: ./scripts/emulate{model}    (on emulated Cortex-M4, M7, M33, M55; bit for bit)")


def _sum(amounts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{what.replace('_', ' ')} {size:,}" for what, size in amounts.items())
    return f"{sum(amounts.values()):,} bytes: {parts}"


if __name__ == "__main__":
    sys.exit(main())
