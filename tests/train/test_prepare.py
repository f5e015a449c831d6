"""From recordings to what training, validation and testing see."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from firmware_ref.audio import read_audio
from firmware_ref.errors import InputError
from firmware_ref.features import features, log_mel, stack_deltas
from firmware_ref.fixed_frontend import pcm16
from firmware_ref.frontend import network_input
from tests.train.refusals import refused
from tests.train.runs import EVERYTHING, SETTINGS
from tests.train.stages import CPU, DEFINITION, Bench, bench, no_warning, source
from tests.train.trees import device_log_mel
from train import data as data_module
from train import spectrum_correction
from train.config import AugmentConfig
from train.config_file import load_config
from train.dataset import Recording
from train.datasets import load_dataset
from train.extract import extract, heard
from train.pitch_shift import pitch_shift
from train.prepare import CORRECTION_FILE, CORRECTION_PLOT, prepare, split

MakeEsc10 = Callable[..., Path]
SECOND, HOP = DEFINITION.clip_samples, DEFINITION.clip_samples // 4
STILL = AugmentConfig(mixup_alpha=0, frequency_mask_bands=0, time_mask_frames=0)


@pytest.fixture(scope="module")
def everything(tiny_devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """All techniques on; not to be changed."""
    return bench(tiny_devices, tmp_path_factory.mktemp("out"), EVERYTHING)


# What the loop sees


def second(recording: Recording, place: int, hop: int) -> np.ndarray:
    """A window's samples, cut by hand, in the 16 bits of a device."""
    return in_16_bits(heard(recording, DEFINITION)[place * hop : place * hop + SECOND])


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    return (pcm16(samples) / 2**15).astype(np.float32)


def places(clips: np.ndarray) -> np.ndarray:
    """Which window of its clip each is; windows stand clip by clip."""
    return np.array([n - np.flatnonzero(clips == clip)[0] for n, clip in enumerate(clips)])


def expected_input(bench: Bench) -> np.ndarray:
    """Normalised features (N, F, T, C) of the training windows as recorded, by `firmware_ref`."""
    windows, normalization = bench.prepared.plain, bench.prepared.normalization
    sounds = [
        second(bench.recordings.train[clip], place, HOP)
        for clip, place in zip(windows.clips, places(windows.clips), strict=True)
    ]
    found = features(np.stack(sounds), DEFINITION)
    return network_input(found, normalization.mean, normalization.std)


def half_precision(bench: Bench) -> np.ndarray:
    """(C,) the most that storing log-mels in float16 may change a normalised input.

    Half the spacing of float16 at the largest log-mel; a delta is a sum of four with weights 0.1,
    0.1, 0.2 and 0.2; and a little for the order of float32 sums.
    """
    largest = max(np.abs(windows).max() for windows in bench.prepared.plain.chunks())
    half = float(np.spacing(np.float16(largest))) / 2
    std = np.array(bench.prepared.normalization.std)
    return half * np.array([1, 0.6, 0.36]) / std + 1e-5


