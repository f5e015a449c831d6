"""A bundle into its folder: whole or not at all, and nothing of others' touched."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from firmware_ref.errors import InputError

PREFIX = ".tinyscene-"


def install(files: Mapping[str, bytes], folder: Path, manifest_file: str) -> list[Path]:
    """Write the files, by path in ``folder``, in place of an earlier bundle's; returns where.

    A new folder appears whole, by one rename. In one that exists, every file is first written
    aside; then all are put in place, and back as they were where that is interrupted or fails.
    What an earlier bundle's manifest lists, unchanged since, is replaced, or removed where this one
    lacks it. Raises `InputError`, before anything is touched, where a file of another's or one that
    was edited stands in the way, and where the folder cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    try:
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
        if not path.exists() or name in ours:
            continue
        if not path.is_file():
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
    try:
        listed = json.loads((folder / manifest_file).read_text(encoding="utf-8"))["files"]
        entries = [(str(path), entry["sha256"]) for path, entry in listed.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    found = [path for path, sha256 in entries if _within(path) and _is(folder / path, sha256)]
    return [*found, manifest_file]


def _within(path: str) -> bool:
    """A manifest may have been written by anyone: nothing outside the folder is touched."""
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def _is(path: Path, sha256: Any) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _remove_empty(folders: set[Path], root: Path) -> None:
    """Folders that hold nothing any more, and those around them, within ``root``."""
    for folder in folders:
        while folder != root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
