"""Reading sound files, hostile ones among them, and cutting them into windows."""

from __future__ import annotations

import csv
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from firmware_ref import audio
from firmware_ref.audio import LARGEST_SAMPLE, is_active, read_audio, windows
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_frontend import pcm16

DEFINITION = FeatureDefinition()
RATE = DEFINITION.sample_rate_hz
HALF = DEFINITION.clip_samples // 2


def sine(hz: float, rate_hz: int, seconds: float = 1.0, peak: float = 0.5) -> np.ndarray:
    return peak * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def written(
    path: Path, samples: np.ndarray, rate_hz: int = RATE, subtype: str | None = "FLOAT"
) -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


# Reading


def test_a_float_wav_is_read_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    samples = rng.uniform(-1, 1, 5000).astype(np.float32)
    found = read_audio(written(tmp_path / "a.wav", samples), RATE)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.flac", "PCM_16", 2**-15),
        ("a.ogg", "VORBIS", 0.05),
    ],
)
def test_other_formats_are_read_within_their_rounding(
    tmp_path: Path, name: str, subtype: str, tolerance: float
) -> None:
    samples = sine(440, RATE)
    found = read_audio(written(tmp_path / name, samples, subtype=subtype), RATE)
    assert found.shape == (RATE,)
    np.testing.assert_allclose(found, samples, rtol=0, atol=tolerance)


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = sine(440, RATE), sine(1000, RATE, peak=0.25)
    stereo = written(tmp_path / "a.wav", np.stack([left, right], axis=1))
    np.testing.assert_allclose(read_audio(stereo, RATE), (left + right) / 2, rtol=0, atol=1e-7)
    opposite = written(tmp_path / "b.wav", np.stack([left, -left], axis=1))
    assert not read_audio(opposite, RATE).any()


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000, 96_000])
def test_another_rate_keeps_the_frequency_and_the_level(tmp_path: Path, rate_hz: int) -> None:
    path = written(tmp_path / "a.wav", sine(1000, rate_hz, seconds=2), rate_hz)
    found = read_audio(path, RATE)
    assert found.dtype == np.float32 and len(found) == 2 * RATE
    middle = found[RATE // 2 : RATE // 2 + RATE]  # one second: bins one hertz apart
    spectrum = np.abs(np.fft.rfft(middle)) / (RATE / 2)
    assert spectrum.argmax() == 1000
    assert spectrum[1000] == pytest.approx(0.5, abs=1e-4)
    spectrum[1000] = 0
    assert spectrum.max() < 1e-4
    np.testing.assert_allclose(found[2000:-2000], sine(1000, RATE, 2)[2000:-2000], atol=1e-3)


def test_a_sine_above_the_new_half_rate_is_removed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(30_000, 96_000), 96_000)
    assert np.abs(read_audio(path, RATE)[2000:-2000]).max() < 1e-3


def test_recordings_are_read(audio_data: Path) -> None:
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[::20]
    for row in rows:
        found = read_audio(audio_data / "esc10" / row["filename"], RATE)
        assert len(found) / RATE == pytest.approx(float(row["duration_s"]), abs=1e-3)
        assert np.abs(found).max() < 2
        active = int(is_active(windows(found, DEFINITION)).sum())
        assert abs(active - int(row["active_1s_windows"])) <= 1, row["filename"]


# Hostile files


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_audio(path, RATE)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "not a file" in refused(tmp_path / "none.wav")
    (tmp_path / "folder.wav").mkdir()
    assert "not a file" in refused(tmp_path / "folder.wav")


@pytest.mark.parametrize("ending", ["wav", "ogg", "flac", "mp3", "raw", "txt"])
def test_an_empty_file_and_random_bytes_are_refused(
    tmp_path: Path, ending: str, rng: np.random.Generator
) -> None:
    path = tmp_path / f"a.{ending}"
    for data in (b"", b"\0", b"RIFF", rng.bytes(10_000)):
        path.write_bytes(data)
        refused(path)


