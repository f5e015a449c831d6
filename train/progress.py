"""How long work tells how far it has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from firmware_ref.errors import write_whole
from train.extract import Item, Progress, no_progress
from train.loop import Epoch

SECONDS_BETWEEN_LINES = 10.0
TENSORBOARD_FOLDER = "tensorboard"


def progress(quiet: bool, stream: TextIO | None = None) -> Progress:
    """Shows an iteration: nothing where ``quiet``, a bar on a terminal, now and then a line."""
    stream = stream or sys.stderr
    if quiet:
        return no_progress
    if not stream.isatty():
        return lambda items, title, total: _lines(items, title, total, stream)

    def bar(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
        from tqdm import tqdm

        shown: Iterable[Item] = tqdm(
            items, desc=title, total=total, unit="clip", leave=False, file=stream
        )
        return shown

    return bar


def _lines(items: Iterable[Item], title: str, total: int, stream: TextIO) -> Iterable[Item]:
    started = said = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - said >= SECONDS_BETWEEN_LINES:
            said, rate = now, done / (now - started)
            left = (total - done) / rate
            print(
                f"{title} {done:,}/{total:,}  {rate:,.0f}/s  left {left / 60:.1f} min",
                file=stream,
                flush=True,
            )


class EpochLog:
    """Every epoch as a plain line, a line of ``epochs.jsonl``, and TensorBoard scalars.

    On a terminal a bar stands below the lines. A resumed run continues the file: epochs it does
    again replace those that are there.
    """

    def __init__(self, quiet: bool, out: Path) -> None:
        self._quiet, self._out = quiet, out
        self._seconds: dict[str, list[float]] = {}
        self._bar: Any = None

    def __call__(self, epoch: Epoch) -> None:
        if not self._quiet:
            line = self._line(epoch)
            if sys.stderr.isatty():
                self._show(epoch, line)
            else:
                print(line, file=sys.stderr, flush=True)
        self._to_file(epoch)
        self._to_tensorboard(epoch)

    def _show(self, epoch: Epoch, line: str) -> None:
        """The line, and the bar of its stage below it until the last epoch."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=epoch.epochs,
                initial=epoch.number - 1,
                desc=epoch.stage,
                unit="epoch",
                leave=False,
                file=sys.stderr,
            )
        self._bar.write(line, file=sys.stderr)
        self._bar.update()
        if epoch.number == epoch.epochs:
            self._bar.close()
            self._bar = None

    def _line(self, epoch: Epoch) -> str:
        times = self._seconds.setdefault(epoch.stage, [])
        times.append(epoch.seconds)
        left = (epoch.epochs - epoch.number) * sum(times) / len(times)
        held_out = ""
        if epoch.validation_accuracy is not None:
            held_out = (
                f"validation {epoch.validation_accuracy:.2%} "
                f"log-loss {epoch.validation_log_loss:.3f}  "
            )
        speed = f"{epoch.examples_per_second:,.0f}/s  " if epoch.examples_per_second else ""
        return (
            f"{epoch.stage:<9} epoch {epoch.number:>4}/{epoch.epochs}  loss {epoch.loss:.4f}  "
            f"rate {epoch.learning_rate:.2e}  {held_out}{epoch.seconds:5.1f} s  {speed}"
            f"left {left / 60:5.1f} min"
        )

    def _to_file(self, epoch: Epoch) -> None:
        path = self._out / "epochs.jsonl"
        old = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        kept = [line for line in old if not _is_epoch(line, epoch.stage, epoch.number)]
        write_whole(path, ("\n".join([*kept, json.dumps(vars(epoch))]) + "\n").encode())

    def _to_tensorboard(self, epoch: Epoch) -> None:
        # TensorBoard would load TensorFlow, where it is installed, to write files: seconds, and
        # warnings. This is its own mark for doing without.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter

        values: dict[str, Any] = vars(epoch)
        writer = SummaryWriter(str(self._out / TENSORBOARD_FOLDER / epoch.stage))
        for name in (
            "loss",
            "learning_rate",
            "validation_loss",
            "validation_accuracy",
            "examples_per_second",
        ):
            if values[name] is not None:
                writer.add_scalar(name, values[name], epoch.number)
        writer.close()


def _is_epoch(line: str, stage: str, number: int) -> bool:
    """Whether a line is of this epoch, or is damaged."""
    try:
        values = json.loads(line)
        return bool((values["stage"], values["number"]) == (stage, number))
    except (ValueError, KeyError, TypeError):
        return True
