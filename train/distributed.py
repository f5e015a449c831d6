"""Training in several processes, started by torchrun: the same numbers, shared out.

Every process draws the same batches and augments them whole, so that what is learned does not
depend on how many there are; each then computes its own part of a batch, with batch norm over all
parts. The first one writes the files. Only dropout's masks differ from those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from firmware_ref.errors import InputError


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started; alone without it."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given.get("WORLD_SIZE", "1") == "1":
        yield
        return
    if len(given) != len(names) or not all(value.isdecimal() for value in given.values()):
        raise InputError(
            f"{', '.join(f'{k}={v}' for k, v in given.items())} in the environment; needed are "
            "numbers for WORLD_SIZE, RANK and LOCAL_RANK, as torchrun sets them, or none"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        distributed.barrier()


def remove(path: Path) -> None:
    """Remove a file, if it is there, once every process is done with it."""
    barrier()
    if is_first():
        path.unlink(missing_ok=True)


def divisible(index: np.ndarray) -> np.ndarray:
    """A batch without the last examples that would make one process's part larger than another's.

    Equal parts make the mean of the parts' losses that of the batch.
    """
    return index[: len(index) - len(index) % world_size()]


def share(size: int) -> slice:
    """This process's part of a batch of ``size``, which the number of processes divides."""
    part = size // world_size()
    return slice(rank() * part, (rank() + 1) * part)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients become the mean over processes in every backward pass."""
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, forward_sync_buffers=False)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Let every batch norm of ``module`` see the whole batch, in place; nothing if alone."""
    if world_size() == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _synchronised(child))
        else:
            synchronise_batch_norm(child)


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    found = SyncBatchNormOnCpu(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
    found.load_state_dict(norm.state_dict())
    return found


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is that of every process's loss."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return summed(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


class SyncBatchNormOnCpu(nn.BatchNorm2d):
    """Batch norm over the batches of all processes: torch.nn.SyncBatchNorm is for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, T), normalised by the statistics of every process's B examples."""
        if not self.training:
            return super().forward(x)
        x, axes = x.float() if x.dtype == torch.bfloat16 else x, (0, 2, 3)
        count = summed(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = _Sum.apply(x.sum(axes)) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            unbiased = variance.detach() * count / (count - 1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = (self.weight * torch.rsqrt(variance + self.eps)).view(1, -1, 1, 1)
        return centred * scale + self.bias.view(1, -1, 1, 1)
