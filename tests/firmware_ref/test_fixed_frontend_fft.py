"""The integer FFT stage by stage against NumPy's in float64, its primitives at their extremes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from firmware_ref import fixed_fft
from firmware_ref.features import hamming_window
from firmware_ref.fixed_fft import (
    GAIN_BITS,
    POINTS,
    WINDOW,
    cosines,
    digit_reversed,
    first_stage,
    headroom,
    multiply_high,
    rotate_quarter,
    spectrum,
    stage,
)

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
# Steps of the spectrum. `spectrum` proves 24; no signal tried came over 2.1. On the average of both
# parts, rounding gives 0.55.
WORST, TYPICAL = 4, 0.6


def frames() -> Mapping[str, np.ndarray]:
    """The corners of int16: (2048,) each."""
    rng = np.random.default_rng(3)
    n = np.arange(WINDOW)
    impulse = np.zeros(WINDOW)
    impulse[WINDOW // 2] = -32768
    made = {
        "silence": np.zeros(WINDOW),
        "lowest": np.full(WINDOW, -32768),
        "highest": np.full(WINDOW, 32767),
        "nyquist": np.where(n % 2, 32767, -32768),
        "quarter": np.where(n // 2 % 2, 32767, -32768),
        "square": np.where(np.sin(2 * np.pi * 37 * n / WINDOW) >= 0, 32767, -32768),
        "even samples": np.where(n % 2, 0, -32768),
        "odd samples": np.where(n % 2, -32768, 0),
        "impulse": impulse,
        "full-scale signs": np.where(rng.random(WINDOW) < 0.5, -32768, 32767),
        "full-scale noise": rng.integers(-32768, 32768, WINDOW),
        "quiet noise": rng.integers(-30, 31, WINDOW),
        "least bit": rng.integers(-1, 2, WINDOW),
        "minus one": np.full(WINDOW, -1),
        "loud and quiet": 32000 * np.sin(2 * np.pi * 5 * n / WINDOW) + rng.normal(0, 1, WINDOW),
    }
    return {name: x.astype(np.int16) for name, x in made.items()}


def exact(frame: np.ndarray, shift: int) -> np.ndarray:
    """Bins 1 to 1023 in the steps of `spectrum`, complex."""
    windowed = frame / 32768 * hamming_window(WINDOW)
    return np.fft.rfft(windowed)[1:POINTS] * 2.0 ** (GAIN_BITS + shift)


def error(frame: np.ndarray) -> np.ndarray:
    shifts = headroom(frame[None])
    re, im = spectrum(frame[None], shifts)
    return np.abs(re[0] + 1j * im[0] - exact(frame, int(shifts[0, 0])))


# Primitives


def test_multiply_high_rounds_half_up_at_the_extremes() -> None:
    values = [INT32_MIN, INT32_MIN + 1, -(2**30), -1, 0, 1, 2**30, INT32_MAX]
    for a in values:
        for b in (0, 1, -1, 2**30, -(2**30), fixed_fft.HAMMING_SWING):
            assert multiply_high(np.array([a]), b)[0] == (a * b + 2**31) // 2**32
    ties = np.array([2, -2, 6, -6])
    assert multiply_high(ties, 2**30).tolist() == [1, 0, 2, -1]


@pytest.mark.parametrize("k", [0, 512, 1024])
def test_a_quarter_turn_is_exact_but_for_the_rounding_of_the_quarter(k: int) -> None:
    re = np.array([INT32_MIN, INT32_MAX, -3, -2, -1, 0, 1, 2, 3])
    im = re[::-1].copy()
    expected = {0: (re, im), 512: (im, -re), 1024: (-re, -im)}[k]
    for ours, theirs in zip(_rotate(re, im, k), expected, strict=True):
        np.testing.assert_array_equal(ours, (theirs + 2) >> 2)


def test_a_rotation_is_within_a_step_of_the_real_one(rng: np.random.Generator) -> None:
    re, im = rng.integers(-(2**30), 2**30, (2, 1531))
    k = np.arange(1531)
    ours = np.array(_rotate(re, im, k))
    theirs = np.exp(-2j * np.pi * k / WINDOW) * (re + 1j * im) / 4
    assert np.abs(ours[0] - theirs.real).max() < 1 and np.abs(ours[1] - theirs.imag).max() < 1


def _rotate(re: np.ndarray, im: np.ndarray, k: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rotate_quarter`, whose sums must fit int64, in Python's integers."""
    entries = np.broadcast_to(np.asarray(k), re.shape)
    cos, minus_sin = cosines()[entries].tolist(), cosines()[entries + 512].tolist()
    for x, y, c, s in zip(re.tolist(), im.tolist(), cos, minus_sin, strict=True):
        assert max(abs(x * c - y * s), abs(x * s + y * c)) + 2**31 < 2**63
    return rotate_quarter(re, im, entries)


