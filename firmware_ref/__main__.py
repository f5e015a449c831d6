"""``python -m firmware_ref``: verify a model bit for bit, or run it on a sound."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from firmware_ref import graph as model_file
from firmware_ref.audio import read_audio, windows
from firmware_ref.bench import measure_speed
from firmware_ref.classify import Classifier
from firmware_ref.cli import Parser
from firmware_ref.errors import (
    CHECK_FAILED,
    HOLDS,
    InputError,
    check_folder,
    guarded,
    read_bytes,
    without_commands,
    write_whole,
)
from firmware_ref.features import FeatureDefinition
from firmware_ref.isolated import isolated
from firmware_ref.oracle import ORACLES, oracle
from firmware_ref.run import Interpreter
from firmware_ref.signals import as_wav, signal_clips
from firmware_ref.verify import Mismatch, Progress, Report, compare, random_inputs, read_inputs

DEFAULT_RANDOM = 16
MOST_RANDOM = 100_000
TOP_CLASSES = 5
BAR_WIDTH = 30


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command; see ``--help``."""
    arguments = _parser().parse_args(argv)
    return int(arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m firmware_ref",
        description="Verify a model bit for bit, or run it on a sound, in device arithmetic.",
        epilog="example: python -m firmware_ref verify model.tflite --random 64; exit code: "
        "0 it holds, 1 a value differs, 2 bad input or usage",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser(
        "verify",
        help="compare every tensor with the reference interpreters",
        description="Compare every tensor of MODEL, bit for bit, with the reference interpreters. "
        "Exit code 1 when a value differs.",
    )
    check.set_defaults(command=_verify)
    check.add_argument("model", metavar="MODEL.tflite")
    check.add_argument(
        "--oracle",
        action="extend",
        nargs="+",
        choices=list(ORACLES),
        metavar="NAME",
        help=f"{' or '.join(ORACLES)}; or both (default: both)",
    )
    source = check.add_mutually_exclusive_group()
    source.add_argument(
        "--random",
        type=_count,
        metavar="N",
        help=f"N random int8 inputs (default: {DEFAULT_RANDOM})",
    )
    source.add_argument(
        "--inputs", metavar="FILE.npz", help="an array 'inputs', int8 (N, F, T, C), instead"
    )
    check.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")

    play = commands.add_parser(
        "run",
        help="classify a sound file in device arithmetic",
        description="Classify AUDIO (any file that soundfile reads) in device arithmetic.",
    )
    play.set_defaults(command=_run)
    play.add_argument("model", metavar="MODEL.tflite")
    play.add_argument("audio", metavar="AUDIO")

    pack = commands.add_parser(
        "inputs",
        help="turn sounds into an .npz of network inputs for verify --inputs",
        description="Write the int8 network input of every one-second window of AUDIO.",
    )
    pack.set_defaults(command=_inputs)
    pack.add_argument("model", metavar="MODEL.tflite")
    pack.add_argument("audio", nargs="+", metavar="AUDIO")
    pack.add_argument("--out", required=True, metavar="FILE.npz")

    make = commands.add_parser(
        "signals",
        help="write test sounds made by code",
        description="Write silence, a constant, a full-scale square wave, impulses, a sweep and "
        "noise as one-second WAV files.",
    )
    make.set_defaults(command=_signals)
    make.add_argument("--out", required=True, metavar="DIR")

    race = commands.add_parser(
        "bench",
        help="time the interpreter beside tflite-runtime's reference kernels",
        description="Time MODEL here, one input and a batch of 64, and in tflite-runtime with the "
        "reference kernels, in turn on this machine, and warn when it is busy.",
    )
    race.set_defaults(command=_bench)
    race.add_argument("model", metavar="MODEL.tflite")
    race.add_argument("--json", action="store_true", help="print JSON to stdout")

    for command in (check, play):
        command.add_argument("--json", action="store_true", help="print JSON to stdout")
    for command in (check, play, pack, make):
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_RANDOM:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are 1 to {MOST_RANDOM}")
    return int(text)


def _verify(arguments: argparse.Namespace) -> int:
    data = read_bytes(arguments.model, model_file.MAX_FILE_BYTES, "model")
    graph = model_file.parse(data, f"model {arguments.model!r}")
    if arguments.seed < 0:
        raise InputError(f"--seed={arguments.seed}; allowed are 0 and above")
    interpreter = Interpreter(graph)
    if arguments.inputs is not None:
        inputs = read_inputs(arguments.inputs)
    else:
        inputs = random_inputs(graph, arguments.random or DEFAULT_RANDOM, arguments.seed)
    chosen = [oracle(name) for name in dict.fromkeys(arguments.oracle or ORACLES)]
    show = None if arguments.quiet else _progress()
    report = compare(interpreter, data, inputs, chosen, show, isolated)
    if arguments.json:
        _print_json(report.to_dict())
    else:
        _print_lines(_report_lines(report))
    return HOLDS if report.ok else CHECK_FAILED


def _report_lines(report: Report) -> list[str]:
    rows = [["oracle", "version", "kernels", "inputs", "tensors", "values", "mismatches"]]
    for result in report.oracles:
        counts = (report.inputs, result.tensors, result.values, result.mismatches)
        texts = [result.name, result.version, result.kernels]
        rows.append(texts + [f"{count:,}" for count in counts])
    lines = _table(rows, left=3)
    for result in report.oracles:
        if result.first_mismatch:
            lines.append(_mismatch_line(result.first_mismatch, result.name))
    return lines


def _mismatch_line(found: Mismatch, name: str) -> str:
    return (
        f"MISMATCH with {name}: layer {found.layer!r} ({found.op}) at index {list(found.index)}: "
        f"expected {found.expected} ({name}), actual {found.actual} (firmware_ref); "
        f"{found.count:,} of {found.values:,} values of this layer differ, by at most "
        f"{found.largest_difference}"
    )


def _run(arguments: argparse.Namespace) -> int:
    classifier = Classifier(model_file.read(arguments.model))
    wanted = classifier.metadata
    samples = read_audio(arguments.audio, wanted.features.sample_rate_hz)
    cut = windows(samples, wanted.features)
    show = None if arguments.quiet else _progress()
    by_window = classifier.probabilities(
        classifier.inputs(cut), show and (lambda done: show(done, len(cut)))
    )
    probabilities = by_window.mean(axis=0)
    label = wanted.labels[int(probabilities.argmax())]
    seconds = wanted.features.clip_samples / wanted.features.sample_rate_hz
    if not arguments.json:
        title = f"{label}  ({_counted(len(cut), 'window')} of {seconds:g} s)"
        _print_lines([title, *_bars(wanted.labels, probabilities)])
        return HOLDS
    result = {
        "label": label,
        "probabilities": dict(zip(wanted.labels, map(float, probabilities), strict=True)),
        "windows": [
            {
                "start_seconds": number * seconds,
                "label": wanted.labels[int(row.argmax())],
                "probability": float(row.max()),
            }
            for number, row in enumerate(by_window)
        ],
    }
    _print_json(result)
    return HOLDS


def _inputs(arguments: argparse.Namespace) -> int:
    check_folder(Path(arguments.out).parent, "--out")
    classifier = Classifier(model_file.read(arguments.model))
    wanted = classifier.metadata.features
    parts = [
        classifier.inputs(windows(read_audio(path, wanted.sample_rate_hz), wanted))
        for path in arguments.audio
    ]
    stream = io.BytesIO()
    np.savez(stream, inputs=np.concatenate(parts))
    write_whole(arguments.out, stream.getvalue())
    if not arguments.quiet:
        total = _counted(sum(map(len, parts)), "window")
        print(f"{total} of {_counted(len(parts), 'sound')}: {arguments.out!a}")
    return HOLDS


def _signals(arguments: argparse.Namespace) -> int:
    check_folder(arguments.out, "--out")
    definition = FeatureDefinition()
    clips = signal_clips(definition)
    for name, samples in clips.items():
        path = Path(arguments.out) / f"{name}.wav"
        write_whole(path, as_wav(samples, definition.sample_rate_hz))
    if not arguments.quiet:
        print(f"{len(clips)} sounds made by code in {arguments.out!a}: {', '.join(clips)} (.wav)")
    return HOLDS


def _bench(arguments: argparse.Namespace) -> int:
    data = read_bytes(arguments.model, model_file.MAX_FILE_BYTES, "model")
    speed = measure_speed(model_file.parse(data, f"model {arguments.model!r}"), data)
    if arguments.json:
        _print_json(speed.to_dict())
    else:
        _print_lines(speed.lines())
    if speed.warning:
        print(f"warning: {speed.warning}", file=sys.stderr)
    return HOLDS


def _print_lines(lines: Sequence[str]) -> None:
    """Names in them come from files: a CI's log must not take one for a command."""
    print("\n".join(map(without_commands, lines)))


def _print_json(values: object) -> None:
    """The same; no line of JSON starts with a name, and a reader undoes the escape."""
    print(json.dumps(values, indent=2).replace("##[", "\\u0023#["))


def _bars(labels: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """The most probable classes, one a line."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    width = max(len(labels[i]) for i in order)
    return [
        f"  {labels[i]:<{width}}  {probabilities[i]:6.1%}  "
        + "#" * round(BAR_WIDTH * float(probabilities[i]))
        for i in order
    ]


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Aligned columns; the first ``left`` of them to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _counted(number: int, what: str) -> str:
    """For instance ``1 window``, ``3 windows``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _progress() -> Progress:
    """One line that is rewritten on a terminal; a line for each tenth in a log."""
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if terminal:
            end = "\n" if done == total else ""
            print(f"\r{done}/{_counted(total, 'input')}", end=end, file=sys.stderr, flush=True)
        elif done * 10 // total > (done - 1) * 10 // total:
            print(f"{done}/{_counted(total, 'input')}", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
