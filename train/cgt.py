"""Cross-gradient training: a scene and a device classifier learn from each other's perturbations.

Shankar et al., "Generalizing across domains via cross-gradient training", 2018 (arXiv 1804.10745),
algorithm 1; section 3.1.3 of the report. The device classifier is not deployed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from firmware_ref.errors import InputError
from train.objective import Batch, Objective


class CrossGradientObjective(Objective):
    """Scene loss J_S and device loss J_D, each on clean and on perturbed input.

    ``x_d = x + delta(J_D)`` moves towards another device and is what the scene network learns
    from, ``x_s = x + delta(J_S)`` towards another scene, for the device network::

        (1 - a) J_S(x) + a J_S(x_d) + (1 - a) J_D(x) + a J_D(x_s)

    ``a`` is ``perturbed_weight``. No gradient passes through a perturbation, so that one backward
    pass is a step of either network on its own part. ``delta_i = epsilon g_i / rms(g_i)`` with
    ``g_i`` the gradient of the loss by example i: the paper's ``epsilon g_i`` shrinks with the
    batch and with the loss, here ``device_epsilon`` and ``scene_epsilon`` are the root mean square
    of ``x_d - x`` and ``x_s - x`` in units of the normalised input. Batch norm lets the other
    examples' losses have their share in ``g_i``, as in the paper.

    ``base`` is J_S; J_D is the cross-entropy with ``batch.devices``, each device counted with
    ``device_weights`` (devices,) (`balanced_weights`). ``device_network`` maps ``batch.x`` to
    (B, devices) logits; its parameters are this objective's own. Perturbed passes normalise by
    statistics of their own batch and leave the running ones as the clean pass made them.
    """

    def __init__(
        self,
        base: Objective,
        device_network: nn.Module,
        device_weights: Tensor,
        device_epsilon: float,
        scene_epsilon: float,
        perturbed_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.base, self.device_network = base, device_network
        self.device_weights: Tensor
        self.register_buffer("device_weights", device_weights.float(), persistent=False)
        self.device_epsilon, self.scene_epsilon = device_epsilon, scene_epsilon
        self.perturbed_weight = perturbed_weight

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """The sum of both networks' mean losses over the batch, a float32 scalar."""
        clean = replace(batch, x=batch.x.detach().requires_grad_())
        own = [*network.parameters(), *self.base.parameters()]
        scene_loss, to_scene = _differentiated(self.base(network, clean), clean.x, own)
        own = [*self.device_network.parameters()]
        device_loss, to_device = _differentiated(self._device_loss(clean), clean.x, own)
        x_d = perturbed(batch.x, to_device, self.device_epsilon)
        x_s = perturbed(batch.x, to_scene, self.scene_epsilon)
        with running_statistics_kept(network, self.device_network):
            other_device = self.base(network, replace(batch, x=x_d))
            other_scene = self._device_loss(replace(batch, x=x_s))
        a = self.perturbed_weight
        return (1 - a) * (scene_loss + device_loss) + a * (other_device + other_scene)

    def _device_loss(self, batch: Batch) -> Tensor:
        # With probabilities as targets torch divides by the batch, not by the weights it met.
        logits = self.device_network(batch.x).float()
        return functional.cross_entropy(logits, batch.devices, weight=self.device_weights)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """(devices,) float32: N / (D n_d), by which the mean loss is that over D equal devices.

    ``counts`` are the training examples of each device; one that has none weighs 0 and is not
    among the D. Raises `InputError` where fewer than two have any.
    """
    present = sum(count > 0 for count in counts)
    if present < 2:
        raise InputError(
            f"cross-gradient training needs recordings of two devices at least, not {present}; "
            "switch it off for these"
        )
    total = sum(counts)
    return torch.tensor([total / (present * n) if n > 0 else 0.0 for n in counts])


def perturbed(x: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """``x_i + epsilon g_i / rms(g_i)`` for each example; one without gradient stays."""
    axes = tuple(range(1, x.ndim))
    tiny = torch.finfo(gradient.dtype).tiny
    # By its largest value first: squares of a confident network's gradients underflow.
    gradient = gradient / gradient.abs().amax(dim=axes, keepdim=True).clamp_min(tiny)
    rms = gradient.square().mean(dim=axes, keepdim=True).sqrt()
    return x + epsilon * gradient / rms.clamp_min(tiny)


def _differentiated(loss: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``loss``, whose gradients by ``parameters`` are computed now, and its gradient by ``x``.

    One backward pass serves both, and frees the graph of the forward pass before the next.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.autocast(x.device.type, enabled=False):  # it is for forward passes
        by_x, *found = torch.autograd.grad(loss, [x, *wanted], allow_unused=True)
    assert by_x is not None
    used = [(p, g) for p, g in zip(wanted, found, strict=True) if g is not None]
    known: Tensor = _Known.apply(loss.detach(), *(g for _, g in used), *(p for p, _ in used))
    return known, by_x


class _Known(torch.autograd.Function):
    """A loss (detached) with known gradients: arguments are those, then their parameters."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *rest: Tensor) -> Tensor:
        ctx.gradients = rest[: len(rest) // 2]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        return (None, *[None] * len(gradients), *[outer[0] * g for g in gradients])


@contextmanager
def running_statistics_kept(*modules: nn.Module) -> Iterator[None]:
    """Within, batch norms in training mode leave their running statistics and counters alone."""
    norms = [
        module
        for root in modules
        for module in root.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
