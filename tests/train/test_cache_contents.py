"""Digests of recordings: remembered, and never for longer than they are true."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tests.train.refusals import refused
from train import cache
from train.cache import Contents


def settled(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file and let time pass."""
    path.write_bytes(content)
    now = time.time_ns() + 2 * cache.SETTLED_NS
    monkeypatch.setattr(time, "time_ns", lambda: now)


def remembered(root: Path) -> int:
    return len((root / "contents.jsonl").read_bytes().splitlines())


def test_contents_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    settled(path, b"abc", monkeypatch)
    # FIPS 180-2, B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert Contents(tmp_path).digest(path) == digest
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert Contents(tmp_path).digest(path) == digest, "without reading it"
    assert remembered(tmp_path) == 1


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, contents = tmp_path / "a.wav", Contents(tmp_path)
    settled(path, b"abc", monkeypatch)
    first, stat = contents.digest(path), path.stat()
    time.sleep(0.02)
    # As a copy that keeps size and time of the last write.
    path.write_bytes(b"abd")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert contents.digest(path) != first
    assert Contents(tmp_path).digest(path) != first


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path) -> None:
    """Within a tick of the file system's clock a second change leaves no trace."""
    path, contents = tmp_path / "a.wav", Contents(tmp_path)
    seen = set()
    for number in range(50):
        path.write_bytes(b"%02d" % number)
        seen.add(contents.digest(path))
    assert len(seen) == 50 and remembered(tmp_path) == 0


def test_damaged_memories_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    settled(path, b"abc", monkeypatch)
    digest = Contents(tmp_path).digest(path)
    known = tmp_path / "contents.jsonl"
    sound = known.read_bytes()
    for line in (
        b"",
        b"[]\n",
        b"{}\n",
        b"[[], {}, 1, 2]\n",
        b"[1, 2, 3, 4]\n",
        b"\xff\n",
        sound[:9],
    ):
        known.write_bytes(line + sound[:-10])
        assert Contents(tmp_path).digest(path) == digest
        assert known.read_bytes().endswith(sound), "a line of its own"


def test_a_file_that_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Contents(tmp_path).digest(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        Contents(tmp_path).digest(tmp_path)


def test_a_memory_that_cannot_be_kept_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path / "a.wav", b"abc", monkeypatch)
    contents = Contents(tmp_path)
    (tmp_path / "contents.jsonl").unlink()
    (tmp_path / "contents.jsonl").symlink_to("/dev/full")
    refused(lambda: contents.digest(tmp_path / "a.wav"), "feature cache", "No space left on device")
