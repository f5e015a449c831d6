"""Recordings and index files made by code: small trees in the layouts that the readers know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_frontend import as_reals, log_mel, pcm16
from train.dataset import Recording

DEFINITION = FeatureDefinition()
RATE_HZ = DEFINITION.sample_rate_hz
SECOND = DEFINITION.clip_samples


def wav(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
    """Write a sound file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def noise(seed: int, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    """White noise, float32, of 16-bit samples."""
    rng = np.random.default_rng(seed)
    steps = np.rint(2**15 * level * rng.standard_normal(round(seconds * SECOND)))
    return (steps / 2**15).astype(np.float32)


def device_log_mel(samples: np.ndarray) -> np.ndarray:
    """What a device computes of (..., n) samples, float32."""
    return as_reals(log_mel(pcm16(samples)))


def noise_recordings(folder: Path, count: int, seconds: float = 1.0) -> list[Recording]:
    """Recordings of different noise, each a source of its own."""
    return [
        recording(wav(folder / f"{number}.wav", noise(number, seconds))) for number in range(count)
    ]


def recording(path: Path, label: int = 0, device: str = "A") -> Recording:
    """What is known of a lone file."""
    name = path.name
    return Recording(name, path, label, fold=1, source=name, device=device, moment=name)


def table(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    """Write an index file, line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


# Name without ``audio/`` and ``.wav``; the split it belongs to. B, C and S1 hear what A hears; S4
# is tested only; the last is in neither split.
TAU_CLIPS = (
    ("airport-lisbon-1000-40000-0-a", "train"),
    ("airport-lisbon-1000-40000-0-b", "train"),
    ("airport-lisbon-1000-40000-0-s1", "train"),
    ("airport-lisbon-1000-40000-1-a", "train"),
    ("metro_station-helsinki-62-1790-3-a", "train"),
    ("metro_station-helsinki-62-1790-3-c", "train"),
    ("airport-barcelona-203-6129-0-a", "evaluate"),
    ("airport-barcelona-203-6129-0-s1", "evaluate"),
    ("airport-barcelona-203-6129-0-s4", "evaluate"),
    ("tram-lyon-1105-44312-9-a", "evaluate"),
    ("tram-lyon-1105-44312-9-s5", ""),
)


def tau2022(root: Path, audio: bool = False) -> Path:
    """TAU 2022 Mobile as it is distributed, in 11 clips; ``audio``: with 24-bit WAVs of noise."""
    meta, train, evaluate, test = [], [], [], []
    for number, (stem, split) in enumerate(TAU_CLIPS):
        scene, city, location, _, _, device = stem.split("-")
        name = f"audio/{stem}.wav"
        meta.append(f"{name}\t{scene}\t{city}-{location}\t{device}")
        if split == "train":
            train.append(f"{name}\t{scene}")
        elif split == "evaluate":
            evaluate.append(f"{name}\t{scene}")
            test.append(name)
        if audio:
            wav(root / name, noise(number), subtype="PCM_24")
    setup = root / "evaluation_setup"
    # Line ends as in the official files: some in CRLF, and no labels in the list of test files.
    table(root / "meta.csv", ["filename\tscene_label\tidentifier\tsource_label", *meta], "\r\n")
    table(setup / "fold1_train.csv", ["filename\tscene_label", *train])
    table(setup / "fold1_evaluate.csv", ["filename\tscene_label", *evaluate], "\r\n")
    table(setup / "fold1_test.csv", ["filename", *test])
    return root
