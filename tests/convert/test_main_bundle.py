"""``python -m convert``: the bundle of each target, from the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.__main__ import TARGETS, main, parser
from convert.pipeline import Conversion
from firmware_ref.errors import HOLDS, INTERRUPTED
from firmware_ref.signals import as_wav
from tests.convert.bundles import conversion
from tests.convert.members import Converted

Write = Callable[..., int]


@pytest.fixture
def write(small: Converted, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Run the command without the export, which other tests cover."""

    def convert(checkpoint: str, say: Callable[[str], None], _: str | None) -> Conversion:
        say("converted")
        return conversion(Path(checkpoint))

    monkeypatch.setattr("convert.pipeline.convert", convert)

    def run(target: str, out: Path, *more: str) -> int:
        arguments = ["--target", target, "--checkpoint", str(small.checkpoint)]
        return main([*arguments, "--out", str(out), *more])

    return run


@pytest.mark.parametrize("target", TARGETS)
def test_files_totals_and_the_next_command(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    out = tmp_path / "a folder"
    assert write(target, out, "--quiet") == HOLDS
    captured = capsys.readouterr()
    *lines, ram, flash, following = captured.out.splitlines()
    for line in lines:
        size, _, name = line.strip().partition(" bytes  ")
        assert Path(name).stat().st_size == int(size.replace(",", ""))
    assert len(lines) == sum(path.is_file() for path in out.rglob("*"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["target"] == target
    assert ram.startswith(f"RAM   {sum(manifest['ram_bytes'].values()):,} bytes: ")
    assert flash.startswith(f"flash {sum(manifest['flash_bytes'].values()):,} bytes: ")
    words = shlex.split(following.partition("    ")[0])
    assert words == ["next:", "./scripts/emulate", "--model", str(out / "model.tflite")]


def test_json_is_the_manifest(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write("c99", tmp_path / "out", "--json") == HOLDS
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("ok") is True
    assert printed == json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_another_target_into_the_same_folder_leaves_nothing_of_the_first(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("another's")

    def files() -> set[str]:
        found = (tmp_path / "out").rglob("*")
        return {str(path.relative_to(tmp_path / "out")) for path in found if path.is_file()}

    assert write("c99", tmp_path / "out", "--quiet") == HOLDS
    first = files()
    assert write("tflite-micro", tmp_path / "out", "--quiet") == HOLDS
    assert {"main.c", "src/tinyscene_model.c"} <= first
    assert not {"main.c", "src/tinyscene_model.c"} & files()
    assert {"kept.txt", "main.cc", "src/model_data.cc"} <= files()
    assert write("c99", tmp_path / "out", "--quiet") == HOLDS
    assert files() == first


def test_recordings_for_the_self_test(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    clips = []
    for number in range(2):
        clips.append(tmp_path / f'cl"ip {number}.wav')
        clips[-1].write_bytes(as_wav(0.1 * rng.standard_normal(3 * 44_100), 44_100))
    arguments = [word for clip in clips for word in ("--golden", str(clip))]
    assert write("c99", tmp_path / "out", *arguments) == HOLDS
    assert "golden windows: 5 of the 6 seconds given" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    names = [golden["name"] for golden in manifest["goldens"]]
    assert names[:3] == ['cl"ip 0.wav, second 0', 'cl"ip 1.wav, second 0', 'cl"ip 0.wav, second 1']
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("golden", "words"), [("absent.wav", "absent.wav"), (__file__, "test_main_bundle.py")]
)
def test_a_recording_that_cannot_be_read_is_refused_first(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], golden: str, words: str
) -> None:
    assert write("c99", tmp_path / "out", "--golden", golden) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place",
    ["convert.bundle.windows.prove", "convert.bundle.contents.bundle", "os.rename"],
)
def test_an_interruption_leaves_no_bundle(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    assert write("c99", tmp_path / "deep" / "out", "--quiet") == INTERRUPTED
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not (tmp_path / "deep" / "out").exists()


def test_the_help_names_every_target() -> None:
    text = parser().format_help()
    assert all(target in text for target in TARGETS) and "--golden SOUND" in text
