"""BC-ResNet-Mod as torch modules, built from `firmware_ref.arch.Network`.

Maps are (B, C, F, T): batch, channels, frequency bands, time frames. Module paths are the layer
names of `firmware_ref.arch.layers`.

Sources: Kim et al., "Broadcasted residual learning for efficient keyword spotting", Interspeech
2021 (block); Kim et al., DCASE 2021 task 1 report (residual normalisation); Cao et al., DCASE
2022 task 1 report, equations 1-4.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from firmware_ref.arch import Network

BATCH_NORM_EPSILON = 1e-5


class ResNorm(nn.Module):
    """``lambda x + FreqIN(x)``: equations 1-4 of the report; no parameters.

    Mean and biased variance are taken over (C, T) of each example and frequency band.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.identity_weight = network.res_norm_lambda
        self.epsilon = network.res_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        # A layer norm over (T, C) of each band, which lie together in channels-last memory; as
        # var_mean and what autograd makes of it, a third of an epoch was spent here.
        bands = x.permute(0, 2, 3, 1)  # (B, F, T, C)
        normalized = functional.layer_norm(bands, bands.shape[2:], eps=self.epsilon)
        return (self.identity_weight * bands + normalized).permute(0, 3, 1, 2)


class SubSpectralNorm(nn.Module):
    """Batch norm over C x S: each of S equal frequency sub-bands has statistics of its own.

    Chang et al., "Sub-spectral normalization for neural audio data processing", ICASSP 2021,
    with an affine transform for every channel and sub-band.
    """

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.norm = nn.BatchNorm2d(channels * bands, eps=BATCH_NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if self.bands == 1:
            return self.norm(x)
        batch, channels, frequency, frames = x.shape
        x = x.reshape(batch, channels * self.bands, frequency // self.bands, frames)
        return self.norm(x).reshape(batch, channels, frequency, frames)


class BCResBlock(nn.Module):
    """Broadcasted residual block: a 2-D frequency path and a 1-D temporal path.

    ``y = SSN(depthwise 3x1 (x))``; ``z = project(SiLU(BN(depthwise 1x3 (mean_F y))))``;
    ``relu(y + z + x)``, without ``x`` where a 1x1 convolution changes the width first.
    """

    def __init__(self, network: Network, channels_in: int, width: int) -> None:
        super().__init__()
        bias = network.conv_bias
        self.expand: nn.Module | None = None
        if channels_in != width:
            self.expand = nn.Conv2d(channels_in, width, 1, bias=bias)
            self.expand_norm = nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)
        self.frequency_conv = nn.Conv2d(
            width, width, (3, 1), padding=(1, 0), groups=width, bias=bias
        )
        self.sub_spectral_norm = SubSpectralNorm(width, network.ssn_bands)
        self.temporal_conv = nn.Conv2d(
            width, width, (1, 3), padding=(0, 1), groups=width, bias=bias
        )
        self.temporal_norm = nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)
        self.project = nn.Conv2d(width, width, 1, bias=bias)
        self.dropout = nn.Dropout2d(network.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.expand is not None:
            x = functional.relu(self.expand_norm(self.expand(x)))  # (B, C, F, T)
        y = self.sub_spectral_norm(self.frequency_conv(x))  # (B, C, F, T)
        z = y.mean(dim=2, keepdim=True)  # (B, C, 1, T)
        z = functional.silu(self.temporal_norm(self.temporal_conv(z)))
        y = y + self.dropout(self.project(z))
        return functional.relu(y if self.expand is not None else y + x)


class Stem(nn.Module):
    """5x5 convolution of stride 2, batch norm, ReLU; padded as TFLite's SAME."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        # TFLite's SAME padding of a strided convolution is asymmetric. Training with the same
        # padding spares the device a PAD operator and a padded copy of its input.
        self.padding = (
            *same_padding(network.input_frames, 5, 2),
            *same_padding(network.input_bands, 5, 2),
        )
        self.conv = nn.Conv2d(
            network.input_channels, network.stem_channels, 5, stride=2, bias=network.conv_bias
        )
        self.norm = (
            nn.BatchNorm2d(network.stem_channels, eps=BATCH_NORM_EPSILON)
            if network.stem_norm
            else None
        )
        on = network.res_norm and network.first_res_norm == "stem"
        self.res_norm = ResNorm(network) if on else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(functional.pad(x, self.padding))
        x = functional.relu(x if self.norm is None else self.norm(x))
        return x if self.res_norm is None else self.res_norm(x)


class Stage(nn.Sequential):
    """Blocks of one width, then 2x2 max-pooling and residual normalisation where configured."""

    def __init__(self, network: Network, number: int, channels_in: int) -> None:
        super().__init__()
        width = network.widths[number - 1]
        for block in range(1, network.blocks[number - 1] + 1):
            self.add_module(f"block{block}", BCResBlock(network, channels_in, width))
            channels_in = width
        if number in network.pool_after:
            self.add_module("pool", nn.MaxPool2d(2))
        if network.res_norm:
            self.add_module("res_norm", ResNorm(network))


class Head(nn.Module):
    """1x1 convolution to more channels, optional batch norm, ReLU."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        assert network.head_channels is not None
        self.conv = nn.Conv2d(network.widths[-1], network.head_channels, 1, bias=network.conv_bias)
        self.norm = (
            nn.BatchNorm2d(network.head_channels, eps=BATCH_NORM_EPSILON)
            if network.head_norm
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return functional.relu(x if self.norm is None else self.norm(x))


class BCResNetMod(nn.Module):
    """The whole network: (B, C, F, T) float32 network input to (B, classes) logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        on = network.res_norm and network.first_res_norm == "input"
        self.input_norm = ResNorm(network) if on else None
        self.stem = Stem(network)
        channels = network.stem_channels
        self.stages = []
        for number, width in enumerate(network.widths, start=1):
            stage = Stage(network, number, channels)
            self.add_module(f"stage{number}", stage)
            self.stages.append(stage)
            channels = width
        self.head = Head(network) if network.head_channels is not None else None
        channels = network.head_channels or channels
        self.classifier = nn.Conv2d(channels, network.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)  # (B, C, F, T)
        x = self.stem(x)  # (B, stem, F/2, T/2)
        for stage in self.stages:
            x = stage(x)
        if self.head is not None:
            x = self.classifier(self.head(x).mean(dim=(2, 3), keepdim=True))  # (B, classes, 1, 1)
        else:
            x = self.classifier(x).mean(dim=(2, 3), keepdim=True)
        return x.flatten(1)


def build_model(network: Network) -> BCResNetMod:
    """Untrained modules for ``network``, initialised by torch's current random state."""
    return BCResNetMod(network)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis under TFLite's SAME rule (the odd one goes after)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