def assert_near(found: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    worst = np.abs(found - expected).max(axis=(0, 1, 2))
    assert (worst <= bound).all(), f"off by {worst}; allowed: {bound}"


def test_a_batch_without_augmentation_is_the_features_of_the_device(everything: Bench) -> None:
    expected, bound = expected_input(everything), half_precision(everything)
    data = everything.prepared.training_set(everything.config, CPU)
    numbers = np.random.default_rng(1).permutation(len(expected))
    drawn = np.flatnonzero(everything.prepared.train.variation == 0)[numbers]
    batch = data.batch(drawn, STILL, torch.Generator())
    assert_near(batch.x.permute(0, 2, 3, 1).numpy(), expected[numbers], bound)
    assert torch.equal(batch.x, data.clean(drawn))
    assert (bound < 0.03).all(), "of a standard deviation"
    labels = [everything.recordings.train[c].label for c in everything.prepared.plain.clips]
    assert batch.scenes.argmax(dim=1).tolist() == np.array(labels)[numbers].tolist()
    assert batch.devices.sum(dim=1).tolist() == [1.0] * len(numbers)


def test_the_comparison_sees_one_nudged_value(everything: Bench) -> None:
    expected, bound = expected_input(everything), half_precision(everything)
    for channel in range(3):
        nudged = expected.copy()
        nudged[3, 50, 20, channel] += 1.01 * bound[channel]
        with pytest.raises(AssertionError, match="off by"):
            assert_near(nudged, expected, bound)


def test_validation_and_test_windows_are_exactly_the_features(everything: Bench) -> None:
    """Figures come from the device's own log-mels."""
    prepared, recordings = everything.prepared, everything.recordings
    assert prepared.validation is not None
    for windows, clips in (
        (prepared.validation, recordings.validation),
        (prepared.test, recordings.test),
    ):
        assert len(windows) == len(clips), "1.3 s make one window each"
        found = np.concatenate(list(prepared.normalization.inputs(windows)))
        sounds = np.stack([second(clip, 0, SECOND) for clip in clips])
        mean, std = prepared.normalization.mean, prepared.normalization.std
        expected = stack_deltas(device_log_mel(sounds))
        np.testing.assert_array_equal(found, network_input(expected, mean, std))
        assert windows.labels.tolist() == [clip.label for clip in clips]
        names = [everything.dataset.devices[n] for n in windows.devices]
        assert names == [clip.device for clip in clips]


# Variations


def test_every_variation_is_what_it_says(everything: Bench) -> None:
    """As recorded, shifted in pitch, and corrected, each with its share."""
    prepared = everything.prepared
    assert prepared.shares == (0.5, 0.25, 0.25) and len(prepared.train.maps) == 3
    gains = _corrections(everything)
    assert set(gains) == {"A", "B"} == set(prepared.train_devices)
    train, place = prepared.train, places(prepared.plain.clips)
    assert Counter(train.variation.tolist()) == dict.fromkeys(range(3), len(prepared.plain))
    for n in range(len(train)):
        recording, start = (
            everything.recordings.train[train.clips[n]],
            place[train.moments[n]] * HOP,
        )
        sound, gain = heard(recording, DEFINITION), None
        if train.variation[n] == 1:
            sound = pitch_shift(sound, 2.0, DEFINITION.sample_rate_hz)
        if train.variation[n] == 2:
            gain = gains[recording.device]
        wanted = log_mel(in_16_bits(sound[start : start + SECOND]), DEFINITION, gain)
        found = train.log_mels(np.array([n]))[0]
        # Half precision of what single precision gives.
        np.testing.assert_allclose(found, wanted, rtol=2.0**-11, atol=1e-5)


def test_corrections_are_measured_on_training_recordings_and_drawn(everything: Bench) -> None:
    gains = _corrections(everything)
    expected = spectrum_correction.measure(everything.recordings.train, DEFINITION, 200)
    assert same_gains(gains, expected)
    everyone = spectrum_correction.measure(everything.dataset.recordings, DEFINITION, 200)
    assert not same_gains(gains, everyone)
    assert (everything.out / CORRECTION_PLOT).read_bytes().startswith(b"\x89PNG")


def test_corrections_can_come_from_a_file(
    everything: Bench, tiny_devices: Path, tmp_path: Path
) -> None:
    """As they are, not measured again; one that lacks a device is refused."""
    gains = _corrections(everything)
    other = {device: 2 * values for device, values in gains.items()}
    file = tmp_path / "other.npz"
    train = everything.recordings.train
    spectrum_correction.save(file, other, DEFINITION, train)
    settings = (*EVERYTHING, f"augment.spectrum_correction_file='{file}'")
    found = bench(tiny_devices, tmp_path / "out", settings)
    assert same_gains(_corrections(found), other)
    spectrum_correction.save(file, {"A": other["A"]}, DEFINITION, train)
    with pytest.raises(InputError, match="lacks device 'B'"):
        bench(tiny_devices, tmp_path / "again", settings)
    spectrum_correction.save(file, other, DEFINITION, everything.recordings.test)
    with pytest.raises(InputError, match="not for training here"):
        bench(tiny_devices, tmp_path / "leak", settings)


def _corrections(found: Bench) -> dict[str, np.ndarray]:
    return spectrum_correction.load(found.out / CORRECTION_FILE, DEFINITION, found.recordings.train)


def same_gains(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_without_variations_there_is_one_way_to_hear(tiny_esc10: Path, tmp_path: Path) -> None:
    prepared = bench(tiny_esc10, tmp_path, SETTINGS).prepared
    assert prepared.shares == (1.0,) and len(prepared.train.maps) == 1
    np.testing.assert_array_equal(prepared.train.row, prepared.plain.row)
    assert not list(tmp_path.iterdir())


# Who is heard where


def test_three_sets_of_recordings_share_none(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows drawn for training; every window of what is held out, and of the test fold."""
    calls: dict[tuple[int | None, str], set[str]] = {}

    def watched(clips: Sequence[Recording], definition: Any, cut: Any, *rest: Any) -> Any:
        names = {clip.name for clip in clips}
        calls.setdefault((cut.hop_samples, cut.dtype), set()).update(names)
        return extract(clips, definition, cut, *rest)

    monkeypatch.setattr(data_module, "extract", watched)
    found = bench(tiny_devices, tmp_path, EVERYTHING)
    parts = [found.recordings.train, found.recordings.validation, found.recordings.test]
    learn, held, test = ({r.name for r in part} for part in parts)
    assert calls == {(HOP, "float16"): learn, (None, "float32"): held | test}
    assert (len(learn), len(held), len(test)) == (6, 6, 9)
    assert len(learn | held | test) == 21
    sources = [{r.source for r in part} for part in parts]
    assert len(set.union(*sources)) == sum(map(len, sources)), "no source on two sides"
    assert {r.device for r in found.recordings.train} == {"A", "B"}
    assert {r.device for r in found.recordings.test} == {"A", "B", "S"}


def test_selection_on_the_test_split_holds_nothing_out(tiny_devices: Path, tmp_path: Path) -> None:
    """It learns from all training recordings, and validates on the reported ones."""
    found = bench(tiny_devices, tmp_path, (*EVERYTHING, "data.selection=test"))
    assert found.prepared.validation is found.prepared.test
    assert (len(found.recordings.train), found.recordings.validation) == (12, [])
    assert {r.fold for r in found.recordings.train} == {2}


def test_nothing_held_out_is_nothing_to_validate_on(tiny_esc10: Path, tmp_path: Path) -> None:
    assert bench(tiny_esc10, tmp_path, SETTINGS).prepared.validation is None


def test_the_normalisation_is_that_of_the_windows_as_recorded(everything: Bench) -> None:
    """Neither variations nor recordings held out count."""
    plain = np.concatenate([expected_input(everything).reshape(-1, 3)])
    bound = half_precision(everything)
    assert (np.abs(plain.mean(axis=0)) < bound).all()
    assert (np.abs(plain.std(axis=0) - 1) < bound).all()


def test_cross_gradient_training_on_one_device_is_refused_before_features(
    tiny_esc10: Path,
) -> None:
    config = load_config("esc10", (*SETTINGS, "cross_gradient.epsilon=0.1"))
    with pytest.raises(InputError, match="needs recordings of two devices at least, not 1"):
        split(config, load_dataset("esc10", tiny_esc10), 1)


def test_recordings_that_cannot_be_read_are_left_out_where_that_is_asked_for(
    make_esc10: MakeEsc10, tmp_path: Path
) -> None:
    root = make_esc10()
    broken = [root / "esc10" / "Rain" / name for name in ("1-0.wav", "2-1.wav")]
    for path in broken:
        path.write_bytes(b"no sound")
    config, dataset = load_config("esc10", SETTINGS), load_dataset("esc10", root)
    recordings, warned = split(config, dataset, 1), list[str]()
    with pytest.raises(InputError, match=r"1 of 6 recordings cannot be used.*--skip-bad"):
        prepare(config, dataset, recordings, source(), tmp_path, warned.append)
    skipping = dataclasses.replace(source(), skip_bad=True)
    prepared = prepare(config, dataset, recordings, skipping, tmp_path, warned.append)
    assert [line for line in warned if "left out 1 of 6 recordings" in line] == warned[1::2]
    assert len(warned) == 4 and all(
        path.name in line for path, line in zip(broken[::-1], warned[::2], strict=True)
    )
    assert len(prepared.names) == 5 and "Rain/2-1.wav" not in prepared.names
    assert len(prepared.plain) == 10 and len(prepared.test) == 5


def test_a_real_sound_file_is_cut_as_the_device_cuts_it(
    make_esc10: MakeEsc10, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Padding is tested on, and not trained on."""
    root = make_esc10()
    path = root / "esc10" / "Rain" / "2-1.wav"
    sound = np.concatenate([rng.uniform(-0.5, 0.5, SECOND), np.zeros(2 * SECOND)])
    soundfile.write(path, sound, DEFINITION.sample_rate_hz, subtype="PCM_16")
    assert len(read_audio(path, DEFINITION.sample_rate_hz)) == 3 * SECOND
    name = "Rain/2-1.wav"
    for fold, count in ((1, 4), (2, 3)):
        config, dataset = load_config("esc10", SETTINGS), load_dataset("esc10", root)
        recordings = split(config, dataset, fold)
        prepared = prepare(config, dataset, recordings, source(), tmp_path, no_warning)
        part, windows = (
            (recordings.train, prepared.plain) if fold == 1 else (recordings.test, prepared.test)
        )
        (clip,) = (n for n, r in enumerate(part) if r.name == name)
        assert int((windows.clips == clip).sum()) == count


# Classes that a split lacks


def without(root: Path, label: str, fold: int) -> Path:
    """Recordings whose index names none of this class in this fold."""
    index = root / "esc10" / "meta.csv"
    kept = [row for row in index.read_text().splitlines() if f"{label}/{fold}-" not in row]
    index.write_text("\n".join(kept) + "\n")
    return root


def test_a_class_that_training_does_not_hear_is_refused(
    make_esc10: MakeEsc10, tmp_path: Path
) -> None:
    root = without(make_esc10(), "Rain", fold=2)
    config, dataset = load_config("esc10", SETTINGS), load_dataset("esc10", root)
    said = "ESC-10 has no training recording of 'Rain' in this split; give another --fold, or"
    refused(lambda: split(config, dataset, 1), said)
    assert len(split(config, dataset, 2).train) == 6
    # So it is where none can be read.
    root = make_esc10()
    for number in (1, 3):
        (root / "esc10" / "Sea waves" / f"2-{number}.wav").write_bytes(b"no sound")
    dataset, skipping = load_dataset("esc10", root), dataclasses.replace(source(), skip_bad=True)
    recordings, warned = split(config, dataset, 1), list[str]()
    refused(
        lambda: prepare(config, dataset, recordings, skipping, tmp_path, warned.append),
        "no training recording of 'Sea waves'",
    )
    assert warned[-1] == "left out 2 of 6 recordings"


def test_a_class_that_is_not_tested_is_told(make_esc10: MakeEsc10, tmp_path: Path) -> None:
    root = without(without(make_esc10(), "Rain", fold=1), "Dog bark", fold=1)
    config, dataset = load_config("esc10", SETTINGS), load_dataset("esc10", root)
    recordings, warned = split(config, dataset, 1), list[str]()
    prepared = prepare(config, dataset, recordings, source(), tmp_path, warned.append)
    assert warned == [
        "the test split has no recording of 'Dog bark', 'Rain'; no figure covers that"
    ]
    assert set(prepared.test.labels) == {2}
