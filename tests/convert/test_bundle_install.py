"""A bundle is written whole or not at all, and nothing of others' is touched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from convert.bundle.install import install
from firmware_ref.errors import InputError

MANIFEST = "manifest.json"
Files = Mapping[str, bytes]


def listing(**contents: bytes) -> dict[str, bytes]:
    """Files with a manifest that lists them; `__` in a name separates folders."""
    files = {name.replace("__", "/"): content for name, content in contents.items()}
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    return {**files, MANIFEST: json.dumps({"files": entries}).encode()}


OLD = listing(model=b"old", src__network=b"old network", only__of__old=b"old alone")
NEW = listing(model=b"new", src__network=b"new network", fresh__of__new=b"new alone")


def found(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def write(files: Files, folder: Path) -> list[Path]:
    return install(files, folder, MANIFEST)


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


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "src/../../outside", "a\0b", "", "."])
def test_a_hostile_manifest_reaches_nothing_outside(tmp_path: Path, name: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.write_bytes(b"precious")
    write(OLD, out)
    entry = {"sha256": hashlib.sha256(b"precious").hexdigest()}
    path = name.format(absolute=outside)
    kept = {n: e for n, e in json.loads(OLD[MANIFEST])["files"].items() if n != "only/of/old"}
    (out / MANIFEST).write_text(json.dumps({"files": {**kept, path: entry}}))
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


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "[" * 100_000],
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
