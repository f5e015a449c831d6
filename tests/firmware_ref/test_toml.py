"""TOML from outside: what is read, and the bounds that keep the parser quick."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from firmware_ref.errors import InputError
from firmware_ref.toml import LARGEST_BYTES, LONGEST_LINE_BYTES, read_toml


def written(folder: Path, text: bytes) -> Path:
    path = folder / "a.toml"
    path.write_bytes(text)
    return path


def test_tables_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, b"[a]\nb = 1\r\n[a.c]\nd = 'e'\n")
    assert read_toml(path, "config") == {"a": {"b": 1, "c": {"d": "e"}}}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows editors begin a file
    assert read_toml(path, "config") == {"a": {"b": 1, "c": {"d": "e"}}}


def test_a_line_on_the_limit_and_one_byte_longer(tmp_path: Path) -> None:
    line = b"# " + b"x" * (LONGEST_LINE_BYTES - 2)
    assert read_toml(written(tmp_path, line + b"\na = 1\n"), "config") == {"a": 1}
    with pytest.raises(InputError, match=r"config .*a\.toml' has a line of 1,001 bytes"):
        read_toml(written(tmp_path, line + b"x\na = 1\n"), "config")


def test_a_file_on_the_limit_and_one_byte_longer(tmp_path: Path) -> None:
    text = b"a = 1\n".ljust(LARGEST_BYTES, b"\n")
    assert read_toml(written(tmp_path, text), "config") == {"a": 1}
    with pytest.raises(InputError, match="65,537 bytes; at most 65,536 are accepted"):
        read_toml(written(tmp_path, text + b"\n"), "config")


@pytest.mark.parametrize("text", [b"\xff", b"a = ", b"a = 1\na = 2"])
def test_what_is_no_toml_is_a_value_error(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ValueError):
        read_toml(written(tmp_path, text), "config")


def test_dotted_keys_up_to_the_bounds_take_moments(tmp_path: Path) -> None:
    lines = b"".join(b"[b%d" % n + b".a" * 480 + b"]\n" for n in range(60))
    started = time.process_time()
    read_toml(written(tmp_path, lines), "config")
    assert time.process_time() - started < 2
