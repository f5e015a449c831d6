"""Three steps of cross-gradient training in float64, printed: run alone or by torchrun."""

from __future__ import annotations

import dataclasses
import json

import torch
from torch.nn import functional

from firmware_ref.arch import Network, preset
from train import distributed
from train.cgt import CrossGradientObjective, balanced_weights
from train.loop import _Step
from train.model import build_model
from train.objective import Batch, LabelObjective

EXAMPLES = 8


def network(classes: int) -> Network:
    return dataclasses.replace(
        preset("report-125k"),
        classes=classes,
        stem_channels=8,
        widths=(8, 8),
        blocks=(1, 1),
        head_channels=8,
        input_bands=16,
        input_frames=12,
        dropout=0.0,
    )


def steps() -> list[list[float]]:
    """Of each step: the mean loss over all examples, and a digest of every gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, devices = build_model(network(4)).double(), build_model(network(2)).double()
    objective = CrossGradientObjective(
        LabelObjective(), devices, balanced_weights([3, 1]), 0.3, 0.3
    )
    objective.double()
    for module in (model, objective):
        distributed.synchronise_batch_norm(module)
    step = distributed.parallel(_Step(model, objective))
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        x = torch.randn(EXAMPLES, 3, 16, 12, generator=generator, dtype=torch.float64)
        scenes = torch.randint(0, 4, (EXAMPLES,), generator=generator)
        heard = torch.randint(0, 2, (EXAMPLES,), generator=generator)
        whole = Batch(
            x, functional.one_hot(scenes, 4).float(), functional.one_hot(heard, 2).float()
        )
        own = distributed.share(EXAMPLES)
        loss = step(whole.part(own))
        optimizer.zero_grad()
        loss.backward()
        total = distributed.summed(loss.detach()).item() / distributed.world_size()
        gradients = [p.grad.norm().item() for p in parameters if p.grad is not None]
        statistics = [b.double().norm().item() for b in model.buffers()]
        found.append([total, *gradients, *statistics])
        optimizer.step()
    return found


if __name__ == "__main__":
    with distributed.processes():
        result = steps()
        if distributed.is_first():
            print(json.dumps(result))
