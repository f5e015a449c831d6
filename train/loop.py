"""One optimisation stage: epochs of augmented batches, resumable, the same bytes every time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.errors import InputError
from train import distributed
from train.batches import TrainingSet
from train.config import ComputeConfig, Config, OptimizerConfig
from train.objective import Batch, Objective
from train.state import Score, Trained, keep, load_module, restore


@dataclass(frozen=True)
class Stage:
    """One optimisation: its name, optimiser, objective, and how an epoch is chosen.

    ``range_learning_rate`` is that of a `train.qat.DeviceNetwork`'s ranges, which stay as they are
    in the last ``frozen_range_epochs``. Without ``validate`` the last epoch is kept, with it the
    best, unless the optimiser's ``keep`` says the last.
    """

    name: str
    optimizer: OptimizerConfig
    objective: Objective
    range_learning_rate: float = 0.0
    frozen_range_epochs: int = 0
    validate: Callable[[], Score] | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean loss on augmented batches, last learning rate, seconds.

    ``validation_loss`` (the stage's own), ``validation_accuracy`` and ``validation_log_loss`` are
    those of windows held out, where the stage validates. ``examples_per_second`` is the rate of the
    pass alone, without the validation.
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
    examples_per_second: float | None = None


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
    data: TrainingSet,
    config: Config,
    stage: Stage,
    identity: Mapping[str, Any],
    state_file: Path,
    report: Callable[[Epoch], None],
) -> None:
    """Train ``module`` in place; it ends as the epoch that is kept.

    Every random number of an epoch comes from (seed, stage, epoch), so on the CPU a run continued
    from ``state_file``, written after each epoch, ends in the same bytes as an uninterrupted one.
    A state of another ``identity`` (`checkpoint.require_run`) is refused.
    """
    distributed.synchronise_batch_norm(module)
    distributed.synchronise_batch_norm(stage.objective)
    trained = Trained(module, stage.objective, stage.optimizer, stage.range_learning_rate)
    progress = restore(trained, state_file, stage.name, identity)
    compiled: Any = torch.compile(module) if stage.compute.compile else module
    step = distributed.parallel(_Step(compiled, stage.objective))
    distributed.barrier()  # every process has read the state before one writes it
    for number in range(progress.epochs_done, stage.optimizer.epochs):
        started = time.perf_counter()
        loss, rate, examples = _epoch(step, trained, data, config, stage, number)
        speed = examples / (time.perf_counter() - started)
        if not (math.isfinite(loss) and _is_finite(step)):
            section = stage.name.partition("-")[0]  # of teacher-1: teacher
            raise InputError(
                f"{stage.name}: training diverged in epoch {number + 1} (loss {loss:.4g}); lower "
                f"{section}.learning_rate={stage.optimizer.learning_rate}"
            )
        score = stage.validate() if stage.validate else None
        keeps_best = stage.optimizer.keep == "best"
        progress = progress.after(number + 1, score if keeps_best else None, module)
        seconds = time.perf_counter() - started
        figures = dataclasses.astuple(score) if score else ()
        epochs = stage.optimizer.epochs
        # Told before it counts as done: a run that is killed in between tells it again.
        epoch = Epoch(stage.name, number + 1, epochs, loss, rate, seconds, *figures)
        report(dataclasses.replace(epoch, examples_per_second=speed))
        keep(trained, state_file, stage.name, identity, progress)
    if progress.best is not None:
        load_module(module, progress.best, "best epoch")


class _Step(nn.Module):
    """A network with its objective: from a batch to a loss, as one module."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar."""
        loss: Tensor = self.objective(self.network, batch)
        return loss


def _epoch(
    step: nn.Module,
    trained: Trained,
    data: TrainingSet,
    config: Config,
    stage: Stage,
    number: int,
) -> tuple[float, float, int]:
    """One pass; returns the mean loss, the last learning rate, and how many examples it saw."""
    entropy = [config.seed, *stage.name.encode(), number]
    seeds = np.random.SeedSequence(entropy).generate_state(2)
    torch.manual_seed(int(seeds[0]) + distributed.rank())  # dropout
    generator = torch.Generator(data.device).manual_seed(int(seeds[1]))
    order = data.sampler.draw(np.random.default_rng(entropy))
    steps = max(len(order) // stage.optimizer.batch_size, 1)
    step.train()
    half = stage.compute.precision == "bfloat16"
    frozen = number >= stage.optimizer.epochs - stage.frozen_range_epochs
    total, rate = torch.zeros((), device=data.device, dtype=torch.float64), 0.0
    seen = 0
    for place, index in enumerate(np.array_split(order, steps)):
        rate = learning_rate(stage.optimizer, number + place / steps)
        for group in trained.optimizer.param_groups:
            group["lr"] = 0.0 if frozen and group["ranges"] else rate * group["rate_factor"]
        index = distributed.divisible(index)
        own = distributed.share(len(index))
        batch = data.batch(index, config.augment, generator).part(own)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=half):
            loss = step(batch)
        trained.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained.optimizer.step()
        total += loss.detach() * (own.stop - own.start)
        seen += len(index)
    return distributed.summed(total).item() / seen, rate, seen


def _is_finite(module: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.parameters())
