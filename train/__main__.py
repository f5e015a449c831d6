"""``python -m train``: train a network; evaluate: measure one; more by ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firmware_ref.cli import Parser
from firmware_ref.errors import HOLDS, InputError, check_folder, guarded

if TYPE_CHECKING:  # torch is imported by the commands, not by --help
    from train.config import Config
    from train.data import Source
    from train.dataset import Dataset
    from train.report import Report

FORMATS = ("text", "markdown", "html", "json")


def train_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train``."""
    parser = Parser(
        prog="python -m train",
        description="Train a network in float, then quantisation-aware.",
        epilog="example: python -m train --config esc10 --data recordings --fold 1 --out runs/1; "
        f"see also: python -m train {{{','.join(COMMANDS)}}} --help",
    )
    _config_arguments(parser)
    _data_arguments(parser, 1, "official fold to leave out and test on (default 1)")
    parser.add_argument(
        "--out", default="runs/latest", help="folder to write into (default: runs/latest)"
    )
    parser.add_argument("--limits", help="limits.toml to hold (default: the shipped one)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    _output_arguments(parser)
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train evaluate``."""
    parser = Parser(
        prog="python -m train evaluate",
        description="Measure a checkpoint (torch) or a .tflite (device arithmetic) on a fold.",
        epilog="example: python -m train evaluate --model model.tflite --data recordings --fold 1",
    )
    parser.add_argument("--model", required=True, help="a .safetensors checkpoint or a .tflite")
    parser.add_argument("--dataset", default="esc10", help="name or .csv (default: esc10)")
    _data_arguments(parser, None, "official fold (default: the one the model never heard)")
    parser.add_argument("--out", help="folder for the report: JSON, Markdown, HTML, figures")
    parser.add_argument("--format", choices=FORMATS, default="text", help="what is printed")
    _output_arguments(parser)
    return parser


def correction_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train spectrum-correction``."""
    parser = Parser(
        prog="python -m train spectrum-correction",
        description="Measure each device's spectrum correction on the training split.",
        epilog="example: python -m train spectrum-correction --config esc10-devices "
        "--data recordings --fold 1 --out build/correction",
    )
    _config_arguments(parser)
    _data_arguments(parser, 1, "official fold that is left out (default 1)")
    parser.add_argument("--out", required=True, help="folder for the coefficients and the plot")
    _output_arguments(parser)
    return parser


def ablate_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train ablate``."""
    parser = Parser(
        prog="python -m train ablate",
        description="Train with every technique, then without each of them, one at a time.",
        epilog="example: python -m train ablate --config esc10-devices --data recordings "
        "--out runs/ablation",
    )
    _config_arguments(parser)
    _data_arguments(parser, 1, "official fold to leave out and test on (default 1)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="how many, from the config's on (default 1)",
    )
    only = "a technique to switch off, such as mix-up; repeatable (default: each that is on)"
    parser.add_argument("--only", action="append", default=[], metavar="TECHNIQUE", help=only)
    parser.add_argument("--out", default="runs/ablation", help="folder to write into")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted ablation")
    _output_arguments(parser)
    return parser


def summarize_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train summarize``."""
    parser = Parser(
        prog="python -m train summarize",
        description="Tabulate finished runs of several folds and seeds: means and spread.",
        epilog="example: python -m train summarize runs/* --out build/summary",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", help="folder for Markdown, JSON and the confusion matrix")
    _output_arguments(parser)
    return parser


def bench_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train bench``."""
    parser = Parser(
        prog="python -m train bench",
        description="Measure training and feature extraction beside the plain way.",
        epilog="example: python -m train bench --json",
    )
    _output_arguments(parser)
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="esc10", help="shipped name or .toml (default: esc10)")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="section.key=value",
        help="change keys, as in --set seed=1 float.epochs=64",
    )


def _data_arguments(parser: argparse.ArgumentParser, fold: int | None, fold_help: str) -> None:
    parser.add_argument("--data", help="folder of the recordings (default: $ASC_DATA)")
    parser.add_argument("--fold", type=int, default=fold, help=fold_help)
    parser.add_argument(
        "--cache", help="folder of extracted features (default: $ASC_CACHE or ~/.cache/tinyscene)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out recordings that cannot be read"
    )


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        parser, command = COMMANDS[first]
        return command(parser().parse_args(arguments[1:]))
    if first and not first.startswith("-"):
        raise InputError(
            f"unknown command {first!r}; allowed: {', '.join(COMMANDS)}, or options to train"
        )
    return _train(train_parser().parse_args(arguments))


def _train(args: argparse.Namespace) -> int:
    from train import distributed
    from train.run import RUN_FILE

    with distributed.processes(), _resumable(Path(args.out), RUN_FILE):
        return _train_here(args)


def _train_here(args: argparse.Namespace) -> int:
    """In this process, which may be one of several: the first alone tells how it goes."""
    from budgets.limits import load_limits
    from train import distributed
    from train.progress import EpochLog
    from train.qat_stage import QAT_FILE
    from train.run import Console, run

    first = distributed.is_first()
    args.quiet = args.quiet or not first
    config, dataset, source = _prepared(args)
    out, limits = Path(args.out), load_limits(args.limits)
    console = Console(EpochLog(args.quiet, out), _warn) if first else Console.silent()
    report = run(config, dataset, args.fold, out, args.resume, source, console, limits)
    if first:
        _print(report, "json" if args.json else "text")
    if not (args.json or args.quiet):
        print(
            f"report: {out / 'report.html'}\n"
            f"next: python -m convert --target tflite-micro --checkpoint {out / QAT_FILE} "
            f"--out {out / 'bundle'}"
        )
    return HOLDS


@contextmanager
def _resumable(out: Path, claim: str) -> Iterator[None]:
    """Say how to go on after an interruption; a run that began has left ``claim`` in ``out``."""
    try:
        yield
    except KeyboardInterrupt:
        began = any(out.glob(claim))
        resume, anew = "the same command with --resume goes on", "nothing was begun, start again"
        raise KeyboardInterrupt(f"interrupted; {resume if began else anew}") from None


def _evaluate(args: argparse.Namespace) -> int:
    from train.assess import assess
    from train.datasets import data_folder, load_dataset
    from train.page import write_report

    if args.out:
        _check_no_run(args.out)
    dataset = load_dataset(args.dataset, data_folder(args.data))
    report = assess(Path(args.model), dataset, args.fold, _source(args), _warn)
    if args.out:
        write_report(report, Path(args.out))
    _print(report, "json" if args.json else args.format)
    return HOLDS


def _correct(args: argparse.Namespace) -> int:
    from train import prepare, spectrum_correction

    _check_no_run(args.out)
    config, dataset, source = _prepared(args)
    clips = prepare.split(config, dataset, args.fold).train  # those that a run learns from
    clips = source.usable(clips, prepare.training_cut(config, source), _warn)
    moments = config.augment.spectrum_correction_moments
    gains = spectrum_correction.measure(clips, source.definition, moments, source.progress)
    out = Path(args.out)
    prepare.write_correction(out, gains, source, clips)
    files = {"coefficients": out / prepare.CORRECTION_FILE, "plot": out / prepare.CORRECTION_PLOT}
    if args.json:
        print(json.dumps({"ok": True, **{name: str(path) for name, path in files.items()}}))
    else:
        print("\n".join(f"{name:<13} {path}" for name, path in files.items()))
    return HOLDS


def _ablate(args: argparse.Namespace) -> int:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("ablate trains in one process; start it without torchrun")
    from train.ablate import ablate, as_text, seeds_from, variants
    from train.progress import EpochLog
    from train.run import RUN_FILE, Console

    def console(folder: Path) -> Console:
        return Console(EpochLog(args.quiet, folder), _warn)

    out = Path(args.out)
    with _resumable(out, f"*/*/{RUN_FILE}"):
        config, dataset, source = _prepared(args)
        configs, seeds = variants(config, args.only), seeds_from(config.seed, args.seeds)
        found = ablate(configs, seeds, dataset, args.fold, out, args.resume, source, console)
    print(json.dumps({"ok": True, **found.to_dict()}, indent=2) if args.json else as_text(found))
    return HOLDS


def _summarize(args: argparse.Namespace) -> int:
    from train.summary import as_text, summarize, write_summary

    if args.out:
        _check_no_run(args.out)
    found = summarize(args.runs)
    if args.out:
        write_summary(found, Path(args.out))
    print(json.dumps({"ok": True, **found.to_dict()}, indent=2) if args.json else as_text(found))
    return HOLDS


def _bench(args: argparse.Namespace) -> int:
    from train.bench import as_text, bench

    rates = bench(lambda line: None if args.quiet else print(line, file=sys.stderr, flush=True))
    values = {"ok": True, "rates": [{**vars(rate), "ratio": rate.ratio} for rate in rates]}
    print(json.dumps(values, indent=2) if args.json else as_text(rates))
    return HOLDS


COMMANDS: Mapping[
    str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]
] = {
    "evaluate": (evaluate_parser, _evaluate),
    "spectrum-correction": (correction_parser, _correct),
    "ablate": (ablate_parser, _ablate),
    "summarize": (summarize_parser, _summarize),
    "bench": (bench_parser, _bench),
}


def _prepared(args: argparse.Namespace) -> tuple[Config, Dataset, Source]:
    """What most commands begin with: the configuration, the dataset, where features come from."""
    from train.config_file import load_config
    from train.datasets import data_folder, load_dataset

    config = load_config(args.config, args.set)
    return config, load_dataset(config.data.dataset, data_folder(args.data)), _source(args)


def _source(args: argparse.Namespace) -> Source:
    from firmware_ref.features import FeatureDefinition
    from train.cache import cache_folder
    from train.data import Source
    from train.progress import progress

    folder = cache_folder(args.cache)
    return Source(FeatureDefinition(), folder, args.skip_bad, progress(args.quiet))


def _check_no_run(out: str) -> None:
    """Refuse a folder that cannot take a result, or that holds a run's own files of that name."""
    from train.run import RUN_FILE

    check_folder(out, "--out")
    if (Path(out) / RUN_FILE).exists():
        raise InputError(f"--out {out!r} holds a run, whose files it would replace; name another")


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _print(report: Report, form: str) -> None:
    from train.page import as_html, confusion_figures
    from train.tables import as_markdown, as_text

    if form == "json":
        print(json.dumps({"ok": True, **report.to_dict()}, indent=2, allow_nan=False))
    elif form == "html":
        print(as_html(report, confusion_figures(report)))
    else:
        print((as_markdown if form == "markdown" else as_text)(report))


if __name__ == "__main__":
    sys.exit(main())
