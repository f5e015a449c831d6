"""Recordings that cannot be used: named, counted, and no reason to lose the others."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.audio import LARGEST_SAMPLE
from firmware_ref.errors import InputError
from tests.train.extracting import before_each, extracted
from tests.train.refusals import refused
from tests.train.trees import DEFINITION, RATE_HZ, noise, noise_recordings, recording, wav
from train import extract as extraction
from train.data import Source
from train.dataset import Recording
from train.extract import BadRecordingsError, Cut


def truncated(path: Path) -> None:
    wav(path, noise(9))
    os.truncate(path, path.stat().st_size // 2)


def with_value(value: float, place: int = 100) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        samples = noise(9)
        samples[place] = value
        wav(path, samples)

    return make


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "is not a file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "pipe": (os.mkfifo, "is not a file"),
    "dangling": (lambda path: path.symlink_to(path.parent / "absent"), "is not a file"),
    "empty": (lambda path: path.touch(), "cannot be read as sound"),
    "text": (lambda path: path.write_text("filename\tscene_label\n"), "cannot be read as sound"),
    "no samples": (lambda path: wav(path, np.zeros(0)), "holds no samples"),
    "truncated": (truncated, "cut short"),
    "NaN": (with_value(np.nan), "holds NaN or infinite samples"),
    "last is infinite": (with_value(-np.inf, -1), "holds NaN or infinite samples"),
}


@pytest.fixture
def clips(tmp_path: Path) -> list[Recording]:
    return noise_recordings(tmp_path, 4)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_recording_is_named_and_counted(
    tmp_path: Path, clips: list[Recording], kind: str
) -> None:
    make, reason = BAD[kind]
    path = tmp_path / "bad.wav"
    make(path)
    clips.insert(1, recording(path))
    with pytest.raises(BadRecordingsError) as caught:
        extracted(clips, tmp_path / "cache")
    assert list(caught.value.reasons) == [1]
    assert repr(str(path)) in caught.value.reasons[1] and reason in caught.value.reasons[1]
    message = str(caught.value)
    assert re.match("1 of 5 recordings cannot be used, the first: ", message)
    assert caught.value.reasons[1] in message and "--skip-bad" in message and "\n" not in message


def test_a_name_that_no_file_can_have_is_one_bad_recording(
    tmp_path: Path, clips: list[Recording]
) -> None:
    clips.append(recording(tmp_path / ("x" * 300)))
    with pytest.raises(BadRecordingsError, match=r"1 of 5 .* cannot be read: File name too long"):
        extracted(clips, tmp_path / "cache")


def test_every_bad_recording_is_named_and_the_others_are_computed(
    tmp_path: Path, clips: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (make, _) in enumerate(BAD.values()):
        path = tmp_path / f"bad{number}.wav"
        make(path)
        clips.insert(2 * number % 5, recording(path))
    bad = {i for i, clip in enumerate(clips) if clip.name.startswith("bad")}
    for lot in (16, 2):  # in this process, and in others
        monkeypatch.setattr(extraction, "LOT", lot)
        with pytest.raises(BadRecordingsError) as caught:
            extracted(clips, tmp_path / f"cache{lot}")
        reasons = caught.value.reasons
        assert list(reasons) == sorted(bad)
        assert all(repr(str(clips[i].path)) in reason for i, reason in reasons.items())
        good = [clip for i, clip in enumerate(clips) if i not in bad]
        with monkeypatch.context() as patch:
            before_each(patch, lambda clip: pytest.fail(f"{clip.name} was computed before"))
            assert len(extracted(good, tmp_path / f"cache{lot}").entries) == 4


def test_bad_recordings_of_equal_content_are_named_one_by_one(
    tmp_path: Path, clips: list[Recording]
) -> None:
    for name in ("x.wav", "y.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
        clips.append(recording(tmp_path / name))
    with pytest.raises(BadRecordingsError, match="2 of 6") as caught:
        extracted(clips, tmp_path / "cache")
    assert "x.wav" in caught.value.reasons[4] and "y.wav" in caught.value.reasons[5]


@pytest.mark.parametrize(
    ("samples", "message"),
    [(None, "is not a file"), (np.zeros(9), "is silent"), (np.zeros(0), "holds no samples")],
    ids=["missing", "silent", "empty"],
)
def test_a_bad_impulse_response_is_named(
    tmp_path: Path, clips: list[Recording], samples: np.ndarray | None, message: str
) -> None:
    response = tmp_path / "ir.wav"
    if samples is not None:
        wav(response, samples)
    clips[2] = dataclasses.replace(clips[2], response=response)
    with pytest.raises(BadRecordingsError, match="1 of 4") as caught:
        extracted(clips, tmp_path / "cache")
    assert "ir.wav'" in caught.value.reasons[2] and message in caught.value.reasons[2]


def test_the_loudest_sound_never_becomes_nan(tmp_path: Path) -> None:
    """Nor through a response as loud; what is louder is refused."""
    loud = noise(0, level=1)
    clip = recording(wav(tmp_path / "a.wav", loud * np.float32(LARGEST_SAMPLE / abs(loud).max())))
    response = wav(tmp_path / "ir.wav", np.full(1000, LARGEST_SAMPLE))
    for heard in (clip, dataclasses.replace(clip, response=response)):
        found = extracted([heard], tmp_path / "cache", Cut(dtype="float16"))
        assert np.isfinite(found.log_mels).all()
    wav(tmp_path / "a.wav", loud * np.float32(5e37))
    with pytest.raises(BadRecordingsError, match=r"a\.wav' holds a sample of .*; allowed are -2"):
        extracted([clip], tmp_path / "cache")


# Left out


def source(cache: Path, skip_bad: bool) -> Source:
    return Source(DEFINITION, cache, skip_bad)


def test_bad_recordings_are_left_out_on_request(tmp_path: Path, clips: list[Recording]) -> None:
    warnings: list[str] = []
    clips[1:1] = [recording(tmp_path / "absent.wav"), recording(tmp_path)]
    refused(lambda: source(tmp_path, False).usable(clips, Cut(), warnings.append), "2 of 6 rec")
    assert not warnings
    usable = source(tmp_path, True).usable(clips, Cut(), warnings.append)
    assert [clip.name for clip in usable] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert warnings == [
        f"left out: '{tmp_path / 'absent.wav'}' is not a file",
        f"left out: '{tmp_path}' is not a file",
        "left out 2 of 6 recordings",
    ]
    assert len(source(tmp_path, True).extract(usable, Cut()).entries) == 4


def test_sound_recordings_need_no_warning(tmp_path: Path, clips: list[Recording]) -> None:
    for skip_bad in (False, True):
        assert source(tmp_path, skip_bad).usable(clips, Cut(), pytest.fail) == clips


def test_no_recording_left_is_refused(tmp_path: Path) -> None:
    for clips in ([], [recording(tmp_path / "absent.wav")]):
        with pytest.raises(InputError, match="no recording can be used; mend the data folder"):
            source(tmp_path, True).usable(clips, Cut(), lambda _: None)


def test_a_cache_that_cannot_be_used_is_not_blamed_on_recordings(
    tmp_path: Path, clips: list[Recording]
) -> None:
    (tmp_path / "file").touch()
    for skip_bad in (False, True):
        usable = source(tmp_path / "file" / "cache", skip_bad).usable
        refused(partial(usable, clips, Cut(), pytest.fail), "feature cache", "--cache")


def test_real_recordings_are_usable(audio_data: Path, tmp_path: Path) -> None:
    """A clip as it is, cut in half, and one sample of it."""
    whole = (audio_data / "esc10" / "001 - Dog bark" / "1-100032-A.ogg").read_bytes()
    for name, content in (("whole.ogg", whole), ("half.ogg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
    wav(tmp_path / "one.wav", noise(0)[:1], RATE_HZ, "PCM_16")
    clips = [recording(tmp_path / name) for name in ("whole.ogg", "half.ogg", "one.wav")]
    warnings: list[str] = []
    usable = source(tmp_path, True).usable(clips, Cut(), warnings.append)
    assert [clip.name for clip in usable] == ["whole.ogg", "one.wav"]
    assert "half.ogg' is cut short" in warnings[0] and len(warnings) == 2
