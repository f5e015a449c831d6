"""The feature cache: log-mel windows on disk, memory-mapped, keyed by content.

A store is a folder for one way of extracting features. ``data.bin`` holds windows of one shape
and dtype, one after another; each line of ``index.jsonl`` names the recording that some of them
came from, with a checksum of both. Both only grow, so an interrupted extraction keeps what it has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firmware_ref.errors import InputError

# Of this file's format and of the arithmetic of the features.
VERSION = 3
CACHE_VARIABLE = "ASC_CACHE"
# A file changed less than this ago may change again within one tick of the file system's clock.
SETTLED_NS = 10**9


@dataclass(frozen=True)
class Entry:
    """The windows of one recording: ``count`` of them from ``first`` on, and which are active."""

    first: int
    active: tuple[bool, ...]

    @property
    def count(self) -> int:
        """How many windows."""
        return len(self.active)


def cache_folder(argument: str | None) -> Path:
    """The folder of the cache: ``--cache``, ``ASC_CACHE``, or ``~/.cache/tinyscene``.

    Raises `InputError` where none of them is there, as for a container's user without a home.
    """
    try:
        named = argument or os.environ.get(CACHE_VARIABLE)
        return Path(named or Path.home() / ".cache" / "tinyscene")
    except RuntimeError:
        raise InputError(f"no home directory; give --cache or set {CACHE_VARIABLE}") from None


class Store:
    """Windows of one way of extraction; open it with `store`, which locks it."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._folder, self._shape, self._dtype = folder, shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._data, self._index = folder / "data.bin", folder / "index.jsonl"
        self.entries: dict[str, Entry] = {}
        self._end = 0
        self._read()

    def add(self, key: str, windows: np.ndarray, active: np.ndarray) -> None:
        """Append the windows of a recording: (n, *shape), and (n,) bool; n is at least 1."""
        assert windows.shape == (len(active), *self._shape) and windows.dtype == self._dtype
        content = np.ascontiguousarray(windows).tobytes()
        flags = "".join("1" if flag else "0" for flag in active)
        checksum = _checksum(key, self._end, flags, content)
        line = {"key": key, "first": self._end, "active": flags, "crc32": checksum}
        with _usable(self._folder):
            with self._data.open("r+b") as stream:
                stream.seek(self._end * self._row_bytes)
                stream.write(content)
            with self._index.open("a", encoding="ascii") as log:
                log.write(json.dumps(line) + "\n")
        self._keep(key, self._end, flags)

    def windows(self) -> np.ndarray:
        """Every window, (N, *shape), mapped from the file, read-only."""
        rows = _mapped(self._data)[: self._end * self._row_bytes]
        return rows.view(self._dtype).reshape(-1, *self._shape)

    def _keep(self, key: str, first: int, flags: str) -> None:
        self.entries[key] = Entry(first, tuple(flag == "1" for flag in flags))
        self._end = max(self._end, first + len(flags))

    def _read(self) -> None:
        """Entries that are whole; what is damaged is ignored, and so extracted again."""
        self._data.touch()
        data = _mapped(self._data)
        for line in _lines(self._index):
            try:
                values = json.loads(line)
                key, first, flags, crc32 = (values[k] for k in ("key", "first", "active", "crc32"))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if not (type(key) is type(flags) is str and type(first) is int and first >= 0):
                continue
            end = first + len(flags)
            if not flags or set(flags) - {"0", "1"} or end * self._row_bytes > len(data):
                continue
            content = data[first * self._row_bytes : end * self._row_bytes]
            if _checksum(key, first, flags, content) == crc32:
                self._keep(key, first, flags)


@contextmanager
def store(
    root: Path, recipe: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> Iterator[Store]:
    """The store of ``recipe``, everything its windows depend on apart from the recordings.

    No other process writes to it meanwhile; one that wants to waits. Raises `InputError` where
    the system refuses.
    """
    whole = {"version": VERSION, "shape": shape, "dtype": dtype, **recipe}
    text = json.dumps(whole, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        with _usable(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "recipe.json").write_text(text + "\n", encoding="ascii")
            found = Store(folder, shape, dtype)
        yield found


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Say which folder it is that the system refuses."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"feature cache {str(folder)!r} cannot be used: {error.strerror or error}; give "
            f"another --cache, or set {CACHE_VARIABLE}"
        ) from None


class Contents:
    """SHA-256 of files, remembered by path, size and time of change."""

    def __init__(self, root: Path) -> None:
        self._file = root / "contents.jsonl"
        self._known: dict[tuple[str, int, int], str] = {}
        with _usable(root):
            root.mkdir(parents=True, exist_ok=True)
            lines = _lines(self._file)
        for line in lines:
            try:
                path, size, changed_ns, digest = json.loads(line)
                self._known[path, size, changed_ns] = str(digest)
            except (ValueError, TypeError, RecursionError):
                continue  # cut short: read again

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes; OSError where it cannot be read."""
        # The time of any change: unlike that of the last write, no copy sets it back.
        stat = path.stat()
        key = (os.path.abspath(path), stat.st_size, stat.st_ctime_ns)
        if key in self._known:
            return self._known[key]
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time_ns() - stat.st_ctime_ns > SETTLED_NS:
            self._known[key] = found
            with _usable(self._file.parent), self._file.open("a", encoding="ascii") as log:
                log.write(json.dumps([*key, found]) + "\n")
        return found


def _lines(path: Path) -> list[bytes]:
    """Lines of a file that only grows; one that was cut short is ended, so that it stays alone."""
    with path.open("a+b") as stream:
        stream.seek(0)
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.write(b"\n")
    return content.splitlines()


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file, read-only; an empty file cannot be mapped."""
    if path.stat().st_size:
        return np.memmap(path, np.uint8, "r")
    empty = np.empty(0, np.uint8)
    empty.setflags(write=False)
    return empty


def _checksum(key: str, first: int, flags: str, content: Any) -> int:
    """CRC-32 of windows and of what the index says of them: neither passes for another's."""
    return zlib.crc32(content, zlib.crc32(json.dumps([key, first, flags]).encode()))
