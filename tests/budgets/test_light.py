"""The command starts at once, and imports nothing that a firmware team's CI lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_ref.arch import preset
from tests.budgets.commands import ROOT, measured, slowness, write_checkpoint

SHIPPED = {
    "preset": "report-125k",
    "checkpoint": "convert/checkpoints/esc10-report-125k.safetensors",
    "flatbuffer": "build/bundle/model.tflite",
}

# Names of the distributions that it needs.
_ALLOWED = {"numpy", "flatbuffers"}
_PROBE = """
import sys
sys.path.insert(0, {root!r})
before = set(sys.modules)  # the environment's own start-up files may import things
from budgets.__main__ import main
subjects, limits = {subjects!r}, {limits!r}
codes = [main([*subjects, "--limits", limits, "--out", {out!r}, "--format", form, "--quiet"])
         for form in ("table", "markdown", "html", "json")]
codes.append(main([*subjects, "--baseline", {out!r}, "--quiet"]))
outside = {{name.partition(".")[0] for name, module in sys.modules.items()
           if name not in before and "site-packages" in (getattr(module, "__file__", None) or "")}}
print(codes, sorted(outside))
"""


def test_runs_without_torch_or_tensorflow(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", preset("report-125k").to_dict())
    limits = tmp_path / "limits.toml"
    limits.write_text(
        "[model]\nparameters = 128_000\nmultiply_accumulates = 30_000_000\n"
        "[[layers]]\npattern = 'stem.*'\nlive_bytes = 1_000_000\n"
    )
    probe = _PROBE.format(
        root=str(ROOT),
        subjects=["report-125k", str(checkpoint)],
        limits=str(limits),
        out=str(tmp_path / "report"),
    )
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    codes, outside = done.stdout.strip().split("] ")
    assert codes == "[0, 0, 0, 0, 0"
    assert set(json.loads(outside.replace("'", '"'))) <= _ALLOWED


@pytest.mark.parametrize("kind", SHIPPED)
def test_starts_and_reports_in_under_a_second(kind: str) -> None:
    """The best of three, with the slack that a busy machine gives to importing NumPy, too."""
    if not (ROOT / SHIPPED[kind]).is_file() and kind == "flatbuffer":
        pytest.skip("needs the shipped model: ./scripts/demo builds it")
    finished = [measured("-m", "budgets", SHIPPED[kind]) for _ in range(3)]
    assert [done.code for done in finished] == [0, 0, 0], finished[0].stderr
    assert min(done.seconds for done in finished) < 1.0 * slowness()
    assert finished[0].mebibytes < 100


def test_the_measure_sees_time_and_memory() -> None:
    """It would fail: 0.3 s of work, and a list of 20 million pointers."""
    script = "import time\nx = [0] * 20_000_000\nend = time.process_time() + 0.3\n"
    script += "while time.process_time() < end: pass"
    done = measured("-c", script)
    assert done.code == 0 and done.processor_seconds > 0.3 and done.seconds > 0.3
    assert 150 < done.mebibytes < 250
