"""Spectrum correction: what each device's spectrum is multiplied by to sound like the reference.

Section 2.2 of the report, after Nguyen, Pernkopf and Kosmider, "Acoustic scene classification for
mismatched recording devices using heated-up softmax and spectrum correction", ICASSP 2020. The
reference is the average over devices. Everything comes from training recordings. Where a recording
has no sound of its own, a large coefficient raises what its other bins leak there.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy import signal

from firmware_ref.errors import InputError, read_bytes, write_whole
from firmware_ref.features import FeatureDefinition
from train.dataset import Recording
from train.extract import Progress, heard, in_parallel, no_progress

# A bin this far below the loudest of its recording, 70 dB, holds rounding, and what lossy coding
# left: no device has coloured it.
FLOOR = 3e-4
# What is looked at of a recording.
LONGEST_SECONDS = 60
LARGEST_BYTES = 2**24


def aligned_moments(recordings: Sequence[Recording], limit: int) -> list[list[Recording]]:
    """Recordings of one moment by several devices: of each device ``limit`` moments, if it has.

    In the order of the recordings' names, evenly spread where there are more. A device that shares
    moments with many others may come to more than ``limit``.
    """
    moments: dict[str, list[Recording]] = {}
    for recording in sorted(recordings, key=lambda r: r.name):
        if recording.moment:
            moments.setdefault(recording.moment, []).append(recording)
    several = {m: group for m, group in moments.items() if len({r.device for r in group}) > 1}
    chosen: set[str] = set()
    for device in sorted({r.device for group in several.values() for r in group}):
        own = [m for m, group in several.items() if any(r.device == device for r in group)]
        # Those that other devices need too come first, so that few recordings are read.
        own.sort(key=lambda m: m not in chosen)
        have = sum(m in chosen for m in own)
        rest = own[have:]
        wanted = min(max(limit - have, 0), len(rest))
        chosen.update(rest[i * len(rest) // wanted] for i in range(wanted))
    return [group for moment, group in several.items() if moment in chosen]


def estimate(spectra: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Coefficients (bins,) of each device from magnitude spectra (bins,) of aligned moments.

    The coefficient of a device is the mean, over its aligned pairs, of |reference| / |device|. Not
    every moment has every device, so pairs are taken with the device that most moments have, and
    the reference is the average over devices of their mean response relative to that one. Pairs
    count in the bins where both have sound; where a device has no pair it is left as it is.
    """
    devices = sorted({device for moment in spectra for device in moment})
    if len(devices) < 2:
        raise InputError(
            "spectrum correction needs recordings of one moment by two devices at least; the "
            "training split has none: set augment.spectrum_correction_probability=0"
        )
    moments = [{d: values for d, values in moment.items() if values.any()} for moment in spectra]
    anchor = max(devices, key=lambda d: sum(d in moment for moment in moments))
    pairs = {
        device: [(m[device], m[anchor]) for m in moments if {device, anchor} <= m.keys()]
        for device in devices
    }
    if alone := [device for device, found in pairs.items() if not found]:
        raise InputError(
            f"spectrum correction: device {alone[0]!r} shares no moment with device {anchor!r}; "
            "give aligned recordings, or set augment.spectrum_correction_probability=0"
        )
    reference = np.ma.stack([_mean_ratio(found) for found in pairs.values()]).mean(axis=0)
    return {
        device: (reference * _mean_ratio([(other, own) for own, other in found])).filled(1.0)
        for device, found in pairs.items()
    }


