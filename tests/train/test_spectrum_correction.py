"""Spectrum correction on devices of known frequency response."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_ref.errors import InputError
from firmware_ref.features import log_mel
from tests.train.extracting import rows
from tests.train.refusals import refused
from tests.train.trees import DEFINITION, RATE_HZ, noise, recording, wav
from train.data import Source
from train.dataset import Dataset, Recording
from train.datasets import load_dataset
from train.extract import Cut, Variation
from train.spectrum_correction import aligned_moments, estimate, mean_spectrum, measure

BINS = DEFINITION.window_samples // 2 + 1
HZ = np.linspace(0, RATE_HZ / 2, BINS)
# Magnitudes by frequency: smooth, so that a frame of 46 ms holds the whole impulse response.
RESPONSES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "A": lambda hz: np.ones_like(hz),
    "B": lambda hz: 0.5 + 0.4 * np.cos(2 * np.pi * hz / 9000),
    "C": lambda hz: 3.0 * np.exp(-hz / 15_000),
    "S1": lambda hz: 0.1 + 1 / (1 + ((hz - 5000) / 4000) ** 2),
}
ONE_PERCENT = 0.01


def through(device: str, samples: np.ndarray) -> np.ndarray:
    """Samples with the magnitude of every frequency multiplied by a device's response."""
    spectrum = np.fft.rfft(samples.astype(np.float64))
    hz = np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
    return np.fft.irfft(spectrum * RESPONSES[device](hz), len(samples))


def expected() -> dict[str, np.ndarray]:
    """Average response over devices, by the response of each."""
    responses = {device: response(HZ) for device, response in RESPONSES.items()}
    reference = np.mean(list(responses.values()), axis=0)
    return {device: reference / response for device, response in responses.items()}


def moment(folder: Path, number: int, devices: Sequence[str]) -> list[Recording]:
    """Two seconds of noise as several devices record it."""
    sound, name = noise(number, 2), f"m{number}"
    return [
        dataclasses.replace(
            recording(wav(folder / f"{name}-{d}.wav", through(d, sound)), device=d), moment=name
        )
        for d in devices
    ]


def recovered(recordings: Sequence[Recording], limit: int = 10) -> dict[str, np.ndarray]:
    return measure(recordings, DEFINITION, limit)


def error(found: Mapping[str, np.ndarray]) -> float:
    """Largest relative error of any coefficient."""
    assert {*found} == {*RESPONSES}
    assert all(values.shape == (BINS,) and values.dtype == float for values in found.values())
    return max(float(np.abs(found[d] / want - 1).max()) for d, want in expected().items())


# Estimation


def test_complete_alignment_recovers_the_inverse_responses(tmp_path: Path) -> None:
    clips = [clip for n in range(4) for clip in moment(tmp_path, n, [*RESPONSES])]
    found = recovered(clips)
    assert error(found) < ONE_PERCENT
    found["C"][700] *= 1.02
    assert error(found) > ONE_PERCENT, "one nudged value is seen"


def test_incomplete_alignment_recovers_the_same(tmp_path: Path) -> None:
    """As in TAU: each device shares moments with A, but not with another."""
    pairs = [("A", "B"), ("C", "A"), ("A", "S1"), ("A", "B"), ("A",), ("S1",), ("A", "S1", "C")]
    clips = [clip for n, pair in enumerate(pairs) for clip in moment(tmp_path, n, pair)]
    assert error(recovered(clips)) < ONE_PERCENT
    # Not the names decide with which device the others are compared, but the recordings do.
    renamed = {"A": "S1", "S1": "A"}
    swapped = [dataclasses.replace(c, device=renamed.get(c.device, c.device)) for c in clips]
    found = recovered(swapped)
    found["A"], found["S1"] = found["S1"], found["A"]
    assert error(found) < ONE_PERCENT


