"""``./scripts/demo``: what it refuses before it begins."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "scripts" / "demo"


@pytest.mark.parametrize("folder", ["absent", "without", "file"])
def test_a_folder_without_the_recording_is_refused_first(tmp_path: Path, folder: str) -> None:
    (tmp_path / "without" / "esc10").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    environment = {**os.environ, "ASC_DATA": str(tmp_path / folder)}
    done = subprocess.run([DEMO], env=environment, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: ASC_DATA={tmp_path / folder} holds no 'esc10/")
    assert "give the folder that holds esc10/" in line


def test_arguments_are_refused() -> None:
    done = subprocess.run([DEMO, "--fast"], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./scripts/demo")
