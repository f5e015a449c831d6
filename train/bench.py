"""How fast training and feature extraction are here, beside the plain way, in one run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_ref.features import FeatureDefinition

BATCH, STEPS, THREADS = 256, 4, 2
ROUNDS = 3
CLIPS, WARM_UP_CLIPS, CLIP_SECONDS = 160, 40, 5
CLASSES = 10


@dataclass(frozen=True)
class Rate:
    """One comparison: one-second examples a second, here and the plain way."""

    what: str
    here: float
    plain: float

    @property
    def ratio(self) -> float:
        """How many times as fast."""
        return self.here / self.plain


def bench(report: Callable[[str], None]) -> list[Rate]:
    """Measure training on the CPU, on a GPU where there is one, and extraction.

    Each way of training has processes of its own, in turn with the other's: what one changes, such
    as how memory is kept, does not help the other. The best of `ROUNDS` counts.
    """
    import torch

    rates = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        found: dict[str, list[float]] = {"here": [], "plain": []}
        for number in range(ROUNDS):
            for name, measure in (("plain", _plain), ("here", _here)):
                report(f"training on {device}, {name}, {number + 1} of {ROUNDS}")
                found[name].append(_in_process(measure, device))
        rates.append(Rate(f"training, {device}", max(found["here"]), max(found["plain"])))
    if len(devices) == 1:
        report("no CUDA GPU here: training on one is not measured")
    report("feature extraction")
    rates.append(_extraction())
    return rates


def as_text(rates: list[Rate]) -> str:
    """An aligned table."""
    lines = [f"{'one-second examples a second':<30}{'here':>10}{'plain':>10}{'ratio':>8}"]
    lines += [f"{r.what:<30}{r.here:>10,.0f}{r.plain:>10,.0f}{r.ratio:>8.2f}" for r in rates]
    lines += [
        f"training: report-125k, batch {BATCH}, {THREADS} threads on the CPU; plain is an eager "
        "loop in NCHW without augmentation, here with mix-up, masks and time warp",
        "extraction: plain is librosa, one clip at a time",
    ]
    return "\n".join(lines)


def _in_process(measure: Callable[[str], float], device: str) -> float:
    """Run a measurement in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (device,))


def _plain(device: str) -> float:
    """The loop that one writes first: examples a second of its best step."""
    import torch
    from torch.nn import functional

    from firmware_ref.arch import preset
    from train.model import build_model

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    network = preset("report-125k")
    model = build_model(network).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    shape = network.input_channels, network.input_bands, network.input_frames
    x = torch.randn(BATCH, *shape, device=device)
    y = torch.randint(0, CLASSES, (BATCH,), device=device)
    best = float("inf")
    for _ in range(2 * STEPS):
        started = time.perf_counter()
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        best = min(best, time.perf_counter() - started)
    return BATCH / best


def _here(device: str) -> float:
    """This kit's loop with mix-up, masks and time warp: examples a second of its best epoch."""
    import torch

    from train import loop
    from train.batches import TrainingSet
    from train.config_file import load_config
    from train.data import EpochSampler, InputNormalization, Windows
    from train.memory import keep_freed_memory
    from train.model import build_model
    from train.objective import LabelObjective

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if device == "cpu":
        keep_freed_memory()
    rng, count = np.random.default_rng(0), BATCH * STEPS
    definition = FeatureDefinition()
    maps = rng.standard_normal((count, definition.mel_bands, definition.frames))
    numbers = np.arange(count)
    windows = Windows(
        (maps.astype(np.float16),),
        np.zeros_like(numbers),
        numbers,
        numbers % CLASSES,
        np.zeros_like(numbers),
        numbers,
        numbers,
    )
    config = load_config("report")
    normalization = InputNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    sampler = EpochSampler(windows, 1, [1.0])
    where = torch.device(device)
    data = TrainingSet.of(windows, sampler, normalization, CLASSES, 1, where)
    model = build_model(config.network)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = dataclasses.replace(config.float_stage, epochs=3, batch_size=BATCH)
    precision = "float32" if device == "cpu" else "bfloat16"
    compute = dataclasses.replace(config.compute, precision=precision)
    stage = loop.Stage("bench", optimizer, LabelObjective(), compute=compute)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.safetensors"
        identity = {"network": config.network.to_dict(), "labels": [str(n) for n in range(CLASSES)]}
        loop.fit(model, data, config, stage, identity, state, lambda e: seconds.append(e.seconds))
    return count / min(seconds)


def _extraction() -> Rate:
    """Noise in WAV files, by both ways; workers are started before the clock is."""
    import soundfile

    from train.dataset import Recording
    from train.extract import Cut, Variation, extract

    definition = FeatureDefinition()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recordings = []
        for number in range(CLIPS + WARM_UP_CLIPS):
            path = folder / f"{number}.wav"
            samples = 0.1 * rng.standard_normal(CLIP_SECONDS * definition.sample_rate_hz)
            soundfile.write(path, samples, definition.sample_rate_hz)
            recordings.append(Recording(path.name, path, 0, 0, path.name))
        cut, cache = Cut(None, "float16"), folder / "cache"
        extract(recordings[CLIPS:], definition, cut, Variation(), cache)
        started = time.perf_counter()
        found = extract(recordings[:CLIPS], definition, cut, Variation(), cache)
        here = time.perf_counter() - started
        examples = sum(entry.count for entry in found.entries)
        _librosa(recordings[CLIPS].path, definition)
        started = time.perf_counter()
        for recording in recordings[:CLIPS]:
            _librosa(recording.path, definition)
        plain = time.perf_counter() - started
    return Rate(f"extraction, {os.cpu_count()} cores", examples / here, examples / plain)


def _librosa(path: Path, definition: FeatureDefinition) -> np.ndarray:
    """A clip's features by librosa alone, window by window."""
    import librosa

    samples, rate = librosa.load(path, sr=definition.sample_rate_hz)
    parts = []
    for start in range(0, len(samples), definition.clip_samples):
        energies = librosa.feature.melspectrogram(
            y=samples[start : start + definition.clip_samples],
            sr=rate,
            n_fft=definition.window_samples,
            hop_length=definition.hop_samples,
            window="hamming",
            n_mels=definition.mel_bands,
            htk=True,
            norm=None,
        )
        log_mel = np.log(energies + definition.log_floor)
        first = librosa.feature.delta(log_mel, width=5, mode="nearest")
        second = librosa.feature.delta(first, width=5, mode="nearest")
        parts.append(np.stack([log_mel, first, second]))
    return np.stack(parts)