def test_digits_are_reversed() -> None:
    assert digit_reversed(1).tolist() == [0, 1, 2, 3]
    assert digit_reversed(2).tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    order = digit_reversed(5)
    np.testing.assert_array_equal(order[order], np.arange(POINTS))


@pytest.mark.parametrize(
    ("sample", "shift"),
    [
        *((0, 15), (-1, 15), (1, 14), (-2, 14), (2, 13), (16383, 1), (-16384, 1)),
        *((16384, 0), (-16385, 0), (32767, 0), (-32768, 0)),
    ],
)
def test_the_headroom_is_the_largest_shift_within_full_scale(sample: int, shift: int) -> None:
    for at in (0, 1023, 2047):
        frame = np.zeros((1, WINDOW), np.int16)
        frame[0, at] = sample
        assert headroom(frame).tolist() == [[shift]]
    assert abs(sample) << shift <= 2**15


def test_the_tables_are_the_window_and_the_twiddles() -> None:
    assert np.abs(fixed_fft.window() - 2**30 * hamming_window(WINDOW)).max() < 1.5
    assert fixed_fft.window().min() > 0
    twiddles = np.exp(-2j * np.pi * np.arange(1536) / WINDOW) * 2**30
    ours = cosines()[:1536] + 1j * cosines()[512:]
    assert np.abs(ours - twiddles).max() < 0.71 and np.abs(ours).max() <= 2**30 + 1
    assert not cosines().flags.writeable


# The transform


def test_each_stage_is_the_transform_of_its_points(rng: np.random.Generator) -> None:
    frame = rng.integers(-32768, 32768, (1, WINDOW)).astype(np.int16)
    re, im = first_stage(frame, np.zeros((1, 1), np.int64))
    z = (frame[0] * hamming_window(WINDOW) * 2.0**13).reshape(-1, 2) @ np.array([1, 1j])
    size, scale = 4, 1.0
    while True:
        expected = [np.fft.fft(z[start :: POINTS // size]) for start in range(POINTS // size)]
        # Transforms lie in the order of their first sample, digits reversed.
        order = digit_reversed(round(np.log2(POINTS // size) / 2))
        ours = (re + 1j * im).reshape(-1, size)
        assert np.abs(ours - scale * np.array(expected)[order]).max() < WORST
        if size == POINTS:
            break
        re, im = stage(re, im, size)
        size, scale = 4 * size, scale / 4


@pytest.mark.parametrize("name", list(frames()))
def test_the_spectrum_is_numpys_within_the_stated_steps(name: str) -> None:
    found = error(frames()[name])
    assert found.max() <= WORST
    assert np.sqrt(np.square(found).mean()) <= 2 * TYPICAL


def test_rounding_is_half_a_step_on_noise(rng: np.random.Generator) -> None:
    found = error(rng.integers(-32768, 32768, WINDOW).astype(np.int16))
    assert np.sqrt(np.square(found).mean() / 2) < TYPICAL


def test_a_quiet_frame_is_as_exact_as_a_loud_one(rng: np.random.Generator) -> None:
    loud = rng.integers(-128, 128, WINDOW).astype(np.int16)
    for bits in range(8):
        re, im = spectrum(loud[None], np.array([[bits]]))
        shifted = spectrum(loud[None] << bits, np.array([[0]]))
        np.testing.assert_array_equal((re, im), shifted)


def test_a_nudged_twiddle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    nudged = cosines().copy()
    nudged[6] += 2**14
    monkeypatch.setattr(fixed_fft, "cosines", lambda: nudged)
    assert error(frames()["full-scale signs"]).max() > WORST


# Ranges


@pytest.mark.parametrize("name", list(frames()))
def test_nothing_leaves_32_bits(name: str) -> None:
    frame = frames()[name][None]
    shifts = headroom(frame)
    re, im = first_stage(frame, shifts)
    size, bound = 4, np.sqrt(2) * 2**30
    while True:
        assert np.hypot(re, im).max() <= bound
        if size == POINTS:
            break
        re, im = stage(re, im, size)
        size, bound = 4 * size, bound + 5
    k = np.arange(1, POINTS)
    for part in (re, im):
        sums = part[:, k] + part[:, POINTS - k], part[:, k] - part[:, POINTS - k]
        assert np.abs(sums).max() <= 1.09 * 2**30
    assert np.abs(spectrum(frame, shifts)).max() < 2**29.2
