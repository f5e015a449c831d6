"""``python -m train spectrum-correction``: the coefficients that a run would use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS
from tests.train.runs import EVERYTHING, SETTINGS, arguments, one_line
from tests.train.stages import bench
from train.__main__ import main

FILES = ("spectrum-correction.npz", "spectrum-correction.png")


def command(data: Path, out: Path, *more: str, settings: tuple[str, ...] = EVERYTHING) -> list[str]:
    return ["spectrum-correction", *arguments(data, out, *more, settings=settings)]


def test_the_files_are_those_of_a_run(
    tiny_devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured on the recordings that it learns from, none of them held out."""
    out = tmp_path / "out"
    assert main(command(tiny_devices, out, "--quiet")) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"coefficients  {out / FILES[0]}",
        f"plot          {out / FILES[1]}",
    ]
    assert {path.name for path in out.iterdir()} == set(FILES)
    bench(tiny_devices, tmp_path / "run", EVERYTHING)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    settings = (*EVERYTHING, "data.validation_fraction=0")
    assert main(command(tiny_devices, tmp_path / "all", "--quiet", settings=settings)) == HOLDS
    assert (tmp_path / "all" / FILES[0]).read_bytes() != (out / FILES[0]).read_bytes()


def test_machines_are_told_where_they_are(
    tiny_devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_devices, tmp_path, "--json")) == HOLDS
    values = json.loads(capsys.readouterr().out)
    assert values == {
        "ok": True,
        "coefficients": str(tmp_path / FILES[0]),
        "plot": str(tmp_path / FILES[1]),
    }


def test_one_device_has_nothing_to_correct(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(tiny_esc10, out, "--quiet", settings=SETTINGS)) == BAD_INPUT
    assert "needs recordings of one moment by two devices at least" in one_line(capsys)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(command(tmp_path / "absent", tmp_path / "file" / "out", "--quiet")) == BAD_INPUT
    assert "out' cannot be written in: " in one_line(capsys)
