"""The front end in torch: log-mel to normalised network input, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Frontend(nn.Module):
    """(B, F, T) log-mel to (B, C, F, T) network input, float32, channels last in memory.

    The same arithmetic as `firmware_ref.features.stack_deltas` and
    `firmware_ref.frontend.network_input`; C is the number of means, 1 to 3.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, F, T) log-mel, any float, to (B, C, F, T) float32."""
        maps = [log_mel.float()]
        while len(maps) < len(self.mean):
            maps.append(delta(maps[-1]))
        x = (torch.stack(maps, dim=-1) - self.mean) / self.std  # (B, F, T, C)
        return x.permute(0, 3, 1, 2)


def delta(x: Tensor) -> Tensor:
    """Five-point regression along the last axis of (B, F, T): `firmware_ref.features.delta`."""
    padded = functional.pad(x, (2, 2), mode="replicate")
    frames = x.shape[-1]
    near = padded[..., 3 : 3 + frames] - padded[..., 1 : 1 + frames]
    far = padded[..., 4 : 4 + frames] - padded[..., :frames]
    return near * 0.1 + far * 0.2
