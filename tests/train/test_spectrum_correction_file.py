"""Coefficients in a file, hostile files, and the plot."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.refusals import refused
from tests.train.trees import DEFINITION, RATE_HZ, SECOND, noise, recording
from train.spectrum_correction import LONGEST_SECONDS, load, mean_spectrum, plot, save

BINS = 1025
HZ = np.linspace(0, RATE_HZ / 2, BINS)
HEARD = [recording(Path(f"{name}.wav")) for name in "ab"]
AGAIN = "write it again with python -m train spectrum-correction"


@pytest.fixture
def coefficients(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {device: rng.uniform(0.1, 10, BINS) for device in ("A", "S1", "é")}


def test_what_was_saved_is_loaded(tmp_path: Path, coefficients: dict[str, np.ndarray]) -> None:
    path = tmp_path / "sub" / "a.npz"
    save(path, coefficients, DEFINITION, HEARD)
    found = load(path, DEFINITION, HEARD)
    assert list(found) == list(coefficients)
    for device, values in coefficients.items():
        np.testing.assert_array_equal(found[device], values)
    first = path.read_bytes()
    save(path, coefficients, DEFINITION, HEARD)
    assert path.read_bytes() == first


def test_the_frequencies_are_told(tmp_path: Path, coefficients: dict[str, np.ndarray]) -> None:
    save(tmp_path / "a.npz", coefficients, DEFINITION, HEARD)
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["hz"], HZ)


def write(path: Path, **changes: Any) -> None:
    """A sound file of two devices, but for ``changes``; None leaves an array out."""
    values = {
        "devices": np.array(["A", "B"]),
        "coefficients": np.ones((2, BINS)),
        "hz": HZ,
        "sources": np.array(["a.wav"]),
        **changes,
    }
    np.savez(path, **{name: value for name, value in values.items() if value is not None})


def nudged(value: float) -> np.ndarray:
    values = np.ones((2, BINS))
    values[1, 500] = value
    return values


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "zero": {"coefficients": nudged(0)},
    "negative": {"coefficients": nudged(-1)},
    "NaN": {"coefficients": nudged(np.nan)},
    "infinite": {"coefficients": nudged(np.inf)},
    "one bin too few": {"coefficients": np.ones((2, BINS - 1))},
    "one device too few": {"coefficients": np.ones((1, BINS))},
    "another rank": {"coefficients": np.ones(BINS)},
    "single precision": {"coefficients": np.ones((2, BINS), np.float32)},
    "complex": {"coefficients": np.ones((2, BINS), complex)},
    "text": {"coefficients": np.full((2, BINS), "1")},
    "devices twice": {"devices": np.array(["A", "A"])},
    "numbered devices": {"devices": np.array([1, 2])},
    "nested devices": {"devices": np.array([["A", "B"]])},
    "no devices": {"devices": np.array([], str), "coefficients": np.ones((0, BINS))},
    "another rate": {"hz": HZ * 48_000 / 44_100},
    "frequencies of text": {"hz": np.full(BINS, "x")},
    "fewer frequencies": {"hz": HZ[:-1]},
    "numbered sources": {"sources": np.array([1])},
    "nested sources": {"sources": np.array([["a.wav"]])},
}


@pytest.mark.parametrize("name", CHANGES)
def test_values_that_are_no_coefficients_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    write(path)
    assert set(load(path, DEFINITION, HEARD)) == {"A", "B"}
    write(path, **CHANGES[name])
    refused(
        lambda: load(path, DEFINITION, HEARD), "does not hold 1025 positive coefficients", AGAIN
    )


def test_only_sources_for_training_may_have_been_measured(
    tmp_path: Path, coefficients: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "a.npz"
    save(path, coefficients, DEFINITION, HEARD)
    load(path, DEFINITION, [*HEARD, recording(Path("c.wav"))])
    refused(
        lambda: load(path, DEFINITION, HEARD[1:]),
        f"1 sources that are not for training here, {HEARD[0].source!r} first",
        "write it again for this fold",
    )
    write(path, sources=None)
    refused(lambda: load(path, DEFINITION, HEARD), "cannot be read", AGAIN)


def pickled() -> bytes:
    stream = io.BytesIO()
    objects: Any = np.array(["A", None], dtype=object)
    np.savez(stream, devices=objects, coefficients=np.ones((2, BINS)), hz=HZ)
    return stream.getvalue()


def bomb() -> bytes:
    """Small, and unpacks to 64 MB."""
    stream = io.BytesIO()
    np.savez_compressed(stream, devices=np.array(["A"]), coefficients=np.zeros(2**23), hz=HZ)
    return stream.getvalue()


def promising() -> bytes:
    """An array of 2^40 numbers that the file does not hold."""
    stream, array = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}
    )
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("devices", "coefficients", "hz"):
            archive.writestr(f"{name}.npy", array.getvalue())
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((2, BINS)))
    return stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [bytes, lambda: b"PK\x03\x04", lambda: bytes(range(256)) * 9, npy, pickled, bomb, promising],
    ids=["empty", "zip", "noise", "npy", "pickled", "bomb", "promising"],
)
def test_hostile_files_are_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(make())
    refused(lambda: load(path, DEFINITION, HEARD), "a.npz' cannot be read: ", AGAIN)


def test_files_cut_short_or_damaged_are_refused_or_right(
    tmp_path: Path, coefficients: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    path = tmp_path / "a.npz"
    save(path, coefficients, DEFINITION, HEARD)
    sound = path.read_bytes()
    for size in rng.integers(0, len(sound), 40):
        path.write_bytes(sound[:size])
        refused(lambda: load(path, DEFINITION, HEARD), "a.npz'", AGAIN)
    for name in ("devices", "coefficients"):
        write(path, **{name: None})
        refused(lambda: load(path, DEFINITION, HEARD), "a.npz' cannot be read", AGAIN)
    place = sound.index(coefficients["S1"].tobytes())
    damaged = bytearray(sound)
    damaged[place + 5] ^= 4
    path.write_bytes(damaged)
    refused(lambda: load(path, DEFINITION, HEARD), "a.npz' cannot be read", AGAIN)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path / "a.npz", DEFINITION, HEARD), "a.npz' cannot be read")
    with (tmp_path / "a.npz").open("wb") as stream:
        stream.truncate(2**24 + 1)
    refused(lambda: load(tmp_path / "a.npz", DEFINITION, HEARD), "at most 16,777,216 are accepted")


# The plot


def test_the_plot_is_a_png_of_every_device(coefficients: dict[str, np.ndarray]) -> None:
    import matplotlib.image

    png = plot(coefficients, DEFINITION)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = matplotlib.image.imread(io.BytesIO(png)).shape
    assert (width, height) == (1080, 600)
    assert png == plot(coefficients, DEFINITION), "the same bytes each time"
    coefficients["A"][500] *= 1000
    assert png != plot(coefficients, DEFINITION)


# Spectra


@pytest.mark.parametrize("count", [1, 100, 2047, 2048, 5000, SECOND])
def test_a_spectrum_is_the_root_of_the_mean_power_of_frames(count: int) -> None:
    samples = noise(0)[:count]
    missing = max(2048 - count, 0)
    padded = np.pad(samples.astype(np.float64), (missing - missing // 2, missing // 2))
    window = np.sin(np.pi * np.arange(2048) / 2048) ** 2
    starts = range(0, len(padded) - 2047, 1024)
    power = [np.abs(np.fft.rfft(padded[s : s + 2048] * window)) ** 2 for s in starts]
    found, expected = mean_spectrum(samples, DEFINITION), np.sqrt(np.mean(power, axis=0))
    assert found.shape == (BINS,) and found.dtype == np.float64
    # In whatever unit: only ratios count.
    scale = found[500] / expected[500]
    np.testing.assert_allclose(found[1:-1], scale * expected[1:-1], rtol=1e-9)
    expected[300] *= 1.001
    assert np.abs(found / (scale * expected) - 1)[1:-1].max() > 9e-4, "one nudged value is seen"


def test_silence_has_an_empty_spectrum() -> None:
    assert not mean_spectrum(np.zeros(100, np.float32), DEFINITION).any()


def test_of_a_long_recording_the_beginning_is_looked_at() -> None:
    long = np.resize(noise(0), (LONGEST_SECONDS + 2) * RATE_HZ)
    first = long[: LONGEST_SECONDS * RATE_HZ]
    long[len(first) :] = 1
    np.testing.assert_array_equal(mean_spectrum(long, DEFINITION), mean_spectrum(first, DEFINITION))
