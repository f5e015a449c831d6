"""The feature cache: what goes in comes out, and what is damaged never does."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.refusals import refused
from train import cache
from train.cache import Contents, Entry, cache_folder, store

SHAPE = (3, 4)
RECIPE = {"hop_samples": None}
ROW_BYTES = 3 * 4 * 2
KEYS = ("a", "b", "c", "d")


def windows(key: str) -> np.ndarray:
    """One window for "a", two for "b", ...; the same every time."""
    count = KEYS.index(key) + 1
    return np.random.default_rng(ord(key)).standard_normal((count, *SHAPE)).astype(np.float16)


def flags(key: str) -> np.ndarray:
    return np.arange(len(windows(key))) % 2 == 0


def read(root: Path) -> dict[str, np.ndarray]:
    """What the store gives, by key."""
    with store(root, RECIPE, SHAPE, "float16") as found:
        data, entries = found.windows(), dict(found.entries)
    assert all(entry.active == tuple(flags(key)) for key, entry in entries.items())
    return {key: data[entry.first : entry.first + entry.count] for key, entry in entries.items()}


def fill(root: Path, *keys: str) -> list[str]:
    """Add what is missing, in this order; gives what that was."""
    missing = []
    with store(root, RECIPE, SHAPE, "float16") as found:
        for key in keys:
            if key not in found.entries:
                missing.append(key)
                found.add(key, windows(key), flags(key))
    return missing


def holds(root: Path, *keys: str) -> bool:
    """Whether the store has these and no others, each with its own windows."""
    found = read(root)
    return sorted(found) == sorted(keys) and all(
        np.array_equal(found[key], windows(key)) for key in keys
    )


def file(root: Path, name: str) -> Path:
    (path,) = root.glob(f"*/{name}")
    return path


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    assert fill(tmp_path, "b", "a") == ["b", "a"] and holds(tmp_path, "a", "b")
    assert fill(tmp_path, "a", "d", "b") == ["d"] and holds(tmp_path, "a", "b", "d")
    assert file(tmp_path, "data.bin").stat().st_size == (2 + 1 + 4) * ROW_BYTES


def test_the_check_fails_on_one_nudged_value(tmp_path: Path) -> None:
    """Windows of another number under a sound checksum: `holds` sees it."""
    with store(tmp_path, RECIPE, SHAPE, "float16") as found:
        nudged = windows("b")
        nudged[1, 2, 3] = np.nextafter(nudged[1, 2, 3], np.float16(9))
        found.add("b", nudged, flags("b"))
    assert not holds(tmp_path, "b")


def test_windows_are_mapped_and_read_only(tmp_path: Path) -> None:
    with store(tmp_path, RECIPE, SHAPE, "float16") as found:
        empty = found.windows()
        assert empty.shape == (0, *SHAPE) and empty.dtype == np.float16
        found.add("c", windows("c"), flags("c"))
        full = found.windows()
        assert found.entries == {"c": Entry(0, (True, False, True))}
    assert isinstance(full, np.memmap) and full.shape == (3, *SHAPE) and full.dtype == np.float16
    for data in (empty, full):
        assert not data.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            data[:] = 0
    fill(tmp_path, "a")
    np.testing.assert_array_equal(full, windows("c"), "windows given earlier stay")


@pytest.mark.parametrize(
    "change",
    [{"recipe": {"hop_samples": 1}}, {"shape": (4, 3)}, {"dtype": "float32"}],
    ids=lambda change: next(iter(change)),
)
def test_another_way_of_extraction_is_another_store(
    tmp_path: Path, change: Mapping[str, Any]
) -> None:
    fill(tmp_path, "a")
    whole = {"recipe": RECIPE, "shape": SHAPE, "dtype": "float16", **change}
    with store(tmp_path, **whole) as found:
        assert not found.entries
    assert holds(tmp_path, "a")
    recipes = [json.loads(path.read_text()) for path in tmp_path.glob("*/recipe.json")]
    assert len(recipes) == 2 and all(recipe["version"] == cache.VERSION for recipe in recipes)


def test_another_version_is_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a")
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert holds(tmp_path)


# Damage


@pytest.mark.parametrize("place", [0, ROW_BYTES - 1, ROW_BYTES, 3 * ROW_BYTES + 1, -1])
def test_a_flipped_byte_of_data_is_noticed_and_rebuilt(tmp_path: Path, place: int) -> None:
    fill(tmp_path, "a", "b", "c")
    path = file(tmp_path, "data.bin")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (hit,) = {"a", "b", "c"} - read(tmp_path).keys()
    assert holds(tmp_path, *({"a", "b", "c"} - {hit})), "the others stay"
    assert fill(tmp_path, "a", "b", "c", "d") == [hit, "d"]
    assert holds(tmp_path, "a", "b", "c", "d")


@pytest.mark.parametrize("size", range(0, 6 * ROW_BYTES, 5))
def test_truncated_data_is_noticed_and_rebuilt(tmp_path: Path, size: int) -> None:
    fill(tmp_path, "a", "b", "c")
    os.truncate(file(tmp_path, "data.bin"), size)
    whole = [key for key, rows in (("a", 1), ("b", 3), ("c", 6)) if rows * ROW_BYTES <= size]
    assert holds(tmp_path, *whole)
    fill(tmp_path, "c", "b", "a")
    assert holds(tmp_path, "a", "b", "c")


def test_lost_files_are_rebuilt(tmp_path: Path) -> None:
    for name in ("data.bin", "index.jsonl", "recipe.json", "lock"):
        fill(tmp_path, "a", "b")
        file(tmp_path, name).unlink()
        fill(tmp_path, "b", "a")
        assert holds(tmp_path, "a", "b")


def test_every_flipped_bit_of_the_index_is_noticed(tmp_path: Path) -> None:
    """No flip gives a recording other windows, or other marks of activity."""
    fill(tmp_path, "a", "b")
    path = file(tmp_path, "index.jsonl")
    sound = path.read_bytes()
    for place in range(len(sound)):
        for bit in range(8):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            found = read(tmp_path)  # which checks the marks
            assert found.keys() <= {"a", "b"} and len(found) >= (damaged.count(b"\n") > 1)
            assert all(np.array_equal(found[key], windows(key)) for key in found)
    fill(tmp_path, "a", "b")
    assert holds(tmp_path, "a", "b")


def test_a_line_cut_short_is_forgotten(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    path = file(tmp_path, "index.jsonl")
    sound = path.read_bytes()
    first = sound.index(b"\n") + 1
    for size in range(first, len(sound) - 1):
        path.write_bytes(sound[:size])
        assert holds(tmp_path, "a")
    fill(tmp_path, "c", "b")
    assert holds(tmp_path, "a", "b", "c")


def test_lines_given_twice_or_in_another_order_change_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "c")
    path = file(tmp_path, "index.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[::-1], *lines, b"\n\n", lines[0]]))
    assert holds(tmp_path, "a", "b", "c")
    assert fill(tmp_path, "d") == ["d"] and holds(tmp_path, "a", "b", "c", "d")


HOSTILE: tuple[dict[str, Any], ...] = (
    {"first": -1},
    {"first": 2**31},
    {"first": 2**63},
    {"first": 10**300},
    {"first": 0.0},
    {"first": "0"},
    {"first": None},
    {"first": True},
    {"first": [0]},
    {"active": ""},
    {"active": "0" * 10_000},
    {"active": "2"},
    {"active": "٠"},
    {"active": ["1"]},
    {"active": {"1": 1}},
    {"active": 1},
    {"crc32": "x"},
    {"crc32": None},
    {"crc32": float("inf")},
    {"crc32": float("nan")},
    {"crc32": -1},
    {"key": None},
    {"key": ["a"]},
    {"key": "b"},
)


@pytest.mark.parametrize("change", HOSTILE, ids=repr)
def test_hostile_values_are_ignored(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path, "a")
    path = file(tmp_path, "index.jsonl")
    line = json.loads(path.read_bytes())
    path.write_text(json.dumps({**line, **change}) + "\n", encoding="utf-8")
    assert holds(tmp_path)
    path.write_text(json.dumps({k: v for k, v in line.items() if k not in change}) + "\n")
    assert holds(tmp_path)
    assert fill(tmp_path, "b", "a") == ["b", "a"] and holds(tmp_path, "a", "b")


@pytest.mark.parametrize("first", [-1, -3, 1, 2, 2**31, 10**30])
def test_rows_that_are_not_there_are_ignored_whatever_their_checksum(
    tmp_path: Path, first: int
) -> None:
    fill(tmp_path, "b")
    path = file(tmp_path, "index.jsonl")
    line = json.loads(path.read_bytes())
    data = np.frombuffer(file(tmp_path, "data.bin").read_bytes(), np.uint8)
    content = data[first * ROW_BYTES : (first + 2) * ROW_BYTES]
    line |= {"first": first, "crc32": cache._checksum("b", first, line["active"], content)}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert holds(tmp_path)


@pytest.mark.parametrize(
    "line",
    [b"[]", b"null", b"1", b'"a"', b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"\0" * 50],
    ids=lambda line: repr(line)[:12],
)
def test_lines_that_are_none_are_ignored(tmp_path: Path, line: bytes) -> None:
    fill(tmp_path, "a")
    path = file(tmp_path, "index.jsonl")
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    assert holds(tmp_path, "a")
    fill(tmp_path, "b")
    assert holds(tmp_path, "a", "b")


# The system


def test_the_folder_is_the_argument_the_variable_or_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASC_CACHE", "/b")
    assert cache_folder("/a") == Path("/a") and cache_folder(None) == Path("/b")
    monkeypatch.delenv("ASC_CACHE")
    assert cache_folder(None) == Path.home() / ".cache" / "tinyscene"


def test_a_user_without_a_home_is_told_what_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a container's that has a number alone."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("ASC_CACHE")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    refused(lambda: cache_folder(None), "no home directory; give --cache or set ASC_CACHE")
    assert cache_folder("/a") == Path("/a")


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/nowhere", "link"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    folder = tmp_path / root
    advice = "give another --cache, or set ASC_CACHE"
    refused(lambda: fill(folder, "a"), "feature cache", str(folder), "cannot be used: ", advice)
    refused(lambda: Contents(folder), "feature cache", str(folder), "cannot be used: ", advice)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    file(tmp_path, "data.bin").unlink()
    (next(tmp_path.glob("*/")) / "data.bin").symlink_to("/dev/full")
    refused(lambda: fill(tmp_path, "b"), "cannot be used: No space left on device")


def test_only_one_process_has_a_store_open(tmp_path: Path) -> None:
    """The other waits until it is closed."""
    code = (
        "import pathlib, sys; from tests.train.test_cache import fill;"
        "print(fill(pathlib.Path(sys.argv[1]), 'a', 'b'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with store(tmp_path, RECIPE, SHAPE, "float16") as found:
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
        found.add("a", windows("a"), flags("a"))
    assert other.communicate(timeout=60)[0] == "['b']\n"
    assert holds(tmp_path, "a", "b")
