"""SpecAugment's time warp: one moment of each example comes earlier or later.

Park et al., "SpecAugment", 2019, section 2, with a piecewise linear axis for its spline, as most
implementations have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firmware_ref.errors import InputError

# The closest a displaced point comes to an end, in frames: no part of the axis has length 0.
MARGIN_FRAMES = 1e-3


def time_warp(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Warp the time axis of each example of log-mel, before deltas; 0 switches it off.

    ``x`` is (B, F, T) or (B, 1, F, T) float32. A point uniform in (limit, T - 1 - limit) is
    displaced by less than ``limit`` frames, uniformly to either side. Raises `InputError` where
    no point is that far from both ends.
    """
    if limit == 0:
        return x
    last = x.shape[-1] - 1
    if 2 * limit >= last:
        raise InputError(
            f"a time warp of {limit} frames does not fit {last + 1}; at most {(last - 1) // 2}"
        )
    draws = torch.rand(2, len(x), generator=generator, device=x.device)
    point = limit + draws[0] * (last - 2 * limit)
    return warp(x, point, (2 * draws[1] - 1) * limit)


def warp(x: Tensor, point: Tensor, displacement: Tensor) -> Tensor:
    """(..., T) with frame ``point`` moved by ``displacement``, both (B,) in frames; ends stay.

    Between the ends and the point the axis is stretched evenly; values between two frames are
    interpolated linearly.
    """
    last = x.shape[-1] - 1
    moved = (point + displacement).clamp(MARGIN_FRAMES, last - MARGIN_FRAMES).unsqueeze(1)  # (B, 1)
    point = point.unsqueeze(1)
    time = torch.arange(last + 1, device=x.device)
    # Each half is measured from its end, which it hits exactly.
    before = time * (point / moved)
    after = last - (last - time) * ((last - point) / (last - moved))
    source = torch.where(time < moved, before, after)  # (B, T), in frames of x
    frame = source.long().clamp(0, last - 1)
    shape = (len(x), *[1] * (x.ndim - 2), last + 1)
    fraction = (source - frame).view(shape)
    index = frame.view(shape).expand(x.shape)
    return torch.lerp(x.gather(-1, index), x.gather(-1, index + 1), fraction.expand(x.shape))