def test_with_every_pair_it_is_the_mean_ratio_to_the_average(rng: np.random.Generator) -> None:
    """Against the definition, moment by moment, on spectra that differ in level and colour."""
    spectra = []
    for _ in range(20):
        sound = rng.uniform(0.1, 10, BINS)
        spectra.append({d: sound * response(HZ) for d, response in RESPONSES.items()})
    found = estimate(spectra)
    for device in RESPONSES:
        pairs = [np.mean(list(m.values()), axis=0) / m[device] for m in spectra]
        np.testing.assert_allclose(found[device], np.mean(pairs, axis=0), rtol=1e-12)


def test_a_pair_worked_by_hand() -> None:
    found = estimate([{"A": np.array([2.0, 1.0]), "B": np.array([1.0, 4.0])}])
    # Relative to A, the reference is (1 + 1/2) / 2 and (1 + 4) / 2.
    np.testing.assert_allclose(found["A"], [0.75, 2.5])
    np.testing.assert_allclose(found["B"], [1.5, 0.625])


def test_bins_without_sound_say_nothing_of_a_device() -> None:
    """A coded recording has none above its band; no device colours what it has there instead."""
    full = np.array([1000.0, 10.0, 10.0])
    band = np.array([1000.0, 10.0, 0.2])
    response = np.array([1.0, 2.0, 4.0])
    leaking = np.array([1000.0, 20.0, 0.2])
    for moments in ([(full, response * full), (band, leaking)], [(full, response * full)]):
        found = estimate([{"A": a, "B": b} for a, b in moments])
        np.testing.assert_allclose(found["A"], (1 + response) / 2)
        np.testing.assert_allclose(found["B"], (1 + response) / 2 / response)
    found = estimate([{"A": band, "B": leaking}])
    np.testing.assert_allclose(found["B"], [1, 0.75, 1], err_msg="nothing is known of the last")


def test_silent_recordings_do_no_harm() -> None:
    sound, silent = np.ones(3), np.zeros(3)
    found = estimate([{"A": sound, "B": 2 * sound}, {"A": silent, "B": sound}, {"B": silent}])
    np.testing.assert_allclose(found["A"], [1.5, 1.5, 1.5])
    np.testing.assert_allclose(found["B"], [0.75, 0.75, 0.75])


def test_without_aligned_recordings_it_is_refused() -> None:
    ones = np.ones(3)
    advice = "set augment.spectrum_correction_probability=0"
    for spectra in ([], [{"A": ones}], [{"A": ones}, {"A": ones}]):
        refused(partial(estimate, spectra), "of one moment by two devices at least", advice)
    apart = [{"A": ones, "B": ones}, {"A": ones, "B": ones}, {"C": ones, "B": ones}]
    refused(lambda: estimate([*apart, {"S1": ones, "C": ones}]), "device 'S1' shares no", advice)
    silent = [{"A": ones, "B": 0 * ones}]
    refused(lambda: estimate(silent), "device 'B' shares no moment with device 'A'", advice)


# Which recordings


def heard(moments: Mapping[str, str]) -> list[Recording]:
    """Recordings that are not there: moment by the devices that heard it, one letter each."""
    return [
        dataclasses.replace(recording(Path(f"{name}-{d}.wav"), device=d), moment=name)
        for name, devices in moments.items()
        for d in devices
    ]


def test_moments_of_one_device_are_left_out() -> None:
    groups = aligned_moments(heard({"1": "A", "2": "AB", "3": "BB", "": "AB"}), 10)
    assert [[r.name for r in group] for group in groups] == [["2-A.wav", "2-B.wav"]]


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_each_device_has_so_many_moments_if_there_are(limit: int) -> None:
    moments = {f"{n:03}": "A" + "BCDE"[n % 4] for n in range(40)} | {"x": "AF"}
    groups = aligned_moments(heard(moments), limit)
    assert groups == aligned_moments(heard(moments)[::-1], limit), "in whatever order they come"
    for device in "BCDE":
        assert sum(any(r.device == device for r in g) for g in groups) == min(limit, 10)
    assert [r.name for r in groups[-1]] == ["x-A.wav", "x-F.wav"]


