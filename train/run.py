"""One training run: features, teachers, float stage, QAT stage, in order, resumable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from budgets.check import enforce_network
from budgets.limits import Limits
from firmware_ref.arch import Network
from firmware_ref.errors import InputError, check_folder, read_bytes, write_whole
from firmware_ref.features import FeatureDefinition
from firmware_ref.frontend import softmax
from firmware_ref.manifest import MAX_LABEL, distinct_names
from train import distributed, loop
from train.config import TRAINED_TEACHERS, Config
from train.data import Source, over_log_mels, over_windows
from train.dataset import Dataset
from train.device import DeviceListener, compare, device_inputs
from train.evaluate import evaluate, module_logits
from train.float_stage import float_stage
from train.memory import keep_freed_memory
from train.model import BCResNetMod
from train.page import write_report
from train.prepare import Prepared, prepare, split
from train.qat import DeviceNetwork
from train.qat_stage import qat_stage
from train.report import Report
from train.teacher_stage import check_teachers, teacher_logits

RUN_FILE = "run.json"
# What `write_whole` leaves of a run's own files when the process is killed in it.
LEFT_OVER = re.compile(
    r"\.(run\.json|epochs\.jsonl|metrics\.json|report\.(md|html)|confusion-[a-z0-9_-]+\.png"
    r"|(float|qat|teacher-\d+)(-state)?\.safetensors|teacher-\d+\.npz"
    r"|spectrum-correction\.(npz|png))\.[a-z0-9_]{8}"
)


@dataclass(frozen=True)
class Console:
    """Where a run tells how it goes: each epoch, and what is to be noticed."""

    epoch: Callable[[loop.Epoch], None]
    warn: Callable[[str], None]

    @classmethod
    def silent(cls) -> Console:
        """Tells nobody."""
        return cls(lambda epoch: None, lambda line: None)


def run(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    out: Path,
    resume: bool,
    source: Source,
    console: Console,
    limits: Limits | None = None,
) -> Report:
    """Train on all folds but ``test_fold``, then measure float, QAT and INT8 models on it.

    Unless the configuration selects on it, the test fold chooses nothing. Writes
    ``float.safetensors``, ``qat.safetensors`` and the report into ``out``. ``limits`` are the
    shipped ones unless given; a network over one is refused before anything is read.
    """
    enforce_network(config.network, limits)
    _check_sizes(config.network, dataset, source.definition)
    check_teachers(config.distillation.teachers, config.network)
    recordings = split(config, dataset, test_fold)
    device = _device(config)
    with start(config, dataset, test_fold, out, resume) or nullcontext():
        prepared = prepare(config, dataset, recordings, source, out, console.warn)
        identity = identity_of(config, dataset, test_fold, source.definition, prepared)
        report = console.epoch
        teacher = teacher_logits(config, prepared, identity, out, device, report)
        float_model = float_stage(config, prepared, teacher, identity, out, device, report)
        quantized = qat_stage(config, prepared, teacher, identity, float_model, out, device, report)
        found = _measure(config, dataset, test_fold, prepared, float_model, quantized)
        if distributed.is_first():
            write_report(found, out)
        return found


def identity_of(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    definition: FeatureDefinition,
    prepared: Prepared,
) -> dict[str, Any]:
    """What every file of a run says of it: `checkpoint.require_run`."""
    return {
        "network": config.network.to_dict(),
        "labels": list(dataset.labels),
        "features": definition.to_dict(),
        "input_normalization": {
            "mean": prepared.normalization.mean,
            "std": prepared.normalization.std,
        },
        "config": config.to_dict(),
        "dataset": {
            "name": dataset.name,
            "test_fold": test_fold,
            "folds": dataset.folds,
            "selected_on_test": config.data.selection == "test",
        },
    }


def start(
    config: Config, dataset: Dataset, test_fold: int, out: Path, resume: bool
) -> IO[bytes] | None:
    """Claim ``out`` for this run, or find it there; refuse another's.

    A run that ended before it had learned anything leaves its folder free (`check_free`); one that
    goes on keeps it, by a lock that ends with the process.
    """
    if not distributed.is_first():
        return None
    path = out / RUN_FILE
    content = {"config": config.to_dict(), "dataset": dataset.name, "test_fold": test_fold}
    content = json.loads(json.dumps(content))
    if not resume:
        check_free(out)
        check_folder(out, "--out")
        os.makedirs(os.path.realpath(out), exist_ok=True)
        path.touch()  # to have something to lock: of two that start at once, one goes on
        with _lock(path):
            try:
                write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
            except BaseException:
                if not path.stat().st_size:
                    path.unlink()
                raise
            return _claimed(path)
    if not path.exists():
        raise InputError(f"--resume: {str(out)!r} holds no run; leave --resume out, or mend --out")
    try:
        saved = json.loads(read_bytes(path, 2**24, "run"))
    except (ValueError, RecursionError):
        saved = None
    odd = [k for k in content if not isinstance(saved, Mapping) or saved.get(k) != content[k]]
    if odd:
        raise InputError(
            f"--resume: {str(out)!r} holds a run with another {odd[0]}; resume with that one, or "
            "train into another --out"
        )
    return _claimed(path)


def check_free(out: Path) -> None:
    """Refuse a folder in which a run has learned something; it may also not be there yet."""
    if any(out.glob("*.safetensors")) or any(out.glob("teacher-*.npz")):
        raise InputError(f"--out {str(out)!r} already holds a run; add --resume or name another")


def _claimed(path: Path) -> IO[bytes]:
    """The file of a run, locked; what a killed process left half-written beside it is removed."""
    lock = _lock(path)
    for left in path.parent.iterdir():
        if LEFT_OVER.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)
    return lock


def _lock(path: Path) -> IO[bytes]:
    """The file of a run, open and locked; refused where a process is training into its folder."""
    stream = path.open("rb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another start may have replaced the file between the two.
        mine = os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except BlockingIOError:
        mine = False
    if not mine:
        stream.close()
        raise InputError(
            f"--out {str(path.parent)!r} is in use by another process; wait for it, or name another"
        )
    return stream


def _measure(
    config: Config,
    dataset: Dataset,
    test_fold: int,
    prepared: Prepared,
    float_model: BCResNetMod,
    quantized: DeviceNetwork,
) -> Report:
    test, normalization = prepared.test, prepared.normalization
    heard = device_inputs(quantized, normalization)
    logits = {
        "float": over_windows(test, normalization, partial(module_logits, float_model)),
        "qat": over_log_mels(test, lambda x: module_logits(quantized, heard(x))),
        "int8": over_log_mels(test, DeviceListener(quantized, normalization).logits),
    }
    probabilities = {name: softmax(values) for name, values in logits.items()}
    seen = [device in prepared.train_devices for device in dataset.devices]
    sources = np.array(prepared.test_sources)[test.clips]
    metrics = {
        name: evaluate(p, test.labels, test.clips, test.devices, seen, sources)
        for name, p in probabilities.items()
    }
    some = next(normalization.inputs(test))
    return Report(
        title=f"{config.network.name}, {config.name}",
        dataset=dataset.name,
        split=f"fold {test_fold}",
        labels=dataset.labels,
        devices=dataset.devices,
        metrics=metrics,
        selection=_selection(config, len(prepared.names), _held_out(prepared)),
        selected_on_reported_split=config.data.selection == "test",
        provenance={
            "seed": config.seed,
            "recipe": _recipe(config),
            "training windows": len(prepared.plain),
            **({"recordings left out": prepared.left_out} if prepared.left_out else {}),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
        fidelity=compare(quantized, some, probabilities),
    )


def _recipe(config: Config) -> str:
    """What runs of several folds and seeds have in common, as a hash.

    Files differ from fold to fold: of a teacher that is read its kind counts, not its path, and of
    weights whether there are any. What a run computes on moves a figure by rounding alone; its
    precision does more.
    """
    values = {k: v for k, v in config.to_dict().items() if k not in ("seed", "name")}
    values["compute"] = {"precision": config.compute.precision}
    values["augment"].pop("spectrum_correction_file")
    for teacher in values["distillation"]["teachers"]:
        teacher["weights"] = bool(teacher["weights"])
        if teacher["kind"] not in TRAINED_TEACHERS:
            teacher["source"] = ""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _held_out(prepared: Prepared) -> int:
    """How many clips are held out to choose the epochs by."""
    return 0 if prepared.validation is None else len(np.unique(prepared.validation.clips))


def _selection(config: Config, learned: int, held_out: int) -> str:
    """In words, what chose the epochs; of the training clips so many are learned from, or not."""
    best = [n for n, stage in config.stages.items() if stage.keep == "best" and stage.epochs]
    if config.data.selection == "test":
        return f"the best epoch on the reported split itself ({', '.join(best) or 'none'})"
    if not (best and held_out):
        return "none: the last epoch"
    how = {"qat": "of least loss in device arithmetic"}
    chosen = " and ".join(f"the {n} epoch {how.get(n, 'of highest accuracy')}" for n in best)
    return f"{chosen} on {held_out:,} of {learned + held_out:,} training clips"


def _check_sizes(network: Network, dataset: Dataset, definition: FeatureDefinition) -> None:
    """Before an epoch is spent: the network takes these features and has these classes."""
    for key, value, allowed in (
        ("classes", network.classes, len(dataset.labels)),
        ("input_bands", network.input_bands, definition.mel_bands),
        ("input_frames", network.input_frames, definition.frames),
    ):
        if value != allowed:
            raise InputError(f"model.{key}={value}; allowed with {dataset.name} is {allowed}")
    if odd := [name for name in (dataset.name, *dataset.labels) if not distinct_names([name])]:
        raise InputError(
            f"the name {odd[0]!r:.200} of {dataset.name!r:.80} cannot travel with a model; allowed "
            f"are 1 to {MAX_LABEL} printable characters (no control or non-breaking ones)"
        )


def _device(config: Config) -> torch.device:
    """The device of the float stages; on the CPU the same seed gives the same bytes."""
    wanted, there = config.compute.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise InputError("compute.device='cuda', and torch finds no CUDA GPU; allowed: cpu, auto")
    torch.set_num_threads(config.compute.threads)
    if there and wanted != "cpu":
        torch.cuda.set_device(distributed.local_rank())
        torch.backends.cudnn.benchmark = True
        # TF32 would undo what `train.rounding` takes care of.
        torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda")
    torch.use_deterministic_algorithms(True)
    keep_freed_memory()
    return torch.device("cpu")
