"""One optimisation stage: epochs of augmented batches, resumable, the same bytes every time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.errors import InputError
from train import checkpoint
from train.augment import augment
from train.config import Config, OptimizerConfig
from train.data import EpochSampler, Windows

# The parameter of `train.qat.DeviceNetwork` that holds its ranges.
RANGE_PARAMETER = "log_scale_changes"


@dataclass(frozen=True)
class Score:
    """What a validation gave: the stage's own loss, by which an epoch is chosen, and for people
    the accuracy and log-loss."""

    loss: float
    accuracy: float
    log_loss: float

    def better_than(self, other: Score | None) -> bool:
        """Whether this one is chosen over an earlier one."""
        return other is None or self.loss < other.loss


def cross_entropy(x: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss against labels alone; ``x`` is the network input, for losses with a teacher."""
    return functional.cross_entropy(logits, targets)


@dataclass(frozen=True)
class Stage:
    """One optimisation: its name, optimiser, loss, and how an epoch is chosen.

    ``range_learning_rate`` is that of a `train.qat.DeviceNetwork`'s ranges. Without ``validate``
    the last epoch is kept, with it the best.
    """

    name: str
    optimizer: OptimizerConfig
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = cross_entropy
    range_learning_rate: float = 0.0
    validate: Callable[[], Score] | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean loss on augmented batches, last learning rate, seconds.

    ``validation_loss`` (the stage's own), ``validation_accuracy`` and ``validation_log_loss`` are
    those of windows held out, where the stage validates.
    """

    stage: str
    number: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_log_loss: float | None = None


def learning_rate(config: OptimizerConfig, progress: float) -> float:
    """Rate at ``progress`` epochs: a cosine between each restart and the next.

    Loshchilov and Hutter, "SGDR", 2017, equation 5, with restarts at fixed epochs.
    """
    bounds = [0, *(e for e in config.restart_epochs if e < config.epochs), config.epochs]
    start = max(b for b in bounds[:-1] if b <= progress)
    end = bounds[bounds.index(start) + 1]
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - start) / (end - start)))
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * cosine


def network_input(features: np.ndarray) -> Tensor:
    """(N, F, T, C) normalised features as (N, C, F, T), channels last in memory, no copy."""
    return torch.from_numpy(features).permute(0, 3, 1, 2)


def fit(
    module: nn.Module,
    data: Windows,
    config: Config,
    stage: Stage,
    identity: Mapping[str, Any],
    state_file: Path,
    report: Callable[[Epoch], None],
) -> None:
    """Train ``module`` in place on normalised windows; it ends as the epoch that is kept.

    Every random number of an epoch comes from (seed, stage, epoch), so a run continued from
    ``state_file``, written after each epoch, ends in the same bytes as an uninterrupted one. A
    state of another ``identity`` (`checkpoint.require_run`) is refused.
    """
    optimizer = _optimizer(module, stage)
    progress = _restore(module, optimizer, state_file, stage.name, identity)
    sampler = EpochSampler(data.clips, config.data.windows_per_clip)
    targets = functional.one_hot(torch.from_numpy(data.labels), config.network.classes).float()
    for number in range(progress.epochs_done, stage.optimizer.epochs):
        started = time.perf_counter()
        loss, rate = _epoch(module, optimizer, data, targets, sampler, config, stage, number)
        if not (math.isfinite(loss) and _is_finite(module)):
            raise InputError(
                f"{stage.name}: training diverged in epoch {number + 1} (loss {loss:.4g}); lower "
                f"{stage.name}.learning_rate={stage.optimizer.learning_rate}"
            )
        score = stage.validate() if stage.validate else None
        progress = progress.after(number + 1, score, module)
        _keep(module, optimizer, state_file, stage.name, identity, progress)
        seconds = time.perf_counter() - started
        figures = dataclasses.astuple(score) if score else ()
        epochs = stage.optimizer.epochs
        report(Epoch(stage.name, number + 1, epochs, loss, rate, seconds, *figures))
    if progress.best is not None:
        load_module(module, progress.best, "best epoch")


@dataclass(frozen=True, eq=False)
class _Progress:
    """Epochs done, and the best score with the module's state at it, where the stage validates."""

    epochs_done: int = 0
    score: Score | None = None
    best: Mapping[str, np.ndarray] | None = None

    def after(self, epochs_done: int, score: Score | None, module: nn.Module) -> _Progress:
        if score is not None and score.better_than(self.score):
            copies = {name: array.copy() for name, array in module_tensors(module).items()}
            return _Progress(epochs_done, score, copies)
        return _Progress(epochs_done, self.score, self.best)


def _epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Windows,
    targets: Tensor,
    sampler: EpochSampler,
    config: Config,
    stage: Stage,
    number: int,
) -> tuple[float, float]:
    """One pass; returns the mean loss and the last learning rate."""
    entropy = [config.seed, *stage.name.encode(), number]
    seeds = np.random.SeedSequence(entropy).generate_state(2)
    torch.manual_seed(int(seeds[0]))  # dropout
    generator = torch.Generator().manual_seed(int(seeds[1]))
    order = sampler.draw(np.random.default_rng(entropy))
    steps = max(len(order) // stage.optimizer.batch_size, 1)
    module.train()
    total, rate = 0.0, 0.0
    for step, index in enumerate(np.array_split(order, steps)):
        rate = learning_rate(stage.optimizer, number + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        x, y = augment(
            network_input(data.features[index]), targets[index], config.augment, generator
        )
        loss = stage.loss(x, module(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(index)
    return total / len(order), rate


def _is_finite(module: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def _optimizer(module: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """SGD or Adam; weight decay for convolution weights only, ranges at a rate of their own."""
    config = stage.optimizer
    named = list(module.named_parameters())
    ranges = [p for n, p in named if n == RANGE_PARAMETER]
    others = [p for n, p in named if p.ndim <= 1 and n != RANGE_PARAMETER]
    factor = stage.range_learning_rate / config.learning_rate if config.learning_rate else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": ranges, "weight_decay": 0.0, "rate_factor": factor},
    ]
    groups = [{"rate_factor": 1.0, **group} for group in groups if group["params"]]
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def module_tensors(module: nn.Module) -> dict[str, np.ndarray]:
    """The state of a module as arrays, by name."""
    return {name: t.detach().contiguous().numpy() for name, t in module.state_dict().items()}


def load_module(module: nn.Module, tensors: Mapping[str, np.ndarray], what: str) -> None:
    """Copy arrays into a module; a missing, extra or misshapen one is an `InputError`."""
    _copy(module.state_dict(), tensors, what)


def _copy(own: Mapping[str, Tensor], tensors: Mapping[str, np.ndarray], what: str) -> None:
    _check(own, tensors, what)
    for name, array in tensors.items():
        own[name].copy_(torch.from_numpy(array.copy()))


def _check(own: Mapping[str, Tensor], tensors: Mapping[str, np.ndarray], what: str) -> None:
    """Refuse arrays that are not of the names, shapes and dtypes of ``own``."""
    if odd := sorted(set(own) ^ set(tensors)):
        raise InputError(f"{what}: tensor {odd[0]!r} does not fit the network; retrain or restore")
    for name, array in tensors.items():
        wanted = own[name].numpy()
        if (wanted.shape, wanted.dtype) != (array.shape, array.dtype):
            raise InputError(
                f"{what}: tensor {name!r} is {array.dtype} {array.shape}; the network needs "
                f"{wanted.dtype} {wanted.shape}; retrain or restore"
            )


def _keep(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    stage: str,
    identity: Mapping[str, Any],
    progress: _Progress,
) -> None:
    """Write what a resumed run needs: module, optimiser, epochs done, the best so far."""
    tensors = {f"module/{k}": v for k, v in module_tensors(module).items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.contiguous().numpy()
    tensors |= {f"best/{name}": array for name, array in (progress.best or {}).items()}
    score = None if progress.score is None else dataclasses.asdict(progress.score)
    manifest = {"epochs_done": progress.epochs_done, "best_score": score}
    checkpoint.save(path, tensors, {**identity, "stage": f"{stage}-state", **manifest})


def _restore(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    stage: str,
    identity: Mapping[str, Any],
) -> _Progress:
    """Continue from ``path`` if it exists; returns what was done before."""
    if not path.exists():
        return _Progress()
    state = checkpoint.load(path, f"{stage}-state")
    checkpoint.require_run(state, identity, path)
    what = f"state {str(path)!r}"
    done = state.manifest.get("epochs_done")
    if type(done) is not int or done < 1:
        raise InputError(f"{what}: epochs_done={done!r} must be an integer above 0")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = tensor
    load_module(module, parts.pop("module", {}), what)
    best = parts.pop("best", None)
    if best is not None:
        _check(module.state_dict(), best, f"{what}: best epoch")
    if odd := sorted(set(parts) ^ _kinds(optimizer)):
        raise InputError(f"{what}: {odd[0]!r} does not fit the optimiser; restore the file")
    for key, saved in parts.items():
        _restore_optimizer(module, optimizer, key, saved, what)
    return _Progress(done, _score(state.manifest.get("best_score"), best, what), best)


def _kinds(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimiser remembers of each parameter: averages and steps, or momentum."""
    if isinstance(optimizer, torch.optim.Adam):
        return {"exp_avg", "exp_avg_sq", "step"}
    return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()


def _restore_optimizer(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    key: str,
    saved: Mapping[str, np.ndarray],
    what: str,
) -> None:
    """One of the `_kinds` of the optimiser's state, for every parameter."""
    # In the parameters' memory format, as the optimiser itself would have them.
    buffers = {
        name: torch.zeros(()) if key == "step" else torch.empty_like(parameter.detach())
        for name, parameter in module.named_parameters()
    }
    _copy(buffers, saved, f"{what}: {key}")
    for name, parameter in module.named_parameters():
        optimizer.state[parameter][key] = buffers[name]


def _score(entry: Any, best: Mapping[str, np.ndarray] | None, what: str) -> Score | None:
    if entry is None and best is None:
        return None
    found = entry if isinstance(entry, dict) else {}
    values = [found.get(field.name) for field in dataclasses.fields(Score)]
    numbers = [value for value in values if isinstance(value, float)]
    if best is None or len(numbers) != len(values):
        raise InputError(f"{what}: best_score={entry!r} does not fit its tensors; restore the file")
    return Score(*numbers)
