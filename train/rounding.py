"""The integer kernels' own rounding, for the simulated network: which way they go near a half.

A simulated value is rounded to its grid by `torch.fake_quantize_per_tensor_affine`: to the nearest
step, a half to even. The kernels differ in two ways, each by up to 3 % of the values of a layer:

* MultiplyByQuantizedMultiplier rounds twice, half away from zero: first to ``2**shift`` of a step,
  then to a step. What lies half of that first unit below a half is rounded up with it.
* AVERAGE_POOL_2D divides a sum of codes, and rounds half away from code 0, which is not real 0.

Both are moved across the half here, before the grid rounds them; gradients pass through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from firmware_ref import scheme
from firmware_ref.fixedpoint import quantize_multiplier
from firmware_ref.graph import Operator

if TYPE_CHECKING:
    from train.qat import DeviceNetwork


def as_the_kernel(network: DeviceNetwork, operator: Operator, y: Tensor) -> Tensor:
    """``y`` (B, C, F, T), the operator's real result, moved to where its kernel rounds it."""
    if operator.kind == "AVERAGE_POOL_2D":
        return _pooled(network, operator, y)
    first_unit = _first_unit(network, operator)
    if first_unit is None:
        return y
    return y + torch.copysign(first_unit.to(y.device) / 2, y.detach())


def _first_unit(network: DeviceNetwork, operator: Operator) -> Tensor | None:
    """Real size of the first rounding's unit: a number, or (1, C, 1, 1); None without one."""
    scales = [network.quantization.get(network.graph.tensors[i].name) for i in operator.inputs]
    out = network.quantization[network.graph.name(operator)].scale[0]
    if operator.kind in scheme.WEIGHT_AXIS:
        assert scales[0] is not None
        multipliers = scales[0].scale[0] * network.weight_scales(operator).astype(np.float64) / out
    elif operator.kind == "MUL":
        first, second = (network.scale_of(i) for i in operator.inputs)
        multipliers = np.array([first * second / out])
    elif operator.kind in ("ADD", "SUB"):
        # The sum is carried at 2 max(s1, s2) / 2**20: one rounding to that, and two more.
        twice_larger = 2 * max(network.scale_of(i) for i in operator.inputs)
        multipliers = np.array([twice_larger / (2**20 * out)])
    else:
        return None
    shifts = np.array([quantize_multiplier(float(m))[1] for m in multipliers])
    units = np.where(shifts < 0, out * np.ldexp(1.0, shifts), 0.0).astype(np.float32)
    return torch.from_numpy(units).view(1, -1, 1, 1)


def _pooled(network: DeviceNetwork, operator: Operator, y: Tensor) -> Tensor:
    """The mean of codes rounded as ``(sum +- count / 2) / count``, in integers."""
    quantization = network.quantization[network.graph.name(operator)]
    scale, zero_point = quantization.scale[0], quantization.zero_point[0]
    count = operator.options["filter_height"] * operator.options["filter_width"]
    sums = torch.round((y.detach() / scale + zero_point) * count)
    codes = torch.sign(sums) * torch.floor((sums.abs() + count // 2) / count)
    return y + ((codes - zero_point) * scale - y.detach())
