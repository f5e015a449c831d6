"""``python -m train``: train a network; ``python -m train evaluate``: measure one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware_ref.cli import Parser
from firmware_ref.errors import HOLDS, guarded, write_whole

if TYPE_CHECKING:  # torch is imported by the commands, not by --help
    from train.data import Progress, Recording
    from train.device import Fidelity
    from train.evaluate import Metrics
    from train.loop import Epoch


def train_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train``."""
    parser = Parser(
        prog="python -m train",
        description="Train a network in float, then quantisation-aware.",
        epilog="example: python -m train --config esc10 --data recordings --fold 1 --out runs/1; "
        "see also: python -m train evaluate --help",
    )
    parser.add_argument("--config", default="esc10", help="shipped name or .toml (default: esc10)")
    _data_arguments(parser, 1, "official fold to leave out and test on (default 1)")
    parser.add_argument(
        "--out", default="runs/latest", help="folder to write into (default: runs/latest)"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="section.key=value",
        help="change keys, as in --set seed=1 float.epochs=64",
    )
    parser.add_argument("--limits", help="limits.toml to hold (default: the shipped one)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m train evaluate``."""
    parser = Parser(
        prog="python -m train evaluate",
        description="Measure a checkpoint (torch) or a .tflite (device arithmetic) on a fold.",
        epilog="example: python -m train evaluate --model model.tflite --data recordings --fold 1",
    )
    parser.add_argument("--model", required=True, help="a .safetensors checkpoint or a .tflite")
    _data_arguments(parser, None, "official fold (default: the one the model never heard)")
    parser.add_argument("--out", help="folder to write metrics.json into")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _data_arguments(parser: argparse.ArgumentParser, fold: int | None, fold_help: str) -> None:
    parser.add_argument("--data", help="folder of the recordings (default: $ASC_DATA)")
    parser.add_argument("--fold", type=int, default=fold, help=fold_help)


def progress(quiet: bool) -> Progress:
    """A function that shows a bar on a terminal and nothing in a log."""

    def show(items: Iterable[Recording], title: str) -> Iterable[Recording]:
        if quiet or not sys.stderr.isatty():
            return items
        from tqdm import tqdm

        bar: Iterable[Recording] = tqdm(items, desc=title, unit="clip", leave=False)
        return bar

    return show


class EpochLines:
    """Plain lines with an estimate of the time left; also a JSON-lines file."""

    def __init__(self, quiet: bool, log: Path) -> None:
        self._quiet, self._log = quiet, log
        self._seconds: dict[str, list[float]] = {}

    def __call__(self, epoch: Epoch) -> None:
        times = self._seconds.setdefault(epoch.stage, [])
        times.append(epoch.seconds)
        left = (epoch.epochs - epoch.number) * sum(times) / len(times)
        if not self._quiet:
            held_out = (
                ""
                if epoch.validation_accuracy is None
                else (
                    f"device, held out: {epoch.validation_accuracy:.2%} log-loss "
                    f"{epoch.validation_log_loss:.3f}  "
                )
            )
            print(
                f"{epoch.stage:<6} epoch {epoch.number:>4}/{epoch.epochs}  loss {epoch.loss:.4f}  "
                f"rate {epoch.learning_rate:.2e}  {held_out}{epoch.seconds:5.1f} s  "
                f"left {left / 60:5.1f} min",
                file=sys.stderr,
                flush=True,
            )
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(vars(epoch)) + "\n")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["evaluate"]:
        return _evaluate(evaluate_parser().parse_args(arguments[1:]))
    return _train(train_parser().parse_args(arguments))


def _train(args: argparse.Namespace) -> int:
    from budgets.limits import load_limits
    from train.config import load_config
    from train.data import data_folder, load_dataset
    from train.run import QAT_FILE, run

    config = load_config(args.config, args.set)
    dataset = load_dataset(config.data.dataset, data_folder(args.data))
    out = Path(args.out)
    lines = EpochLines(args.quiet, out / "epochs.jsonl")
    limits = load_limits(args.limits)
    show = progress(args.quiet)
    outcome = run(config, dataset, args.fold, out, args.resume, lines, show, limits)
    _print(outcome.metrics, dataset.labels, args.json, outcome.fidelity)
    if not (args.json or args.quiet):
        print(
            f"next: python -m convert --target tflite-micro --checkpoint {out / QAT_FILE} "
            f"--out {out / 'bundle'}"
        )
    return HOLDS


def _evaluate(args: argparse.Namespace) -> int:
    from train.assess import assess
    from train.data import data_folder, load_dataset

    dataset = load_dataset("esc10", data_folder(args.data))
    metrics = assess(Path(args.model), dataset, args.fold, progress(args.quiet))
    if args.out:
        content = {name: m.to_dict(dataset.labels) for name, m in metrics.items()}
        path = Path(args.out) / "metrics.json"
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    _print(metrics, dataset.labels, args.json)
    return HOLDS


def _print(
    metrics: Mapping[str, Metrics],
    labels: Sequence[str],
    as_json: bool,
    fidelity: Fidelity | None = None,
) -> None:
    from train.evaluate import as_table

    if as_json:
        content: dict[str, Any] = {"ok": True}
        content["metrics"] = {name: m.to_dict(labels) for name, m in metrics.items()}
        if fidelity is not None:
            content["fidelity"] = fidelity.to_dict()
        print(json.dumps(content, indent=2))
    else:
        print("\n".join([as_table(metrics), *(fidelity.lines() if fidelity else [])]))


if __name__ == "__main__":
    sys.exit(main())
