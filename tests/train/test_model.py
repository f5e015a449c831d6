"""The torch modules against the table of layers, the equations and hand-made norms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from firmware_ref.arch import PRESETS, Network, layers, preset
from train.model import ResNorm, SubSpectralNorm, build_model, same_padding

# Kinds of layers that hold parameters, and the module each is.
MODULES: dict[str, type[nn.Module]] = {
    "conv": nn.Conv2d,
    "batch_norm": nn.BatchNorm2d,
    "sub_spectral_norm": SubSpectralNorm,
}


def parameters_of(module: nn.Module) -> tuple[int, int]:
    """Weights and biases."""
    found = list(module.named_parameters())
    weights = sum(p.numel() for n, p in found if n.endswith("weight"))
    return weights, sum(p.numel() for n, p in found if n.endswith("bias"))


def assert_modules_are_the_layers(network: Network) -> None:
    model = build_model(network)
    modules = dict(model.named_modules())
    table = layers(network)
    for layer in table:
        if layer.kind in MODULES:
            module = modules[layer.name]
            assert isinstance(module, MODULES[layer.kind]), layer.name
            assert parameters_of(module) == (layer.weights, layer.biases), layer.name
        elif layer.kind == "res_norm":
            assert isinstance(modules[layer.name], ResNorm)
    named = {layer.name for layer in table if layer.parameters}
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    # A sub-spectral norm keeps its parameters in a batch norm inside it.
    assert {o.removesuffix(".sub_spectral_norm.norm") for o in owners} == {
        n.removesuffix(".sub_spectral_norm") for n in named
    }
    assert {n for n, m in modules.items() if isinstance(m, ResNorm)} == {
        layer.name for layer in table if layer.kind == "res_norm"
    }
    assert sum(p.numel() for p in model.parameters()) == sum(t.parameters for t in table)


@pytest.mark.parametrize("name", PRESETS)
def test_modules_of_the_presets_are_the_layers(name: str) -> None:
    assert_modules_are_the_layers(preset(name))


def test_modules_of_random_networks_are_the_layers(family: list[Network]) -> None:
    for network in family:
        assert_modules_are_the_layers(network)


def test_parameters_of_the_report() -> None:
    assert sum(p.numel() for p in build_model(preset("report-125k")).parameters()) == 125_330


def test_maps_have_the_shapes_of_the_layers(family: list[Network]) -> None:
    for network in family:
        model = build_model(network).eval()
        modules = dict(model.named_modules())
        seen: dict[str, tuple[int, ...]] = {}

        def keep(name: str, seen: dict[str, tuple[int, ...]] = seen) -> object:
            return lambda module, inputs, output: seen.update({name: tuple(output.shape[1:])})

        wanted = {t.name: t.output_shape for t in layers(network) if t.name in modules}
        for name in wanted:
            modules[name].register_forward_hook(keep(name))
        x = torch.randn(1, network.input_channels, network.input_bands, network.input_frames)
        with torch.no_grad():
            assert model(x).shape == (1, network.classes)
        assert seen == wanted


def test_residual_normalisation_is_the_equations_of_the_report(rng: np.random.Generator) -> None:
    x = rng.normal(1, 2, (2, 3, 5, 7)).astype(np.float32)
    network = dataclasses.replace(preset("report-125k"), res_norm_lambda=0.3, res_norm_epsilon=0.01)
    found = ResNorm(network)(torch.from_numpy(x)).numpy()
    batch, channels, bands, frames = x.shape
    for n in range(batch):
        for f in range(bands):
            # Equations 3 and 4: mean and variance over channels and time of one band.
            values = [float(x[n, c, f, t]) for c in range(channels) for t in range(frames)]
            mean = sum(values) / (channels * frames)
            variance = sum((v - mean) ** 2 for v in values) / (channels * frames)
            for c in range(channels):
                for t in range(frames):
                    value = float(x[n, c, f, t])
                    # Equations 1 and 2: lambda x + FreqIN(x).
                    expected = 0.3 * value + (value - mean) / (variance + 0.01) ** 0.5
                    assert abs(found[n, c, f, t] - expected) < 1e-5


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_sub_spectral_norm_is_a_batch_norm_for_every_sub_band(
    bands: int, rng: np.random.Generator
) -> None:
    channels, frequency = 6, 8
    norm = SubSpectralNorm(channels, bands)
    for tensor in (norm.norm.weight, norm.norm.bias):
        nn.init.normal_(tensor)
    singles = []
    for band in range(bands):
        single = nn.BatchNorm2d(channels)
        own = slice(band, None, bands)  # channel-major: entry c * S + band
        with torch.no_grad():
            single.weight.copy_(norm.norm.weight[own])
            single.bias.copy_(norm.norm.bias[own])
        singles.append(single)
    for training in (True, True, False):
        x = torch.from_numpy(rng.normal(2, 3, (4, channels, frequency, 5)).astype(np.float32))
        norm.train(training)
        parts = [
            single.train(training)(part)
            for single, part in zip(singles, x.chunk(bands, dim=2), strict=True)
        ]
        torch.testing.assert_close(norm(x), torch.cat(parts, dim=2), rtol=1e-5, atol=1e-5)
    for band, single in enumerate(singles):
        assert norm.norm.running_var is not None and single.running_var is not None
        torch.testing.assert_close(norm.norm.running_var[band::bands], single.running_var)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (128, 5, 2, (1, 2)),
        (44, 5, 2, (1, 2)),
        (43, 5, 2, (2, 2)),
        (7, 3, 1, (1, 1)),
        (7, 1, 1, (0, 0)),
        (8, 1, 2, (0, 0)),
        (8, 2, 2, (0, 0)),
        (9, 2, 2, (0, 1)),
        (1, 5, 2, (2, 2)),
    ],
)
def test_same_padding_by_hand(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_same_padding_puts_the_convolution_where_the_device_does() -> None:
    """TFLite: output o reads input from ``o * stride - before`` on, of ceil(size / stride)."""
    for size in range(1, 30):
        for kernel, stride in ((5, 2), (3, 1), (3, 3), (2, 1)):
            before, after = same_padding(size, kernel, stride)
            outputs = -(-size // stride)
            assert (size + before + after - kernel) // stride + 1 == outputs
            assert 0 <= after - before <= 1
            needed = (outputs - 1) * stride + kernel
            assert needed == size + before + after or (before, after) == (0, 0)


def test_dropout_acts_in_training_only(tiny_network: Network) -> None:
    model = build_model(dataclasses.replace(tiny_network, dropout=0.5))
    x = torch.randn(2, 3, 32, 20)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(x), model(x))
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(model(x), model(x))


def test_a_seed_fixes_the_initial_weights(tiny_network: Network) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(tiny_network).state_dict())
    equal = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    assert all(equal)
    assert not torch.equal(states[0]["stem.conv.weight"], states[2]["stem.conv.weight"])
