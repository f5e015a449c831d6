"""Folded device graph against the network it was folded from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from firmware_ref.arch import Network
from firmware_ref.lowering import lower
from train.fold import BATCH_NORM_EPSILON, fold
from train.model import BCResNetMod
from train.qat import DeviceNetwork
from train.state import module_tensors

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


def by_hand(tensors: dict[str, np.ndarray], layer: str, norm: str, index: int, channel: int) -> Any:
    """Weights (I, height, width) and bias of a channel: float64, with the norm's ``index``."""
    gamma, beta, mean, variance = (
        float(tensors[f"{norm}.{part}"][index])
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / (variance + BATCH_NORM_EPSILON) ** 0.5
    weight = tensors[f"{layer}.weight"][channel].astype(np.float64) * factor
    return weight, (float(tensors[f"{layer}.bias"][channel]) - mean) * factor + beta


def test_one_convolution_by_hand(tiny_network: Network, trained: Build) -> None:
    tensors = module_tensors(trained(tiny_network))
    constants = fold(tiny_network, tensors, lower(tiny_network))
    for layer, norm in (
        ("stem.conv", "stem.norm"),
        ("stage1.block2.temporal_conv", "stage1.block2.temporal_norm"),
        ("stage2.block1.expand", "stage2.block1.expand_norm"),
        ("stage2.block1.frequency_conv", "stage2.block1.sub_spectral_norm.norm"),
    ):
        for channel in range(len(tensors[f"{layer}.weight"])):
            weight, bias = by_hand(tensors, layer, norm, channel, channel)
            found = constants[f"{layer}/weight"]
            # (O, height, width, I), or (1, height, width, C) where depthwise.
            found = found[0, ..., channel] if found.shape[0] == 1 else found[channel]
            np.testing.assert_allclose(
                found, weight[0] if found.ndim == 2 else np.moveaxis(weight, 0, -1), rtol=1e-6
            )
            np.testing.assert_allclose(
                constants[f"{layer}/bias"][channel], bias, rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("bands", [2, 4])
def test_every_sub_band_has_weights_by_hand(
    bands: int, tiny_network: Network, trained: Build
) -> None:
    """Its own statistics, and one more on the centre tap where the block adds its input."""
    network = dataclasses.replace(tiny_network, ssn_bands=bands)
    tensors = module_tensors(trained(network))
    constants = fold(network, tensors, lower(network))
    for block, identity in (("stage1.block1", 1), ("stage1.block2", 1), ("stage2.block1", 0)):
        layer, norm = f"{block}.frequency_conv", f"{block}.sub_spectral_norm.norm"
        assert f"{layer}/weight" not in constants
        channels = len(tensors[f"{layer}.weight"])
        for band in range(bands):
            for channel in range(channels):
                # Torch's norm sees channel c of band s as channel c S + s.
                weight, bias = by_hand(tensors, layer, norm, channel * bands + band, channel)
                weight[0, 1, 0] += identity
                found = constants[f"{layer}.band{band + 1}/weight"]
                assert found.shape == (1, 3, 1, channels)
                np.testing.assert_allclose(found[0, ..., channel], weight[0], rtol=1e-5, atol=1e-6)
                found = constants[f"{layer}.band{band + 1}/bias"][channel]
                np.testing.assert_allclose(found, bias, rtol=1e-5, atol=1e-6)


def test_the_identity_is_one_more_on_the_centre_tap(tiny_network: Network, trained: Build) -> None:
    """Without a convolution and a norm's shift, a block of one width passes its input on."""
    model = trained(tiny_network)
    tensors = {name: value.copy() for name, value in module_tensors(model).items()}
    for name in tensors:
        if "frequency_conv.weight" in name:
            tensors[name][:] = 0
    constants = fold(tiny_network, tensors, lower(tiny_network))
    for block, identity in (("stage1.block1", 1), ("stage1.block2", 1), ("stage2.block1", 0)):
        found = constants[f"{block}.frequency_conv/weight"]
        expected = np.array([0, identity, 0], np.float32).reshape(1, 3, 1, 1)
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


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
