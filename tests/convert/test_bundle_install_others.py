"""Others' files in a bundle's folder, and what lies behind a link there, are left as they are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from firmware_ref.errors import InputError
from tests.convert.installs import MANIFEST, NEW, OLD, OURS, found, write


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "src/../../outside", "a\0b", "", "."])
def test_a_hostile_manifest_reaches_nothing_outside(tmp_path: Path, name: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.write_bytes(b"precious")
    write(OLD, out)
    entry = {"sha256": hashlib.sha256(b"precious").hexdigest()}
    path = name.format(absolute=outside)
    kept = {n: e for n, e in json.loads(OLD[MANIFEST])["files"].items() if n != "only/of/old"}
    (out / MANIFEST).write_text(json.dumps({**OURS, "files": {**kept, path: entry}}))
    write(NEW, out)
    assert outside.read_bytes() == b"precious"
    assert found(out) == {**NEW, "only/of/old": b"old alone"}


def test_a_link_that_a_manifest_lists_is_left(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.write_bytes(b"old alone")
    write(OLD, out)
    (out / "only/of/old").unlink()
    (out / "only/of/old").symlink_to(outside)
    write(NEW, out)
    assert (out / "only/of/old").is_symlink() and outside.read_bytes() == b"old alone"


def test_a_folder_that_is_a_link_is_neither_emptied_nor_removed(tmp_path: Path) -> None:
    """Whether a hostile manifest lists what lies behind it, or the user moved a folder there."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    write(OLD, out)
    (out / "only").rename(outside)
    (out / "only").symlink_to(outside)
    write(NEW, out)
    assert found(outside) == {"of/old": b"old alone"} and (out / "only").is_symlink()
    assert NEW.items() <= found(out).items()


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_nothing_is_written_through_a_link(tmp_path: Path, there: bool, earlier: bool) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    if earlier:
        write(OLD, out)
        (out / "src").rename(outside)
    if there:
        outside.mkdir(exist_ok=True)
    elif earlier:
        outside.rename(tmp_path / "not mounted")
    out.mkdir(exist_ok=True)
    (out / "src").symlink_to(outside)
    before = found(tmp_path)
    with pytest.raises(InputError, match="src' leads elsewhere by a link"):
        write(NEW, out)
    assert found(tmp_path) == before and (out / "src").is_symlink()


@pytest.mark.parametrize("content", [None, b"new", b"other"])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_link_in_a_files_place_is_refused(
    tmp_path: Path, content: bytes | None, earlier: bool
) -> None:
    """Dangling, of the very content, of another."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    if earlier:
        write(OLD, out)
        (out / "model").unlink()
    if content is not None:
        outside.write_bytes(content)
    out.mkdir(exist_ok=True)
    (out / "model").symlink_to(outside)
    before = found(tmp_path)
    with pytest.raises(InputError, match="model' is no regular file"):
        write(NEW, out)
    assert found(tmp_path) == before and (out / "model").is_symlink()


def test_a_manifest_that_is_no_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe would be waited for."""

    def waits(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(Path, "read_text", waits)
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(InputError, match=r"manifest\.json' is no regular file"):
        write(NEW, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "[" * 100_000, '{"files": {}}'),
        *(json.dumps({**OURS, "files": files}) for files in ([], {"a": 1}, {"a": {}})),
        *(json.dumps({**OURS, "files": {}, "target": target}) for target in ("web", None, [])),
        json.dumps({**OURS, "files": {}, "schema_version": "1.0"}),
        json.dumps({"target": "c99", "files": {}}),
    ],
)
def test_a_manifest_that_is_none_is_of_others(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    (tmp_path / "a").write_bytes(b"kept")
    with pytest.raises(InputError, match=r"manifest\.json' is none of an earlier bundle's"):
        write(NEW, tmp_path)
    assert found(tmp_path) == {MANIFEST: text.encode(), "a": b"kept"}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", ["model", "src/network"])
def test_files_of_others_and_edited_ones_are_never_overwritten(
    tmp_path: Path, name: str, earlier: bool
) -> None:
    if earlier:
        write(OLD, tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"of others")
    before = found(tmp_path)
    with pytest.raises(InputError, match=f"{name}' is none of an earlier bundle's files, or was"):
        write(NEW, tmp_path)
    assert found(tmp_path) == before
    (tmp_path / name).write_bytes(NEW[name])
    write(NEW, tmp_path)
    assert NEW.items() <= found(tmp_path).items()
