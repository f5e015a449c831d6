"""``./scripts/emulate``: what it installs and converts before, with stand-ins for all tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "emulate"
SAY = '#!/bin/sh\necho "{name} $*" >> "{log}"\n'


def said(folder: Path, tools: bool, *arguments: str) -> list[str]:
    """What the script calls as root in a tree without a bundle, a line a call; it must succeed."""
    log, path = folder / "log", folder / "bin"
    stand_ins = [folder / "scripts" / "setup", folder / ".venv" / "bin" / "python"]
    stand_ins += [path / "apt-get"]
    if tools:
        stand_ins += [path / "arm-none-eabi-gcc", path / "qemu-system-arm"]
    for file in stand_ins:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SAY.format(name=file.name, log=log))
        file.chmod(0o755)
    (path / "id").write_text("#!/bin/sh\necho 0\n")
    (path / "id").chmod(0o755)
    shutil.copy(SCRIPT, folder / "scripts")
    dirname, bash = shutil.which("dirname"), shutil.which("bash")
    assert dirname and bash
    (path / "dirname").symlink_to(dirname)
    subprocess.run(
        [bash, folder / "scripts" / "emulate", *arguments],
        env={**os.environ, "PATH": str(path)},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return log.read_text().replace(f"{folder}/", "").splitlines()


SHIPPED = "--model build/bundle/model.tflite"
CONVERTS = "python -m convert --target tflite-micro --out build/bundle"


@pytest.mark.parametrize(
    ("arguments", "converts"),
    [
        (["clip.wav"], True),
        (["--model", "mine.tflite", "clip.wav"], False),
        (["--model=mine.tflite"], False),
    ],
)
def test_the_shipped_model_is_converted_where_none_is_given(
    tmp_path: Path, arguments: list[str], converts: bool
) -> None:
    emulates = f"python -m convert.emulate {SHIPPED} {' '.join(arguments)}"
    expected = ["setup ", *([CONVERTS] if converts else []), emulates]
    assert said(tmp_path, True, *arguments) == expected


@pytest.mark.parametrize("help_", ["-h", "--help"])
def test_help_installs_and_converts_nothing(tmp_path: Path, help_: str) -> None:
    helps = f"python -m convert.emulate {SHIPPED} {help_}"
    assert said(tmp_path, False, help_) == ["setup ", helps]


def test_missing_tools_are_installed_first(tmp_path: Path) -> None:
    first, second, *_ = said(tmp_path, False, "clip.wav")
    assert first == "apt-get update -qq" and second.startswith("apt-get install -y -qq")
