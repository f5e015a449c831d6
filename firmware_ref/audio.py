"""From a sound file to one-second windows of mono samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition

LONGEST_SECONDS = 3600
# An hour at 48 kHz, and less at higher rates: a compressed file of a few megabytes can unpack to
# any number of frames, which are held in memory as float32 and, resampled, once more.
MOST_FRAMES = 48_000 * LONGEST_SECONDS
# Of the mono mix, 120 dB above full scale: no recording is so loud, and whatever follows (the
# resampler, 16-bit PCM, power spectra) stays finite in float32.
LARGEST_SAMPLE = 2.0**20
LARGEST_CHANNELS = 64
SAMPLE_RATES_HZ = (1_000, 192_000)
BLOCK_FRAMES = 1 << 16
# Programs that cannot seek back write a size near 2^31 or 2^32 for "unknown".
UNKNOWN_SIZE = 0x7FFF_0000
ACTIVE_DBFS = -60.0


def read_audio(path: str | Path, sample_rate_hz: int) -> np.ndarray:
    """Read any file soundfile reads as (n,) float32 mono samples at ``sample_rate_hz``.

    Channels are averaged, other rates resampled (soxr, high quality); samples are nominally in
    [-1, 1]. Raises `InputError` for a file that is missing, unreadable, cut short (as far as its
    format tells), empty, longer than an hour or than `MOST_FRAMES`, or holds NaN, infinity or
    samples beyond `LARGEST_SAMPLE`.
    """
    soundfile, soxr = _libraries()
    what = f"audio {str(path)!r}"
    if not Path(path).is_file():
        raise InputError(f"{what} is not a file; give the path of a sound file")
    try:
        # By descriptor, so that libsndfile judges by content and not by the name's ending.
        with (
            Path(path).open("rb") as stream,
            soundfile.SoundFile(stream.fileno(), closefd=False) as sound,
        ):
            _check_header(what, sound)
            rate, mono = sound.samplerate, _mixed_down(what, sound)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{what} cannot be read as sound: {error.error_string} Allowed are WAV, FLAC, OGG, MP3 "
            "and whatever else libsndfile reads"
        ) from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}; check the path") from None
    if rate != sample_rate_hz:
        mono = soxr.resample(mono, rate, sample_rate_hz, quality="HQ")
        if not len(mono):
            raise InputError(f"{what} is too short to resample from {rate} Hz; give a longer one")
        assert np.isfinite(mono).all(), "bounded samples stay finite"
    return np.ascontiguousarray(mono, np.float32)


def _libraries() -> tuple[Any, Any]:
    """The optional packages that decode and resample."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        name = getattr(error, "name", None) or "soundfile"
        raise InputError(
            f"reading sound needs the package {name!r}; pip install 'tinyscene[audio]'"
        ) from None
    return soundfile, soxr


def _check_header(what: str, sound: Any) -> None:
    """Refuse what an open file declares before any of it is decoded."""
    rate, channels, frames = sound.samplerate, sound.channels, sound.frames
    low, high = SAMPLE_RATES_HZ
    if not low <= rate <= high:
        raise InputError(f"{what}: sample rate {rate} Hz; allowed are {low:,} to {high:,} Hz")
    if not 1 <= channels <= LARGEST_CHANNELS:
        raise InputError(f"{what}: {channels} channels; allowed are 1 to {LARGEST_CHANNELS}")
    if _is_cut_short(sound.extra_info):
        raise InputError(f"{what} is cut short or damaged at its end; fetch it again")
    if frames <= 0:
        raise InputError(f"{what} holds no samples; give a sound file of at least one sample")
    if frames > rate * LONGEST_SECONDS:
        raise InputError(
            f"{what} lasts {frames / rate:,.0f} s; at most {LONGEST_SECONDS:,} s are accepted; "
            "cut it"
        )
    if frames > MOST_FRAMES:
        raise InputError(
            f"{what} holds {frames:,} frames at {rate:,} Hz; at most {MOST_FRAMES:,} are accepted; "
            "cut it or resample it to 48,000 Hz"
        )


def _is_cut_short(log: str) -> bool:
    """Whether libsndfile noted, and forgave, that the end of the sound is missing.

    ``log`` is its account of the header: ``data : 88200 (should be 79375)`` where a WAV, AIFF or
    AU file promises more bytes than it has, and remarks on an OGG file without its last page or
    with a part of one.
    """
    if "Last page lacks an end-of-stream bit" in log or "Junk after the last page" in log:
        return True
    sizes = re.findall(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", log, re.M)
    return any(int(held) < int(promised) < UNKNOWN_SIZE for promised, held in sizes)


def _mixed_down(what: str, sound: Any) -> np.ndarray:
    """All frames of an open file, channels averaged: (n,) float32, in bounds, n > 0.

    In blocks: a damaged header may promise hours of many channels that the file does not hold.
    """
    blocks: list[np.ndarray] = []
    while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise InputError(f"{what} holds NaN or infinite samples; export it again")
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float64)
        if np.abs(mono).max() > LARGEST_SAMPLE:
            raise InputError(
                f"{what} holds a sample of {np.abs(mono).max():.3g}; allowed are -2^20 to 2^20, "
                "where full scale is 1; export it again"
            )
        blocks.append(mono.astype(np.float32))
    decoded = sum(map(len, blocks))
    if not decoded or decoded < sound.frames:
        raise InputError(
            f"{what} is cut short: {decoded:,} of {sound.frames:,} frames; fetch it again"
        )
    return np.concatenate(blocks)


def windows(
    samples: np.ndarray, definition: FeatureDefinition, hop_samples: int | None = None
) -> np.ndarray:
    """Cut (n,) samples into (N, clip_samples) windows that start every ``hop_samples``.

    They are views of the samples, to read, and take no memory of their own. The default hop is a
    whole window: then a remainder of at least half a window is filled with zeros and a shorter one
    dropped. With another hop every remainder is dropped. A clip shorter than a window is filled
    with zeros to one, whatever the hop.
    """
    size = definition.clip_samples
    hop = size if hop_samples is None else hop_samples
    if hop < 1:
        raise InputError(f"hop_samples={hop} must be at least 1")
    whole = max(0, 1 + (len(samples) - size) // hop)
    rest = len(samples) - whole * hop
    if whole == 0 or (hop == size and rest >= size // 2):
        whole += 1
    needed = (whole - 1) * hop + size
    padded = np.pad(np.asarray(samples, np.float32), (0, max(0, needed - len(samples))))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:whole]


def is_active(cut: np.ndarray, threshold_dbfs: float = ACTIVE_DBFS) -> np.ndarray:
    """Which windows, (N, n) to (N,) bool, are louder than padding, by RMS re full scale."""
    power = np.square(cut, dtype=np.float64).mean(axis=1)
    return np.asarray(power > 10 ** (threshold_dbfs / 10))
