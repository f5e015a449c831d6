"""``python -m convert --target tflite-micro``: a QAT checkpoint to a firmware bundle."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from firmware_ref.cli import Parser
from firmware_ref.errors import HOLDS, InputError, check_folder, guarded

TARGETS = ("tflite-micro",)
SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "esc10-report-125k.safetensors"


def parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m convert``."""
    result = Parser(
        prog="python -m convert",
        description="Turn a QAT checkpoint into a full INT8 TFLite flatbuffer and the C files that "
        "hold it. The scales are those training learned; nothing calibrates again.",
        epilog="example: python -m convert --target tflite-micro --out build/bundle",
    )
    result.add_argument("--target", required=True, help=f"one of: {', '.join(TARGETS)}")
    result.add_argument(
        "--checkpoint", default=str(SHIPPED_CHECKPOINT), help="qat.safetensors (default: shipped)"
    )
    result.add_argument(
        "--out", default="build/bundle", help="folder to write into (default: build/bundle)"
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
    from convert.bundle import manifest, write_bundle
    from convert.pipeline import convert

    started = time.perf_counter()

    def say(stage: str) -> None:
        if not args.quiet:
            elapsed = time.perf_counter() - started
            print(f"[{elapsed:5.1f} s] {stage}", file=sys.stderr, flush=True)

    conversion = convert(args.checkpoint, say, args.limits)
    files = write_bundle(conversion, Path(args.out))
    say("done")
    if args.json:
        print(json.dumps({"ok": True, **manifest(conversion)}, indent=2))
    else:
        for file in files:
            print(f"{file.stat().st_size:>9,} bytes  {file}")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
