"""SpecAugment's masks: one run of bands and one run of frames of each example are silenced.

Park et al., "SpecAugment", 2019, section 2; the recipe has one mask of each sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firmware_ref.errors import InputError

FREQUENCY, TIME = 2, 3


def frequency_mask(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Zero one run of under ``limit`` bands of each example of (B, C, F, T); 0 switches it off.

    Zero is the training mean of the normalised input. Raises `InputError` where ``limit`` > F.
    """
    return _mask(x, FREQUENCY, limit, generator, "bands")


def time_mask(x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Zero one run of under ``limit`` frames of each example of (B, C, F, T); 0 switches it off.

    Zero is the training mean of the normalised input. Raises `InputError` where ``limit`` > T.
    """
    return _mask(x, TIME, limit, generator, "frames")


def _mask(x: Tensor, axis: int, limit: int, generator: torch.Generator, what: str) -> Tensor:
    """A width of 0 to ``limit`` - 1, then a start from which it fits, each equally likely."""
    if limit == 0:
        return x
    size = x.shape[axis]
    if limit > size:
        raise InputError(f"a mask under {limit} {what} does not fit {size}; at most {size}")
    width = torch.randint(0, limit, (len(x), 1), generator=generator, device=x.device)
    place = torch.rand(len(x), 1, generator=generator, device=x.device)
    start = (place * (size - width + 1)).long()
    index = torch.arange(size, device=x.device)
    keep = (index < start) | (index >= start + width)  # (B, size)
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    return x * keep.view(shape)
