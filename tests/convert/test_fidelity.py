"""What is trained is what ships: many networks, every tensor, both oracles (``-m slow``)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.__main__ import SHIPPED_CHECKPOINT
from convert.flatbuffer import write
from firmware_ref import scheme
from firmware_ref.agreement import agreed
from firmware_ref.arch import PRESETS, Network
from firmware_ref.features import FeatureDefinition, stack_deltas
from firmware_ref.fixed_frontend import FixedFrontend, as_steps
from firmware_ref.frontend import network_input, softmax
from firmware_ref.graph import parse
from firmware_ref.oracle import ORACLES, session
from firmware_ref.verify import random_inputs, verify
from tests.convert.members import device_network, examples
from train.data import InputNormalization, Source, Windows, gather, over_log_mels
from train.datasets import load_dataset
from train.device import DeviceListener, device_graph
from train.evaluate import measure
from train.extract import Cut
from train.qat import DeviceNetwork
from train.qat_checkpoint import load
from train.ranges import calibrate

pytestmark = pytest.mark.slow


def real_windows(audio_data: Path, cache: Path, step: int = 1) -> Windows:
    """Every window of every ``step``-th clip of fold 1."""
    dataset = load_dataset("esc10", audio_data)
    clips = dataset.split(1)[1][::step]
    extracted = Source(FeatureDefinition(), cache).extract(clips, Cut())
    return gather(clips, dataset.devices, [extracted], active_only=False)


@pytest.fixture(scope="module")
def windows(audio_data: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Log-mels of 64 real windows, (64, F, T), some of every class of fold 1."""
    found = real_windows(audio_data, tmp_path_factory.mktemp("cache"), step=5)
    assert len(found) > 64
    return found.log_mels(np.arange(64))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", PRESETS)
def test_presets_on_real_windows(windows: np.ndarray, name: str, seed: int) -> None:
    """Scales are QAT's, the training's own evaluation is the oracles' output, no tensor differs."""
    device = device_network(PRESETS[name], seed)
    features = stack_deltas(windows)[..., : PRESETS[name].input_channels]
    moments = features.mean(axis=(0, 1, 2)), features.std(axis=(0, 1, 2))
    normalization = InputNormalization(*(tuple(float(v) for v in values) for values in moments))
    x = network_input(features, *moments)
    calibrate(device, [torch.from_numpy(x[::4]).permute(0, 3, 1, 2)], seed)
    with torch.no_grad():  # as learned ranges would move them
        device.log_scale_changes.uniform_(-0.2, 0.2)
    device.set_quantization(agreed(device.graph, device.quantization))  # as a checkpoint has them
    data = written(device)
    graph = parse(data)
    stored = {t.name: t.quantization for t in graph.tensors if t.data is None}
    assert stored == dict(device.quantization)
    grid = device.quantization["input"]
    front = FixedFrontend.of(normalization.mean, normalization.std, grid)
    codes = front.codes(as_steps(windows))
    assert np.abs(codes - scheme.quantize(x, grid).astype(int)).max() <= 1
    report = verify(graph, data, codes, list(ORACLES.values()))
    assert report.ok and report.inputs == 64, report.to_dict()
    for oracle in ORACLES.values():
        run = session(oracle, data, graph)
        outputs = np.concatenate(
            [run(codes[i : i + 1])[graph.outputs[0]] for i in range(len(codes))]
        )
        expected = scheme.dequantize(outputs, device.quantization["logits"])
        assert np.array_equal(DeviceListener(device, normalization).logits(windows), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ssn_bands", [1, 2, 4, 8])
def test_random_members_of_the_family(ssn_bands: int, seed: int) -> None:
    """Any widths from 8 to 128, blocks, pools and heads, on random codes."""
    rng = np.random.default_rng([seed, ssn_bands])
    stages = int(rng.integers(1, 5))
    most_pools = {1: 3, 2: 3, 4: 2, 8: 2}[ssn_bands]
    pools = rng.permutation(np.arange(1, stages + 1))[: int(rng.integers(0, most_pools + 1))]
    network = Network(
        name="random",
        stem_channels=int(rng.integers(8, 129)),
        widths=tuple(int(w) for w in rng.integers(8, 129, stages)),
        blocks=tuple(int(b) for b in rng.integers(1, 3, stages)),
        pool_after=tuple(sorted(int(p) for p in pools)),
        ssn_bands=ssn_bands,
        conv_bias=bool(rng.random() < 0.5),
        head_channels=int(rng.integers(8, 257)) if rng.random() < 0.6 else None,
        res_norm=bool(rng.random() < 0.8),
        first_res_norm=str(rng.choice(["input", "stem"])),
        input_channels=int(rng.choice([1, 3])),
        classes=int(rng.integers(2, 12)),
    )
    device = device_network(network, seed)
    calibrate(device, [examples(network, 4, seed)], seed)
    data = written(device)
    graph = parse(data)
    codes = np.concatenate([random_inputs(graph, 3, seed), edges(graph.tensors[0].shape)])
    report = verify(graph, data, codes, list(ORACLES.values()))
    assert report.ok, report.to_dict()


def test_the_shipped_model_scores_what_its_card_says(audio_data: Path, tmp_path: Path) -> None:
    """The INT8 figures of the model card, from the checkpoint, in device arithmetic."""
    saved, device = load(SHIPPED_CHECKPOINT)
    wanted = saved.metadata
    data = real_windows(audio_data, tmp_path)
    normalization = InputNormalization(wanted.mean, wanted.std)
    logits = over_log_mels(data, DeviceListener(device, normalization).logits)
    found = measure(softmax(logits), data.labels, data.clips)
    card = SHIPPED_CHECKPOINT.with_suffix(".md").read_text(encoding="utf-8")
    row = re.search(
        r"^\| INT8 .*\| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) \|$", card, re.M
    )
    assert row is not None
    figures = (found.clip_accuracy, found.clip_log_loss, found.window_accuracy)
    texts = [f"{100 * figures[0]:.2f}", f"{figures[1]:.3f}", f"{100 * figures[2]:.2f}"]
    assert [*texts, f"{found.window_log_loss:.3f}"] == list(row.groups())


def written(device: DeviceNetwork) -> bytes:
    """The flatbuffer of a network with grids."""
    return write(device_graph(device))


def edges(shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of nothing but the smallest, the largest and the middle code."""
    return np.stack([np.full(shape[1:], code, np.int8) for code in (-128, 127, 0)])
