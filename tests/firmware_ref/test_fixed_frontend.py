"""The front end in integers against the features in floating point, step by step and whole."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_ref import scheme
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, delta, features, mel_filterbank
from firmware_ref.features import log_mel as float_log_mel
from firmware_ref.fixed_fft import headroom, spectrum
from firmware_ref.fixed_frontend import (
    CHANNEL_GAINS,
    LOG_FLOOR,
    POWER_BITS,
    AffineMap,
    FixedFrontend,
    affine_map,
    delta_tenfold,
    log_mel,
    mel_energies,
    mel_segments,
    pcm16,
)
from firmware_ref.frontend import network_input
from firmware_ref.graph import Quantization, parse
from firmware_ref.signals import signal_clips

DEFINITION = FeatureDefinition()
MEAN, STD = (-1.7, -0.005, 0.0016), (5.3, 0.65, 0.27)
GRID = Quantization((0.0465,), (8,))
# In units of the natural logarithm: the most where a quiet bin lies beside a loud one, and where
# all bins are alike.
WORST, ALIKE = 0.005, 1e-4


def clips() -> dict[str, np.ndarray]:
    """Made signals and the extremes of int16, (44100,) each."""
    rng = np.random.default_rng(4)
    n = np.arange(DEFINITION.clip_samples)
    found = {name: pcm16(x) for name, x in signal_clips(DEFINITION).items()}
    signs = np.where(rng.random(len(n)) < 0.5, -32768, 32767)
    found |= {
        "lowest": np.full(len(n), -32768, np.int16),
        "nyquist": np.where(n % 2, 32767, -32768).astype(np.int16),
        "full-scale signs": signs.astype(np.int16),
        "full-scale noise": rng.integers(-32768, 32768, len(n)).astype(np.int16),
        "least bit": rng.integers(-1, 2, len(n)).astype(np.int16),
        "last sample": (32767 * (n == n[-1])).astype(np.int16),
    }
    return found


def as_float(pcm: np.ndarray) -> np.ndarray:
    return pcm / np.float32(2**15)


def float_codes(pcm: np.ndarray) -> np.ndarray:
    """What the network is given today: features, normalisation, quantisation in floating point."""
    return scheme.quantize(network_input(features(as_float(pcm), DEFINITION), MEAN, STD), GRID)


# Samples


def test_samples_are_the_nearest_int16_clipped() -> None:
    x = np.array([0, 1, -1, 1.5, -1.5, 0.5, 1.4 / 2**15, -1.6 / 2**15, 32766.6 / 2**15])
    assert pcm16(x).tolist() == [0, 32767, -32768, 32767, -32768, 16384, 1, -2, 32767]
    every = np.arange(-(2**15), 2**15).astype(np.int16)
    np.testing.assert_array_equal(pcm16(as_float(every)), every)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_samples_of_another_type_are_refused(dtype: type) -> None:
    with pytest.raises(InputError, match=np.dtype(dtype).name):
        log_mel(np.zeros(DEFINITION.clip_samples, dtype))


# Mel energies


def dense_filters() -> np.ndarray:
    """The segments and their weights as a matrix, (128, 1023)."""
    counts, rises = mel_segments()
    dense = np.zeros((129, 1023))
    falling = np.repeat(np.arange(128), counts)
    at = np.arange(1023)
    dense[falling, at] = 1 - rises / 2**16
    dense[falling + 1, at] += rises / 2**16
    return dense[:128]


def test_the_weights_are_the_filterbank() -> None:
    counts, rises = mel_segments()
    filters = mel_filterbank(DEFINITION)
    assert counts.sum() == 1023 and counts.max() < 256
    assert rises.min() >= 0 and rises.max() < 2**16
    # Half a step of Q16, and float32 in the definition.
    np.testing.assert_allclose(dense_filters(), filters[:, 1:1024], rtol=0, atol=0.51 / 2**16)
    assert np.abs(filters[:, [0, 1024]]).max() < 1e-6


def test_energies_are_sums_of_products_cut_once_a_segment(rng: np.random.Generator) -> None:
    re, im = rng.integers(-(2**26), 2**26, (2, 5, 1023))
    power = (re.astype(object) ** 2 + im.astype(object) ** 2).tolist()  # Python's integers
    counts, rises = mel_segments()
    ends = np.cumsum(counts).tolist()
    for row, ours in zip(power, mel_energies(re, im), strict=True):
        carried = 0
        for band, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True)):
            bins = range(end - count, end)
            total, rising = sum(row[k] for k in bins), sum(row[k] * int(rises[k]) for k in bins)
            assert ours[band] == total - rising // 2**16 + carried
            carried = rising // 2**16


@pytest.mark.parametrize("name", list(clips()))
def test_energies_stay_below_2_to_the_58(name: str) -> None:
    frames = clips()[name][: 2048 * 8].reshape(-1, 2048)
    shifts = headroom(frames)
    re, im = spectrum(frames, shifts)
    assert (re * re + im * im).sum(axis=1).max() < 2**58
    energies = mel_energies(re, im)
    assert energies.min() >= 0 and (energies + (LOG_FLOOR << 2 * shifts)).max() < 2**63


def test_the_floor_is_the_definitions() -> None:
    assert pytest.approx(DEFINITION.log_floor, rel=2e-6) == LOG_FLOOR / 2**POWER_BITS


# Log-mels


@pytest.mark.parametrize("name", list(clips()))
def test_log_mels_are_the_definitions(name: str) -> None:
    pcm = clips()[name]
    error = log_mel(pcm) / 2**18 - float_log_mel(as_float(pcm), DEFINITION)
    assert np.abs(error).max() < WORST
    if name in ("noise", "full-scale noise", "full-scale signs", "least bit", "silence"):
        assert np.abs(error).max() < ALIKE


def test_silence_is_the_logarithm_of_the_floor() -> None:
    (found,) = np.unique(log_mel(np.zeros(DEFINITION.clip_samples, np.int16)))
    assert abs(found - np.log(1e-6) * 2**18) <= 1


def test_a_batch_equals_its_clips_one_by_one(rng: np.random.Generator) -> None:
    batch = rng.integers(-3000, 3000, (2, 2, 44_100)).astype(np.int16)
    together = log_mel(batch)
    assert together.shape == (2, 2, 128, 44) and together.dtype == np.int32
    for index in np.ndindex(2, 2):
        np.testing.assert_array_equal(together[index], log_mel(batch[index]))
    assert log_mel(batch[:0]).shape == (0, 2, 128, 44)


def test_a_nudged_sample_is_seen() -> None:
    pcm = clips()["noise"]
    nudged = pcm.copy()
    nudged[20 * 1024] += 1
    changed = np.flatnonzero((log_mel(pcm) != log_mel(nudged)).any(axis=0))
    assert changed.tolist() == [20, 21]


# Deltas


def test_a_delta_is_ten_times_the_definitions_and_exact(rng: np.random.Generator) -> None:
    x = rng.integers(-(2**22), 2**22, (128, 44))
    np.testing.assert_allclose(delta_tenfold(x) / 10, delta(x), rtol=0, atol=1)
    worked = delta_tenfold(np.array([0, 1, 4, 9, 16, 25]))
    assert worked.tolist() == [9, 22, 40, 60, 58, 41]


def test_deltas_stay_below_2_to_the_28() -> None:
    low, high = round(np.log(1e-6) * 2**18), 14 * 2**18
    worst = np.where(np.arange(44) // 2 % 2, low, high)
    for x in (worst, -worst, np.roll(worst, 1)):
        first = delta_tenfold(x)
        assert np.abs(first).max() < 2**25 and np.abs(delta_tenfold(first)).max() < 2**28


# Normalisation and quantisation


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_map_is_normalisation_and_quantisation(channel: int, rng: np.random.Generator) -> None:
    gain, mean, std = CHANNEL_GAINS[channel], MEAN[channel], STD[channel]
    apply = affine_map(gain, mean, std, GRID)
    x = np.concatenate([rng.integers(-(2**28), 2**28, 10_000), [-(2**28), 2**28 - 1, 0]])
    exact = np.floor((x / gain - mean) / std / GRID.scale[0] + GRID.zero_point[0] + 0.5)
    np.testing.assert_array_equal(apply(x), np.clip(exact, -128, 127))
    total = [int(v) * apply.multiplier + apply.offset for v in (-(2**28), 2**28)]
    assert max(map(abs, total)) < 2**63 and apply.multiplier < 2**31


def test_a_map_rounds_half_up_and_saturates() -> None:
    halves = AffineMap(2**30, 2**30, 31)
    assert halves(np.array([-3, -2, -1, 0, 1, 2, 3])).tolist() == [-1, -1, 0, 0, 1, 1, 2]
    assert halves(np.array([-256, -257, 254, 255, 2**27])).tolist() == [-128, -128, 127, 127, 127]


@pytest.mark.parametrize(
    ("mean", "std", "scale"), [(0, 1e-30, 0.05), (1e30, 1, 0.05), (0, 1, 1e-16), (1e6, 1e-6, 0.05)]
)
def test_a_map_that_does_not_fit_is_refused(mean: float, std: float, scale: float) -> None:
    with pytest.raises(InputError, match="does not fit"):
        affine_map(CHANNEL_GAINS[0], mean, std, Quantization((scale,), (0,)))


def test_a_channel_that_hardly_varies_is_its_zero_point() -> None:
    apply = affine_map(CHANNEL_GAINS[2], 0.0, 1e20, GRID)
    assert apply.multiplier == 0 and apply(np.array([-(2**28), 2**28])).tolist() == [8, 8]


# The whole


@pytest.mark.parametrize("name", list(clips()))
def test_codes_are_within_one_of_the_float_features(name: str) -> None:
    pcm = clips()[name]
    found = FixedFrontend.of(MEAN, STD, GRID).inputs(pcm)
    assert found.shape == (128, 44, 3) and found.dtype == np.int8
    apart = np.abs(found.astype(int) - float_codes(pcm))
    assert apart.max() <= 1 and (apart == 0).mean() > 0.99


def test_a_models_front_end_is_that_of_its_metadata(model_bytes: bytes) -> None:
    graph = parse(model_bytes)
    quantization = graph.tensors[graph.inputs[0]].quantization
    assert quantization is not None
    expected = FixedFrontend.of((-8.0, 0.0, 0.0), (3.0, 0.3, 0.1), quantization)
    assert FixedFrontend.of_graph(graph) == expected


def test_a_network_of_one_channel_hears_log_mels_alone() -> None:
    pcm = np.random.default_rng(0).integers(-3000, 3000, 5000).astype(np.int16)
    alone = FixedFrontend.of(MEAN[:1], STD[:1], GRID).inputs(pcm)
    np.testing.assert_array_equal(alone, FixedFrontend.of(MEAN, STD, GRID).inputs(pcm)[..., :1])


def test_a_network_of_two_channels_is_refused() -> None:
    with pytest.raises(InputError, match="2 channels"):
        FixedFrontend.of(MEAN[:2], STD[:2], GRID)