def test_moments_are_spread_evenly() -> None:
    groups = aligned_moments(heard({f"{n:03}": "AB" for n in range(100)}), 4)
    assert [group[0].moment for group in groups] == ["000", "025", "050", "075"]


def test_moments_of_many_devices_are_shared() -> None:
    """No more recordings are read than are needed."""
    groups = aligned_moments(heard({f"{n:03}": "ABCDEF" for n in range(100)}), 10)
    assert len(groups) == 10 and all(len(group) == 6 for group in groups)


def test_only_training_recordings_are_read(tmp_path: Path) -> None:
    """Those to be tested on are not even there."""
    clips = [
        dataclasses.replace(clip, fold=n % 2, source=f"s{n}")
        for n in range(6)
        for clip in moment(tmp_path, n, [*RESPONSES])
    ]
    for clip in clips:
        if clip.fold == 1:
            clip.path.unlink()
    train, _ = Dataset("made", ("a",), tuple(clips)).split(1)
    assert error(recovered(train)) < ONE_PERCENT
    with pytest.raises(InputError, match="is not a file"):
        recovered(clips)


def test_many_recordings_are_measured_in_parallel(tmp_path: Path) -> None:
    clips = [clip for n in range(5) for clip in moment(tmp_path, n, [*RESPONSES])]
    shown = []

    def progress(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
        shown.append((title, total))
        return items

    found = measure(clips, DEFINITION, 10, progress)
    assert shown == [("spectra", 20)]
    spectra = [
        {c.device: mean_spectrum(through(c.device, noise(n, 2)), DEFINITION) for c in clips[:4]}
        for n in range(5)
    ]
    for device, values in estimate(spectra).items():
        np.testing.assert_allclose(found[device], values, rtol=1e-5)


# Its use


def test_corrected_devices_sound_alike(tmp_path: Path) -> None:
    clips = [clip for n in range(3) for clip in moment(tmp_path, n, [*RESPONSES])]
    source = Source(DEFINITION, tmp_path / "cache")
    gains = recovered(clips)
    unheard = moment(tmp_path, 9, [*RESPONSES])
    plain = source.extract(unheard, Cut(), Variation())
    corrected = source.extract(unheard, Cut(), Variation(gains=gains))
    reference = np.mean([response(HZ) for response in RESPONSES.values()], axis=0)
    aim = log_mel(noise(9, 2).reshape(2, -1), DEFINITION, reference)
    for number, device in enumerate(RESPONSES):
        before, after = (rows(found, number) - aim for found in (plain, corrected))
        # The seam of two windows has sound beyond it that the response smears.
        assert np.abs(after[..., 2:-2]).max() < 0.15, device
        assert np.abs(before[..., 2:-2]).max() > 0.5, device


def test_real_devices_come_closer_to_each_other(audio_data: Path, tmp_path: Path) -> None:
    """On clips of ESC-10-Devices that the coefficients were not measured on."""
    train, test = load_dataset("esc10-devices", audio_data).split(1)
    devices = ("A", "B", "S2")
    gains = measure([r for r in train if r.device in devices], DEFINITION, 8)
    unheard = [r for r in test if r.device in devices][::8]
    unheard = [r for r in test if r.device in devices and r.moment in {u.moment for u in unheard}]
    source = Source(DEFINITION, tmp_path)

    def spread(variation: Variation) -> float:
        """Of mean log-mels over devices, below 10 kHz: some clips have no sound above."""
        found = source.extract(unheard, Cut(), variation)
        means = [rows(found, n)[:, :96].mean(axis=(0, 2)) for n in range(len(unheard))]
        by_clip = np.array(means).reshape(-1, len(devices), 96)
        return float(np.sqrt(by_clip.var(axis=1).mean()))

    assert spread(Variation(gains=gains)) < spread(Variation()) / 3
