"""Folded device graph against the network it was folded from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from firmware_ref.arch import Network
from firmware_ref.lowering import lower
from train.fold import BATCH_NORM_EPSILON, fold
from train.loop import module_tensors
from train.model import BCResNetMod
from train.qat import DeviceNetwork

Build = Callable[..., BCResNetMod]
Device = Callable[[BCResNetMod], DeviceNetwork]


def assert_equal_in_eval(model: BCResNetMod, device: DeviceNetwork, tolerance: float) -> None:
    network = model.network
    shape = (1, network.input_channels, network.input_bands, network.input_frames)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = model(x), device(x)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < tolerance, f"{network.name}: {error:.2e}"


def test_random_networks_fold_without_a_change(
    family: list[Network], trained: Build, folded: Device
) -> None:
    for network in family:
        # The device graph has no epsilon beside the variance (see `firmware_ref.lowering`).
        model = trained(dataclasses.replace(network, res_norm_epsilon=1e-12))
        assert_equal_in_eval(model, folded(model), 1e-5)


@pytest.mark.parametrize("bands", [1, 4])
def test_epsilon_makes_no_visible_difference(
    bands: int, tiny_network: Network, trained: Build, folded: Device
) -> None:
    model = trained(dataclasses.replace(tiny_network, ssn_bands=bands))
    assert_equal_in_eval(model, folded(model), 1e-4)


def test_the_comparison_sees_one_nudged_statistic(
    tiny_network: Network, trained: Build, folded: Device
) -> None:
    model = trained(tiny_network)
    device = folded(model)
    norm = model.get_submodule("stage1.block1.temporal_norm")
    assert isinstance(norm.running_mean, torch.Tensor)
    norm.running_mean[0] += 0.5
    with pytest.raises(AssertionError, match="tiny"):
        assert_equal_in_eval(model, device, 1e-4)


def test_one_convolution_by_hand(tiny_network: Network, trained: Build) -> None:
    model = trained(tiny_network)
    tensors = module_tensors(model)
    constants = fold(tiny_network, tensors, lower(tiny_network))
    for layer, norm in (
        ("stem.conv", "stem.norm"),
        ("stage1.block2.frequency_conv", "stage1.block2.sub_spectral_norm.norm"),
        ("stage2.block1.expand", "stage2.block1.expand_norm"),
    ):
        weight = tensors[f"{layer}.weight"].astype(np.float64)
        bias = tensors[f"{layer}.bias"].astype(np.float64)
        gamma, beta, mean, variance = (
            tensors[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        for channel in range(len(weight)):
            factor = gamma[channel] / (variance[channel] + BATCH_NORM_EPSILON) ** 0.5
            index = channel if layer != "stage1.block2.frequency_conv" else 0
            found = constants[f"{layer}/weight"][index]
            if layer == "stage1.block2.frequency_conv":
                found, expected = found[..., channel], weight[channel, 0] * factor
            else:
                expected = np.moveaxis(weight[channel] * factor, 0, -1)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            offset = (bias[channel] - mean[channel]) * factor + beta[channel]
            np.testing.assert_allclose(
                constants[f"{layer}/bias"][channel], offset, rtol=1e-5, atol=1e-6
            )


def test_the_epsilon_is_that_of_the_modules(tiny_network: Network, trained: Build) -> None:
    norms = [m for m in trained(tiny_network).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {BATCH_NORM_EPSILON}


def test_constants_have_the_names_shapes_and_type_of_the_graph(
    family: list[Network], trained: Build
) -> None:
    for network in family:
        graph = lower(network)
        constants = fold(network, module_tensors(trained(network)), graph)
        computed = {graph.name(operator) for operator in graph.operators}
        wanted = {
            t.name: t.shape
            for t in graph.tensors
            if t.data is None and t.name not in computed and t.name != "input"
        }
        assert {name: value.shape for name, value in constants.items()} == wanted
        assert all(value.dtype == np.float32 for value in constants.values())
