"""A bundle into its folder: whole or not at all, and nothing of others' touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from convert.bundle.contents import TARGETS
from firmware_ref.errors import InputError

PREFIX = ".tinyscene-"


def install(files: Mapping[str, bytes], folder: Path, manifest_file: str) -> list[Path]:
    """Write the files, by path in ``folder``, in place of an earlier bundle's; returns where.

    A new folder appears whole, by one rename. In one that exists, every file is first written
    aside; then all are put in place, and back as they were where that fails or is interrupted, by
    Ctrl-C or SIGTERM (SIGKILL leaves the old files in a ``.tinyscene-`` folder there).
    What an earlier bundle's manifest lists, unchanged since, is replaced, or removed where this one
    lacks it; the manifest itself, which nothing lists, always. Raises `InputError`, before anything
    is touched, where a file of another's, a link or a file that was edited stands in the way, and
    where the folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    try:
        with _terminable():
            if folder.exists():
                ours = _unchanged(folder, manifest_file)
                _refuse_others(files, folder, ours)
                _replace(files, folder, [name for name in ours if name not in files])
            else:
                _create(files, folder)
    except OSError as error:
        name = error.filename2 or error.filename or folder
        raise InputError(
            f"{str(name)!r} cannot be written: {error.strerror or error}; give a writable --out"
        ) from None
    return [folder / name for name in files]


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, which is undone; a handler of the caller's is left, and other threads."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _create(files: Mapping[str, bytes], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=PREFIX) as aside:
        whole = Path(aside) / folder.name
        _write(files, whole)
        os.rename(whole, folder)


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _refuse_others(files: Mapping[str, bytes], folder: Path, ours: Sequence[str]) -> None:
    """Nothing in the way but files of an earlier bundle, or such as are what they will be."""
    for name, content in files.items():
        path = folder / name
        if not _is_real(path.parent):
            raise InputError(
                f"{str(path.parent)!r} leads elsewhere by a link; remove the link, or give another "
                "--out"
            )
        if not os.path.lexists(path) or name in ours:
            continue
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{str(path)!r} is no regular file; move it, or give another --out")
        if path.read_bytes() != content:
            raise InputError(
                f"{str(path)!r} is none of an earlier bundle's files, or was edited since; move "
                "it, or give another --out"
            )


def _replace(files: Mapping[str, bytes], folder: Path, stale: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=PREFIX) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        _write(files, new)
        moves = _Moves()
        try:
            for name in (*stale, *files):
                if os.path.lexists(folder / name):
                    moves.move(folder / name, old / name)
            for name in files:
                moves.move(new / name, folder / name)
        except BaseException:
            moves.undo()
            raise
    _remove_empty({(folder / name).parent for name in stale}, folder)


class _Moves:
    """Renames that can be taken back, with the folders made for them."""

    def __init__(self) -> None:
        self._done: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def move(self, source: Path, target: Path) -> None:
        """Rename a file, into a folder that need not be there yet."""
        for parent in reversed(target.parents):
            if not parent.exists():
                parent.mkdir()
                self._made.append(parent)
        # Noted before it is done: an interruption may come between the two.
        self._done.append((source, target))
        os.replace(source, target)

    def undo(self) -> None:
        """Everything as it was."""
        for source, target in reversed(self._done):
            if not os.path.lexists(source):
                os.replace(target, source)
        for parent in reversed(self._made):
            parent.rmdir()


def _unchanged(folder: Path, manifest_file: str) -> list[str]:
    """The manifest of an earlier bundle, and the paths it lists that have the hash it says."""
    path = folder / manifest_file
    # One that waits for a writer, or lies elsewhere, is not even read.
    if path.is_symlink() or not path.is_file():
        return []
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["target"] not in TARGETS or type(manifest["schema_version"]) is not int:
            return []
        entries = [(str(name), entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    found = [name for name, sha256 in entries if _within(name) and _is(folder / name, sha256)]
    return [*found, manifest_file]


def _within(path: str) -> bool:
    """A manifest may have been written by anyone: nothing outside the folder is touched."""
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def _is(path: Path, sha256: Any) -> bool:
    """Whether a file of that hash lies there and is reached by no link."""
    if path.is_symlink() or not path.is_file() or not _is_real(path.parent):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _is_real(folder: Path) -> bool:
    """Whether no link leads to a folder below one that is real."""
    return os.path.realpath(folder) == str(folder)


def _remove_empty(folders: set[Path], root: Path) -> None:
    """Folders that hold nothing any more, and those around them, within ``root``."""
    for folder in folders:
        # One that cannot be removed stays: it holds something, or is a link or a mount.
        with contextlib.suppress(OSError):
            while folder != root:
                folder.rmdir()
                folder = folder.parent
