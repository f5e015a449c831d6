"""Errors people see, files read and written whole."""

from __future__ import annotations

import os
import re
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from firmware_ref import errors
from firmware_ref.errors import (
    BAD_INPUT,
    CHECK_FAILED,
    HOLDS,
    INTERRUPTED,
    LONGEST_LINE,
    CheckFailedError,
    InputError,
    check_folder,
    guarded,
    read_bytes,
    without_commands,
    write_whole,
)


def command(error: BaseException | None = None, code: int = HOLDS) -> errors.Main:
    @guarded
    def main(argv: Sequence[str] | None = None) -> int:
        if error is not None:
            raise error
        return code

    return main


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_a_command_passes_through(code: int) -> None:
    assert command(code=code)([]) == code


def test_an_input_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(InputError("name='a'\n  is not\t allowed;\r\n mend it"))([]) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: name='a' is not allowed; mend it\n"


def test_any_other_error_is_a_bug_and_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        command(KeyError("bug"))([])


def test_an_interruption_is_one_line_and_its_own_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(KeyboardInterrupt())([]) == INTERRUPTED == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; nothing half-written was left behind"
    ]


def test_an_interruption_may_say_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command(KeyboardInterrupt("stopped after epoch 3;\n --resume goes on"))([]) == INTERRUPTED
    )
    assert capsys.readouterr().err == "stopped after epoch 3; --resume goes on\n"


def test_a_missing_package_is_answered_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By pyproject.toml: the smallest extra that lists it, `convert` for all the rest."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    listed = {
        re.split(r"[>=<\[]", requirement)[0]: name
        for name in ("convert", "train", "audio")
        for requirement in extras[name]
    }
    del listed["tinyscene"], listed["numpy"]  # the latter always there
    assert listed["torch"] == "train" and listed["soxr"] == "audio"
    for package, extra in {**listed, "torch.nn": "train", "unheard_of": "convert"}.items():
        assert command(ModuleNotFoundError("no", name=package))([]) == BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert repr(package) in line and line.endswith(f"pip install 'tinyscene[{extra}]'")


def test_a_reader_that_went_away_gets_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert command(BrokenPipeError())([]) == CHECK_FAILED
    sys.stdout.close()  # the null device, which a command leaves open until it exits


def test_the_arguments_reach_the_command() -> None:
    seen: list[Sequence[str] | None] = []

    @guarded
    def main(argv: Sequence[str] | None = None) -> int:
        seen.append(argv)
        return HOLDS

    main(["a"])
    main()
    assert seen == [["a"], None]


# Reading


def test_a_file_on_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5, "thing") == b"12345"
    with pytest.raises(InputError, match=r"thing .*a' has 5 bytes; at most 4 are accepted"):
        read_bytes(path, 4, "thing")


def test_the_first_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5, "thing", 2) == b"12"
    assert read_bytes(path, 5, "thing", 9) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes"):
        read_bytes(path, 4, "thing", 2)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "is not a file"),
        (loop, "symbolic links"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a" / "b", "No such file"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            read_bytes(path, 100, "thing")
        assert "thing" in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("use", ["read", "check", "write"])
def test_a_null_byte_in_a_path_is_an_input_error(tmp_path: Path, use: str) -> None:
    """The system takes none; a TOML string can hold one."""
    path = tmp_path / "a\0b"
    with pytest.raises(InputError, match="null byte") as caught:
        if use == "read":
            read_bytes(path, 100, "thing")
        elif use == "check":
            check_folder(path, "--out")
        else:
            write_whole(path, b"")
    assert "\0" not in str(caught.value) and "a\\x00b" in str(caught.value)


# Writing


@pytest.mark.parametrize("name", ["", "new", "new/folder", "link", "broken"])
def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "target")
    before = sorted(tmp_path.iterdir())
    check_folder(tmp_path / name, "--out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_folder_is_not_the_current_one() -> None:
    with pytest.raises(InputError, match=r"--out is empty; give a folder, '\.' for the current"):
        check_folder("", "--out")
    check_folder(".", "--out")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    for path in (
        tmp_path / "file",
        tmp_path / "file" / "a" / "b",
        tmp_path / "loop",
        tmp_path / "loop" / "a",
        tmp_path / ("x" * 300) / "a",
        Path("/proc/tinyscene/a"),  # which permissions alone would let root make
    ):
        with pytest.raises(InputError, match=r"cannot be written in: .*; give another") as caught:
            check_folder(path, "--out")
        assert str(caught.value).startswith(f"--out {str(path)!r}")
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_is_written_with_its_folders_and_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    write_whole(path, b"old and longer")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_written_file_has_the_rights_a_plain_one_would_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        tmp_path / "file" / "a": "cannot be written",
        tmp_path / ("x" * 300): "cannot be written",
        tmp_path / "loop" / "a": "cannot be written",
        tmp_path: "is no regular file",
        tmp_path / "pipe": "is no regular file",
    }
    for path, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            write_whole(path, b"")
        assert repr(str(path)) in str(caught.value)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckFailedError("over"), CHECK_FAILED, "error: over"),
        (ModuleNotFoundError("no", name="torch"), BAD_INPUT, "pip install 'tinyscene[train]'"),
        (MemoryError(), BAD_INPUT, "more memory than there is"),
        (type("OutOfMemoryError", (RuntimeError,), {})(), BAD_INPUT, "more memory than there is"),
        (RuntimeError("DefaultCPUAllocator: can't"), BAD_INPUT, "more memory than there is"),
        (OSError(28, "No space left on device"), BAD_INPUT, "No space left on device"),
        (InputError("a\x1b[31mb"), BAD_INPUT, "error: a\\x1b[31mb"),
        (InputError("a\n::error::b ##[error]c"), BAD_INPUT, "a ::error::b \\x23#[error]c"),
    ],
)
def test_each_failure_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    assert command(error)([]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_line_too_long_has_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(InputError("a" * LONGEST_LINE))([]) == BAD_INPUT
    assert capsys.readouterr().err == f"error: {'a' * LONGEST_LINE}\n"
    assert command(InputError("tensor " + "a" * 2_000_000 + "; convert it again"))([]) == BAD_INPUT
    line = capsys.readouterr().err
    assert len(line) < LONGEST_LINE + 20 and line.startswith("error: tensor aaa")
    assert "a ... a" in line and line.endswith("a; convert it again\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a::b: #[c]", "a::b: #[c]"),
        ("::a::", "\\x3a:a::"),
        (" ::a", " \\x3a:a"),
        (":::a", "\\x3a::a"),
        ("##[a]##[b]", "\\x23#[a]\\x23#[b]"),
    ],
)
def test_commands_to_a_runner_are_escaped(text: str, expected: str) -> None:
    assert without_commands(text) == expected