@pytest.mark.parametrize("ending", ["wav", "ogg", "flac"])
def test_a_file_cut_in_its_header_is_refused(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"a.{ending}", sine(440, RATE), subtype=None)
    whole = path.read_bytes()
    for size in (4, 12, 20, 30):
        path.write_bytes(whole[:size])
        refused(path)


@pytest.mark.parametrize("ending", ["wav", "aiff", "au", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_in_its_samples_is_refused(
    tmp_path: Path, ending: str, share: float, rng: np.random.Generator
) -> None:
    path = written(tmp_path / f"a.{ending}", 0.1 * rng.standard_normal(RATE), subtype=None)
    whole = path.read_bytes()
    assert len(read_audio(path, RATE)) == RATE
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path)


def test_a_wav_from_a_pipe_need_not_know_its_size(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(440, RATE), subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    path.write_bytes(bytes(data))
    assert len(read_audio(path, RATE)) == RATE


def test_a_header_that_lies_about_the_length_takes_no_memory(tmp_path: Path) -> None:
    rate_hz, declared = 48_000, 3600 * 48_000  # 5.5 GB of float32 in eight channels
    path = written(tmp_path / "a.flac", np.zeros((1000, 8)), rate_hz, "PCM_16")
    data = bytearray(path.read_bytes())
    packed = int.from_bytes(data[18:26], "big")  # the low 36 bits of it count the frames
    data[18:26] = (packed >> 36 << 36 | declared).to_bytes(8, "big")
    path.write_bytes(bytes(data))
    tracemalloc.start()
    try:
        assert "cut short" in refused(path) or "cannot be read" in refused(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 50e6


@pytest.mark.parametrize("rate_hz", [RATE, 48_000])
@pytest.mark.parametrize("value", [3e38, -3e38, 1.01 * LARGEST_SAMPLE])
def test_samples_far_above_full_scale_are_refused(
    tmp_path: Path, rate_hz: int, value: float
) -> None:
    """Resampled, the largest float32 would become NaN."""
    samples = np.tile([value, -value], (3000, 1)).T.ravel()
    message = refused(written(tmp_path / "a.wav", samples, rate_hz))
    assert "allowed are -2^20 to 2^20" in message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate_hz", [RATE, 48_000])
def test_the_loudest_samples_stay_finite(
    tmp_path: Path, rng: np.random.Generator, rate_hz: int
) -> None:
    samples = np.where(rng.random((RATE, 2)) < 0.5, -LARGEST_SAMPLE, LARGEST_SAMPLE)
    samples[:, 1] += samples[:, 0]  # what cancels in the mix may be louder in its channels
    samples[:, 0] = -samples[:, 0]
    found = read_audio(written(tmp_path / "a.wav", samples, rate_hz), RATE)
    assert np.isfinite(found).all() and np.abs(found).max() > LARGEST_SAMPLE / 4
    assert set(np.unique(pcm16(found))) >= {-(2**15), 2**15 - 1}


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_damaged_bytes_never_give_anything_but_samples_or_a_refusal(
    tmp_path: Path, ending: str, rng: np.random.Generator
) -> None:
    path = written(tmp_path / f"a.{ending}", sine(440, 8000, 0.2), 8000, subtype=None)
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(int(rng.integers(1, 8))):
            damaged[int(rng.integers(min(len(whole), 120)))] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            found = read_audio(path, 8000)
        except InputError as error:
            assert path.name in str(error)
        else:
            assert len(found) and np.isfinite(found).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    samples = sine(440, RATE)
    samples[12_345] = value
    assert "NaN or infinite" in refused(written(tmp_path / "a.wav", samples))


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    assert "no samples" in refused(written(tmp_path / "a.wav", np.zeros(0)))


@pytest.mark.parametrize("rate_hz", [1, 999, 192_001])
def test_an_absurd_sample_rate_is_refused(tmp_path: Path, rate_hz: int) -> None:
    path = written(tmp_path / "a.wav", np.zeros(100), rate_hz, "PCM_16")
    assert f"{rate_hz} Hz" in refused(path)


def test_more_than_an_hour_is_refused_and_an_hour_is_not(tmp_path: Path) -> None:
    rate_hz = 1000
    path = written(tmp_path / "a.wav", np.zeros(3600 * rate_hz + 1), rate_hz, "PCM_U8")
    assert "3,600 s" in refused(path)
    path = written(tmp_path / "a.wav", np.zeros(3600 * rate_hz), rate_hz, "PCM_U8")
    assert len(read_audio(path, rate_hz)) == 3600 * rate_hz


def test_more_frames_than_an_hour_has_at_48_khz_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour at 192 kHz would take gigabytes, though its file may be small."""
    assert audio.MOST_FRAMES == 48_000 * 3600
    path = written(tmp_path / "a.flac", np.zeros(192_000), 192_000, "PCM_16")
    monkeypatch.setattr(audio, "MOST_FRAMES", 192_000)
    assert len(read_audio(path, RATE)) == RATE
    monkeypatch.setattr(audio, "MOST_FRAMES", 191_999)
    assert "192,000 frames at 192,000 Hz; at most 191,999" in refused(path)


def test_too_many_channels_are_refused(tmp_path: Path) -> None:
    assert "65 channels" in refused(written(tmp_path / "a.wav", np.zeros((10, 65))))


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = written(tmp_path / "a.wav", np.zeros(100), 8000)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*tinyscene\[audio\]"):
        read_audio(path, RATE)


# Windows


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, 1),
        (HALF - 1, 1),
        (2 * HALF, 1),
        (3 * HALF - 1, 1),
        (3 * HALF, 2),
        (4 * HALF, 2),
        (5 * HALF - 1, 2),
        (5 * HALF, 3),
    ],
)
def test_a_remainder_counts_from_half_a_window(count: int, expected: int) -> None:
    samples = np.arange(1, count + 1, dtype=np.float32)
    found = windows(samples, DEFINITION)
    assert found.shape == (expected, 2 * HALF) and found.dtype == np.float32
    kept = min(count, found.size)
    np.testing.assert_array_equal(found.ravel()[:kept], samples[:kept])
    assert not found.ravel()[kept:].any()


def test_windows_start_a_hop_apart(rng: np.random.Generator) -> None:
    samples = rng.standard_normal(3 * RATE).astype(np.float32)
    found = windows(samples, DEFINITION, hop_samples=HALF)
    assert len(found) == 5
    # With such a hop no remainder counts, however long.
    assert len(windows(samples[:-1], DEFINITION, hop_samples=HALF)) == 4
    for number, window in enumerate(found):
        np.testing.assert_array_equal(window, samples[number * HALF :][:RATE])


def test_windows_take_no_memory_and_are_only_read(rng: np.random.Generator) -> None:
    samples = rng.standard_normal(2 * RATE).astype(np.float32)
    found = windows(samples, DEFINITION, hop_samples=1)
    assert len(found) == RATE + 1  # 7.8 GB, were they copies
    with pytest.raises(ValueError, match="read-only"):
        found[:] = 0


@pytest.mark.parametrize("hop", [0, -1])
def test_a_hop_below_one_sample_is_refused(hop: int) -> None:
    with pytest.raises(InputError, match=f"hop_samples={hop}"):
        windows(np.zeros(RATE, np.float32), DEFINITION, hop)


def test_activity_is_decided_by_rms_at_60_db_below_full_scale() -> None:
    cut = np.zeros((4, RATE), np.float32)
    cut[1] = 0.000999  # a constant is its own RMS: -60.01 dBFS
    cut[2] = 0.001001  # -59.99 dBFS
    cut[3, 0] = 1.0  # one full-scale sample in a second: -46.4 dBFS
    np.testing.assert_array_equal(is_active(cut), [False, False, True, True])
    np.testing.assert_array_equal(is_active(cut, -50.0), [False, False, False, True])
    np.testing.assert_array_equal(is_active(cut, -40.0), [False] * 4)
