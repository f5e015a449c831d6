"""Sounds through impulse responses, against NumPy's convolution."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.train.refusals import refused
from tests.train.trees import RATE_HZ, noise, wav
from train.impulse_response import heard_through, read_response


@pytest.mark.parametrize("taps", [1, 2, 100, 16_000, 60_000])
@pytest.mark.parametrize("count", [1, 50, 44_100])
def test_it_is_a_convolution_without_its_tail(count: int, taps: int) -> None:
    samples, response = np.resize(noise(0), count), np.resize(noise(1), taps)
    found = heard_through(samples, response)
    assert found.shape == (count,) and found.dtype == np.float32
    # The output needs no more of a response than its own length.
    x, h = samples.astype(np.float64), response[:count].astype(np.float64)
    size = 2 * count
    expected = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(h, size), size)[:count]
    scale = np.sqrt(np.square(x).sum() * np.square(h).sum())
    assert np.abs(found - expected).max() < 1e-6 * scale
    expected[count // 2] += 3e-6 * scale
    assert np.abs(found - expected).max() > 1e-6 * scale, "one nudged value is seen"


def test_small_numbers_by_hand() -> None:
    found = heard_through(np.array([1, 2, 0, 4], np.float32), np.array([1, -0.5, 3], np.float32))
    np.testing.assert_allclose(found, [1, 1.5, 2, 10], atol=1e-6)


def test_a_unit_impulse_changes_nothing() -> None:
    found = heard_through(noise(0), np.array([1.0], np.float32))
    np.testing.assert_allclose(found, noise(0), rtol=0, atol=1e-6)


def test_a_response_has_unit_energy(tmp_path: Path) -> None:
    path = wav(tmp_path / "ir.wav", np.array([3.0, 0.0, -4.0]) / 8, subtype="PCM_24")
    np.testing.assert_allclose(read_response(path, RATE_HZ), [0.6, 0, -0.8], atol=1e-6)
    assert read_response(path, RATE_HZ).dtype == np.float32


def test_the_level_of_white_noise_is_kept(tmp_path: Path) -> None:
    response = read_response(wav(tmp_path / "ir.wav", 0.01 * noise(1)[:500]), RATE_HZ)
    found = heard_through(noise(0, 4), response)
    assert np.sqrt(np.square(found[500:]).mean()) == pytest.approx(0.1, rel=0.05)


def test_a_response_of_another_rate_is_resampled(tmp_path: Path) -> None:
    """A tone of 1 kHz that swells and fades stays as high and as long as it was."""

    def tone(rate_hz: int) -> np.ndarray:
        time = np.arange(rate_hz // 2) / rate_hz
        return np.sin(2 * np.pi * time) ** 2 * np.sin(2 * np.pi * 1000 * time)

    path = wav(tmp_path / "ir.wav", 0.9 * tone(48_000), 48_000, "PCM_24")
    response, expected = read_response(path, RATE_HZ), tone(RATE_HZ)
    expected /= np.sqrt(np.square(expected).sum())
    np.testing.assert_allclose(response, expected, rtol=0, atol=1e-6)
    at_48_khz = read_response(path, 48_000)
    assert len(response) == 22_050 and len(at_48_khz) == 24_000


def test_a_silent_or_missing_response_is_named(tmp_path: Path) -> None:
    silent = wav(tmp_path / "ir.wav", np.zeros(100))
    refused(lambda: read_response(silent, RATE_HZ), "ir.wav' is silent; restore the file")
    refused(lambda: read_response(tmp_path / "no.wav", RATE_HZ), "no.wav' is not a file")


def test_real_responses_are_read_at_one_rate(audio_data: Path) -> None:
    with (audio_data / "devices.csv").open(encoding="utf-8") as stream:
        used = {row["impulse_response"] for row in csv.DictReader(stream)} - {""}
    paths = sorted((audio_data / "micirp").glob("*.wav"))
    other = [path for path in paths if soundfile.info(path).samplerate == 48_000]
    assert len(other) == 5
    for path in [*other, *(audio_data / file for file in used)]:
        response, info = read_response(path, RATE_HZ), soundfile.info(path)
        assert abs(len(response) - info.duration * RATE_HZ) <= 1
        assert np.square(response, dtype=np.float64).sum() == pytest.approx(1, rel=1e-5)