def _mean_ratio(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ma.MaskedArray:
    """Mean of the ratios of pairs, (bins,), masked where no pair has sound in both."""
    above, below = np.array(pairs).swapaxes(0, 1)  # (pairs, bins)
    sound = [x > FLOOR * x.max(axis=1, keepdims=True) for x in (above, below)]
    ratios = np.ma.masked_array(above, ~(sound[0] & sound[1])) / below
    return ratios.mean(axis=0)


def measure(
    recordings: Sequence[Recording],
    definition: FeatureDefinition,
    limit: int,
    progress: Progress = no_progress,
) -> dict[str, np.ndarray]:
    """Coefficients (bins,) by device from training recordings, ``limit`` moments of each."""
    groups = aligned_moments(recordings, limit)
    flat = [recording for group in groups for recording in group]
    results = in_parallel(partial(_spectrum, definition=definition), flat)
    found = iter(list(progress(results, "spectra", len(flat))))
    return estimate([{r.device: next(found) for r in group} for group in groups])


def save(
    path: Path,
    coefficients: Mapping[str, np.ndarray],
    definition: FeatureDefinition,
    recordings: Sequence[Recording],
) -> None:
    """Write coefficients as ``.npz``: ``devices`` (D,), ``coefficients`` (D, bins), ``hz``.

    And ``sources``, those of the ``recordings`` they were measured on.
    """
    stream = io.BytesIO()
    np.savez(
        stream,
        devices=np.array(list(coefficients)),
        coefficients=np.stack(list(coefficients.values())),
        hz=_frequencies(definition),
        sources=np.array(sorted({r.source for r in recordings})),
    )
    write_whole(path, stream.getvalue())


def load(
    path: Path, definition: FeatureDefinition, recordings: Sequence[Recording]
) -> dict[str, np.ndarray]:
    """Read coefficients that `save` wrote; `InputError` for anything else.

    They may have been measured on nothing but sources of the training ``recordings``.
    """
    content = read_bytes(path, LARGEST_BYTES, "spectrum correction")
    again = "write it again with python -m train spectrum-correction"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_BYTES:
                raise ValueError(f"it unpacks to more than {LARGEST_BYTES:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names = ("devices", "coefficients", "hz", "sources")
            devices, coefficients, hz, sources = (file[name] for name in names)
    except Exception as error:  # whatever a damaged archive makes of the readers above
        raise InputError(
            f"spectrum correction {str(path)!r} cannot be read: {error}; {again}"
        ) from None
    expected = _frequencies(definition)
    sound = (
        devices.dtype.kind == "U"
        and devices.ndim == 1
        and len(set(devices.tolist())) == len(devices) > 0
        and coefficients.dtype == hz.dtype == np.float64
        and coefficients.shape == (len(devices), len(expected))
        and bool(np.isfinite(coefficients).all() and (coefficients > 0).all())
        and np.array_equal(hz, expected)
        and sources.dtype.kind == "U"
        and sources.ndim == 1
    )
    if not sound:
        raise InputError(
            f"spectrum correction {str(path)!r} does not hold {len(expected)} positive "
            f"coefficients for each device; {again}"
        )
    if others := sorted(set(sources.tolist()) - {r.source for r in recordings}):
        raise InputError(
            f"spectrum correction {str(path)!r} was measured on {len(others)} sources that are not "
            f"for training here, {others[0]!r:.80} first; write it again for this fold"
        )
    return dict(zip(devices.tolist(), coefficients, strict=True))


def plot(coefficients: Mapping[str, np.ndarray], definition: FeatureDefinition) -> bytes:
    """A PNG of every device's coefficients, in dB over frequency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for device, values in coefficients.items():
        axes.semilogx(_frequencies(definition)[1:], 20 * np.log10(values[1:]), label=device, lw=1)
    axes.set(
        title="Spectrum correction", xlabel="frequency (Hz)", ylabel="gain to the reference (dB)"
    )
    axes.grid(alpha=0.3)
    axes.legend(title="device")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def mean_spectrum(samples: np.ndarray, definition: FeatureDefinition) -> np.ndarray:
    """Root mean power of every bin, (n,) samples to (window_samples / 2 + 1,) float64.

    Through Hann windows: what the side lobes of the features' Hamming windows let through of a loud
    bin hides what a device does to faint ones.
    """
    samples = samples[: LONGEST_SECONDS * definition.sample_rate_hz].astype(np.float64)
    missing = max(definition.window_samples - len(samples), 0)
    _, power = signal.welch(
        np.pad(samples, (missing - missing // 2, missing // 2)),
        window="hann",
        nperseg=definition.window_samples,
        noverlap=definition.window_samples - definition.hop_samples,
        detrend=False,
        scaling="spectrum",
    )
    return np.sqrt(power)


def _spectrum(recording: Recording, definition: FeatureDefinition) -> np.ndarray:
    return mean_spectrum(heard(recording, definition), definition)


def _frequencies(definition: FeatureDefinition) -> np.ndarray:
    bins = definition.window_samples // 2 + 1
    return np.linspace(0, definition.sample_rate_hz / 2, bins)
