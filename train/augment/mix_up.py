"""Mix-up: examples between two others."""

from __future__ import annotations

import torch

from train.objective import Batch


def mix_up(batch: Batch, alpha: float, generator: torch.Generator) -> Batch:
    """``w X_i + (1 - w) X_j`` with one w ~ Beta(alpha, alpha) an example; 0 switches it off.

    Input, scenes, devices and the teacher's probabilities are mixed alike. The second batch X_j is
    the shuffled batch X_i in another order, which is as good as another one from the shuffled data
    and costs no second reading; features are mixed rather than samples. Zhang et al., "mixup:
    beyond empirical risk minimization", 2017, equation 1; section 2.1 of the report.
    """
    if alpha == 0:
        return batch
    size, device = len(batch.x), batch.x.device
    # A Beta variate is G1 / (G1 + G2) of two Gamma variates.
    shape = torch.full((2, size), float(alpha), device=device)
    gamma = torch._standard_gamma(shape, generator=generator)
    # Both may underflow where alpha is tiny.
    weight = gamma[0] / gamma.sum(dim=0).clamp_min(torch.finfo(gamma.dtype).tiny)  # (B,)
    partner = torch.randperm(size, generator=generator, device=device)

    def mix(values: torch.Tensor) -> torch.Tensor:
        w = weight.view(-1, *[1] * (values.ndim - 1))
        return w * values + (1 - w) * values[partner]

    teacher = None if batch.teacher is None else mix(batch.teacher)
    return Batch(mix(batch.x), mix(batch.scenes), mix(batch.devices), teacher)
