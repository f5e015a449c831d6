"""A bundle is written whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from firmware_ref.errors import InputError
from tests.convert.installs import NEW, OLD, folders, found, listing, write


def test_a_new_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "bundle"
    assert write(NEW, out) == [out / name for name in NEW]
    assert found(out) == NEW
    assert os.listdir(tmp_path / "a") == ["bundle"]


def test_an_older_bundle_is_replaced_and_another_target_leaves_nothing(tmp_path: Path) -> None:
    write(OLD, tmp_path)
    (tmp_path / "only" / "theirs").write_bytes(b"another's")
    write(NEW, tmp_path)
    assert found(tmp_path) == {**NEW, "only/theirs": b"another's"}
    assert folders(tmp_path) == {"src", "fresh", "fresh/of", "only"}


def test_what_was_changed_since_is_no_longer_ours(tmp_path: Path) -> None:
    write(OLD, tmp_path)
    (tmp_path / "only/of/old").write_bytes(b"edited")
    write(NEW, tmp_path)
    assert found(tmp_path) == {**NEW, "only/of/old": b"edited"}


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Interrupt the renaming, before or after the rename of that number, once."""
    replace, count = os.replace, 0

    def interrupt(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == step and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if count == step and after:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)


@pytest.mark.parametrize("after", [False, True])
# Four old files are moved away and four new ones into their place.
@pytest.mark.parametrize("step", range(1, 9))
def test_an_interruption_leaves_the_bundle_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    write(OLD, tmp_path)
    (tmp_path / "theirs").write_bytes(b"another's")
    before = found(tmp_path), folders(tmp_path)
    interrupted_at(step, monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        write(NEW, tmp_path)
    assert (found(tmp_path), folders(tmp_path)) == before
    write(NEW, tmp_path)
    assert found(tmp_path) == {**NEW, "theirs": b"another's"}


# Of the eight renames: as old files are moved away, and as new ones come.
@pytest.mark.parametrize("step", [3, 6])
def test_sigterm_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write(OLD, tmp_path)
    replace, count = os.replace, 0

    def terminated(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        replace(source, target)
        if count == step:
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL, "would end this process"
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(os, "replace", terminated)
    with pytest.raises(KeyboardInterrupt):
        write(NEW, tmp_path)
    assert found(tmp_path) == OLD
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_handler_of_the_callers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "rename", lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        write(NEW, tmp_path / "out")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIG_IGN]


def test_a_thread_can_install(tmp_path: Path) -> None:
    """Only the main one may set a handler."""
    thread = threading.Thread(target=write, args=(NEW, tmp_path / "out"))
    thread.start()
    thread.join()
    assert found(tmp_path / "out") == NEW


def test_a_folder_that_cannot_be_removed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(OLD, tmp_path)
    remove = Path.rmdir

    def busy(path: Path) -> None:
        if path.name == "of":
            raise OSError(16, "Device or resource busy", str(path))
        remove(path)

    monkeypatch.setattr(Path, "rmdir", busy)
    write(NEW, tmp_path)
    assert found(tmp_path) == NEW and "only/of" in folders(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_a_disk_that_is_full_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    out = tmp_path / "out"
    if exists:
        write(OLD, out)
    written = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "new":
            raise OSError(28, "No space left on device", str(path))
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write(NEW, out)
    assert os.listdir(tmp_path) == (["out"] if exists else [])
    assert not exists or found(out) == OLD


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot be written"):
        write(NEW, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_file_in_place_of_a_folder_within_is_refused(tmp_path: Path) -> None:
    write(listing(model=b"old"), tmp_path)
    (tmp_path / "src").write_text("no folder")
    before = found(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write(NEW, tmp_path)
    assert found(tmp_path) == before and folders(tmp_path) == set()


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "theirs").write_bytes(b"another's")
    with pytest.raises(InputError, match="is no regular file"):
        write(NEW, tmp_path)
    assert found(tmp_path) == {"model/theirs": b"another's"}


def test_a_link_to_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(NEW, tmp_path / "link")
    assert found(tmp_path / "real") == NEW and (tmp_path / "link").is_symlink()


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    write(NEW, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert (tmp_path / "out" / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode
