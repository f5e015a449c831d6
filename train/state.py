"""What a training stage keeps between epochs, in memory and on disk: so a run can be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.errors import InputError
from train import checkpoint
from train.config import OptimizerConfig

# The parameter of `train.qat.DeviceNetwork` that holds its ranges.
RANGE_PARAMETER = "log_scale_changes"
# A module of the user's (`train.teachers.MODEL_LIMIT_BYTES`), its best epoch, and two averages.
STATE_LIMIT_BYTES = 4 * 2**31


@dataclass(frozen=True)
class Score:
    """What a validation gave: the loss by which an epoch is chosen, and for people the accuracy
    and log-loss."""

    loss: float
    accuracy: float
    log_loss: float

    def better_than(self, other: Score | None) -> bool:
        """Whether this one is chosen over an earlier one."""
        return other is None or self.loss < other.loss


class Trained:
    """What an optimiser changes: a network, what its objective trains beside it, and its state."""

    def __init__(
        self,
        module: nn.Module,
        objective: nn.Module,
        config: OptimizerConfig,
        range_learning_rate: float,
    ) -> None:
        self.modules = {"module": module, "objective": objective}
        self.parameters = {
            f"{kind}/{name}": parameter
            for kind, part in self.modules.items()
            for name, parameter in part.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = _optimizer(self.parameters, config, range_learning_rate)


@dataclass(frozen=True, eq=False)
class Progress:
    """Epochs done, and the best score with the module's state at it, where the stage validates."""

    epochs_done: int = 0
    score: Score | None = None
    best: Mapping[str, np.ndarray] | None = None

    def after(self, epochs_done: int, score: Score | None, module: nn.Module) -> Progress:
        if score is not None and score.better_than(self.score):
            copies = {name: array.copy() for name, array in module_tensors(module).items()}
            return Progress(epochs_done, score, copies)
        return Progress(epochs_done, self.score, self.best)


def _optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, range_learning_rate: float
) -> torch.optim.Optimizer:
    """SGD or Adam; weight decay for convolution weights only, ranges at a rate of their own."""
    is_range = {n: n == f"module/{RANGE_PARAMETER}" for n in parameters}
    weights = [p for n, p in parameters.items() if p.ndim > 1]
    others = [p for n, p in parameters.items() if p.ndim <= 1 and not is_range[n]]
    ranges = [p for n, p in parameters.items() if is_range[n]]
    # A rate of 0 is one of a stage without epochs (`Config`).
    factor = range_learning_rate / config.learning_rate if config.learning_rate else 0.0
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": ranges, "weight_decay": 0.0, "rate_factor": factor, "ranges": True},
    ]
    usual = {"rate_factor": 1.0, "ranges": False}
    groups = [{**usual, **group} for group in groups if group["params"]]
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def module_tensors(module: nn.Module) -> dict[str, np.ndarray]:
    """The state of a module as arrays, by name."""
    return {name: t.detach().contiguous().cpu().numpy() for name, t in module.state_dict().items()}


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
        shape, dtype = tuple(own[name].shape), str(own[name].dtype).removeprefix("torch.")
        if (shape, dtype) != (array.shape, array.dtype.name):
            raise InputError(
                f"{what}: tensor {name!r} is {array.dtype} {array.shape}; the network needs "
                f"{dtype} {shape}; retrain or restore"
            )


def keep(
    trained: Trained,
    path: Path,
    stage: str,
    identity: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write what a resumed run needs: modules, optimiser, epochs done, the best so far."""
    tensors = {
        f"{kind}/{name}": array
        for kind, part in trained.modules.items()
        for name, array in module_tensors(part).items()
    }
    for name, parameter in trained.parameters.items():
        for key, value in trained.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.contiguous().cpu().numpy()
    tensors |= {f"best/{name}": array for name, array in (progress.best or {}).items()}
    manifest = {
        "epochs_done": progress.epochs_done,
        "best_score": None if progress.score is None else dataclasses.asdict(progress.score),
        # What no gradient reaches has no momentum either.
        "idle": [n for n, p in trained.parameters.items() if not trained.optimizer.state[p]],
    }
    checkpoint.save(path, tensors, {**identity, "stage": f"{stage}-state", **manifest})


def restore(trained: Trained, path: Path, stage: str, identity: Mapping[str, Any]) -> Progress:
    """Continue from ``path`` if it exists; returns what was done before."""
    if not path.exists():
        return Progress()
    state = checkpoint.load(path, f"{stage}-state", STATE_LIMIT_BYTES)
    checkpoint.require_run(state, identity, path)
    what = f"state {str(path)!r}"
    done = state.manifest.get("epochs_done")
    if type(done) is not int or done < 1:
        raise InputError(f"{what}: epochs_done={done!r} must be an integer above 0")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = tensor
    best = parts.pop("best", None)
    if best is not None:
        _check(trained.modules["module"].state_dict(), best, f"{what}: best epoch")
    for kind, module in trained.modules.items():
        load_module(module, parts.pop(kind, {}), what)
    if odd := sorted(set(parts) ^ _kinds(trained.optimizer)):
        raise InputError(f"{what}: {odd[0]!r} does not fit the optimiser; restore the file")
    names = _without(trained.parameters, state.manifest.get("idle"), what)
    for key, saved in parts.items():
        _restore_optimizer(trained, names, key, saved, what)
    return Progress(done, _score(state.manifest.get("best_score"), best, what), best)


def _kinds(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimiser remembers of each parameter: averages and steps, or momentum."""
    if isinstance(optimizer, torch.optim.Adam):
        return {"exp_avg", "exp_avg_sq", "step"}
    return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()


def _without(parameters: Mapping[str, nn.Parameter], idle: Any, what: str) -> list[str]:
    """Names of the parameters that the optimiser has moved."""
    if not isinstance(idle, list) or any(name not in list(parameters) for name in idle):
        raise InputError(f"{what}: idle={idle!r:.80} are not its parameters; restore the file")
    return [name for name in parameters if name not in idle]


def _restore_optimizer(
    trained: Trained, names: Sequence[str], key: str, saved: Mapping[str, np.ndarray], what: str
) -> None:
    """One of the `_kinds` of the optimiser's state, for each of the parameters ``names``."""
    # In the parameters' memory format, as the optimiser itself would have them.
    own = {name: trained.parameters[name] for name in names}
    buffers = {
        name: torch.zeros(()) if key == "step" else torch.empty_like(parameter.detach())
        for name, parameter in own.items()
    }
    _copy(buffers, saved, f"{what}: {key}")
    for name, parameter in own.items():
        trained.optimizer.state[parameter][key] = buffers[name]


def _score(entry: Any, best: Mapping[str, np.ndarray] | None, what: str) -> Score | None:
    if entry is None and best is None:
        return None
    found = entry if isinstance(entry, dict) else {}
    values = [found.get(field.name) for field in dataclasses.fields(Score)]
    numbers = [value for value in values if isinstance(value, float)]
    if best is None or len(numbers) != len(values):
        raise InputError(f"{what}: best_score={entry!r} does not fit its tensors; restore the file")
    return Score(*numbers)
