"""One optimisation stage: epochs of augmented batches, resumable, the same bytes every time."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean loss on augmented batches, last learning rate, seconds."""

    stage: str
    number: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float


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
    optimizer_config: OptimizerConfig,
    stage: str,
    identity: Mapping[str, Any],
    state_file: Path,
    report: Callable[[Epoch], None],
) -> None:
    """Train ``module`` in place on normalised windows.

    Every random number of an epoch comes from (seed, stage, epoch), so a run continued from
    ``state_file``, written after each epoch, ends in the same bytes as an uninterrupted one. A
    state of another ``identity`` (`checkpoint.require_run`) is refused.
    """
    optimizer = torch.optim.SGD(
        _parameter_groups(module, optimizer_config.weight_decay),
        lr=optimizer_config.learning_rate,
        momentum=optimizer_config.momentum,
    )
    done = _restore(module, optimizer, state_file, stage, identity)
    sampler = EpochSampler(data.clips, config.data.windows_per_clip)
    targets = functional.one_hot(torch.from_numpy(data.labels), config.network.classes).float()
    for number in range(done, optimizer_config.epochs):
        started = time.perf_counter()
        loss, rate = _epoch(
            module, optimizer, data, targets, sampler, config, optimizer_config, stage, number
        )
        if not (math.isfinite(loss) and _is_finite(module)):
            raise InputError(
                f"{stage}: training diverged in epoch {number + 1} (loss {loss:.4g}); lower "
                f"{stage}.learning_rate={optimizer_config.learning_rate}"
            )
        _keep(module, optimizer, state_file, stage, identity, number + 1)
        seconds = time.perf_counter() - started
        report(Epoch(stage, number + 1, optimizer_config.epochs, loss, rate, seconds))


def _epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Windows,
    targets: Tensor,
    sampler: EpochSampler,
    config: Config,
    optimizer_config: OptimizerConfig,
    stage: str,
    number: int,
) -> tuple[float, float]:
    """One pass; returns the mean loss and the last learning rate."""
    seeds = np.random.SeedSequence([config.seed, *stage.encode(), number]).generate_state(2)
    torch.manual_seed(int(seeds[0]))  # dropout
    generator = torch.Generator().manual_seed(int(seeds[1]))
    order = sampler.draw(np.random.default_rng([config.seed, *stage.encode(), number]))
    steps = max(len(order) // optimizer_config.batch_size, 1)
    module.train()
    total, rate = 0.0, 0.0
    for step, index in enumerate(np.array_split(order, steps)):
        rate = learning_rate(optimizer_config, number + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = augment(
            network_input(data.features[index]), targets[index], config.augment, generator
        )
        loss = functional.cross_entropy(module(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(index)
    return total / len(order), rate


def _is_finite(module: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolution weights only: not for biases and normalisation."""
    named = list(module.named_parameters())
    decayed = [p for n, p in named if p.ndim > 1 and not _is_norm(n)]
    others = [p for n, p in named if p.ndim <= 1 or _is_norm(n)]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    return groups + ([{"params": others, "weight_decay": 0.0}] if others else [])


def _is_norm(name: str) -> bool:
    """Whether a constant of the device graph is what is left there of a sub-spectral norm."""
    return "ssn_scale" in name or "sub_spectral_norm" in name


def module_tensors(module: nn.Module) -> dict[str, np.ndarray]:
    """The state of a module as arrays, by name."""
    return {name: t.detach().contiguous().numpy() for name, t in module.state_dict().items()}


def load_module(module: nn.Module, tensors: Mapping[str, np.ndarray], what: str) -> None:
    """Copy arrays into a module; a missing, extra or misshapen one is an `InputError`."""
    _copy(module.state_dict(), tensors, what)


def _copy(own: Mapping[str, Tensor], tensors: Mapping[str, np.ndarray], what: str) -> None:
    if odd := sorted(set(own) ^ set(tensors)):
        raise InputError(f"{what}: tensor {odd[0]!r} does not fit the network; retrain or restore")
    for name, array in tensors.items():
        wanted = own[name].numpy()
        if (wanted.shape, wanted.dtype) != (array.shape, array.dtype):
            raise InputError(
                f"{what}: tensor {name!r} is {array.dtype} {array.shape}; the network needs "
                f"{wanted.dtype} {wanted.shape}; retrain or restore"
            )
        own[name].copy_(torch.from_numpy(array.copy()))


def _keep(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    stage: str,
    identity: Mapping[str, Any],
    epochs_done: int,
) -> None:
    """Write what a resumed run needs: module, momentum, epoch."""
    tensors = {f"module/{k}": v for k, v in module_tensors(module).items()}
    for name, parameter in module.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum.contiguous().numpy()
    manifest = {**identity, "stage": f"{stage}-state", "epochs_done": epochs_done}
    checkpoint.save(path, tensors, manifest)


def _restore(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    stage: str,
    identity: Mapping[str, Any],
) -> int:
    """Continue from ``path`` if it exists; returns the number of epochs already done."""
    if not path.exists():
        return 0
    state = checkpoint.load(path, f"{stage}-state")
    checkpoint.require_run(state, identity, path)
    done = state.manifest.get("epochs_done")
    if type(done) is not int or done < 1:
        raise InputError(f"state {str(path)!r}: epochs_done={done!r} must be an integer above 0")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = tensor
    load_module(module, parts.get("module", {}), f"state {str(path)!r}")
    if momenta := parts.get("momentum"):
        # In the parameters' memory format, as the optimiser itself would have them.
        buffers = {n: torch.empty_like(p.detach()) for n, p in module.named_parameters()}
        _copy(buffers, momenta, f"state {str(path)!r}: momentum")
        for name, parameter in module.named_parameters():
            optimizer.state[parameter]["momentum_buffer"] = buffers[name]
    return done
