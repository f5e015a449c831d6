"""Every command of the README runs: here in seconds, or whole in continuous integration."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import SETTINGS
from tests.train.trees import noise, table, wav

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Run whole by continuous integration, and once a line of `.ci/run`.
IN_CI = ("./scripts/demo", "./scripts/test", "./scripts/emulate")
# Minutes of measurements: here their arguments alone are read.
MEASUREMENTS = ("./scripts/bench", "./scripts/bench_train", "./scripts/bench_reference")
STARTS = ("python -m ", "./scripts/", "torchrun ", "pip ", "head ")
# Other people's machines: installing, and several processes (tests/train/test_distributed.py).
NOT_HERE = ("pip ", "torchrun ")
# What keeps a training short, after what the command says itself.
SHORT = {
    "esc10": SETTINGS,
    "esc10-devices": (*SETTINGS, "float.epochs=1", "distillation.teachers=[]"),
    "recordings": (*SETTINGS, "model.classes=4"),
}


def commands() -> list[str]:
    """Of indented lines and of words between back-ticks, without what stands beside them."""
    lines = re.findall(r"^    (\S.*)$", README, re.M)
    lines = [re.split(r"\s{2,}", line.partition("    #")[0].strip())[0] for line in lines]
    words = [" ".join(word.split()) for word in re.findall(r"`([^`]+)`", README)]
    return list(dict.fromkeys(c for c in (*lines, *words) if c.startswith(STARTS)))


def test_the_tree_of_files_names_every_module() -> None:
    """Of a package, and the modules or the folder of what lies within."""
    tree = README.partition("## Files")[2].partition("\n## ")[0]
    for package in ("firmware_ref", "budgets", "train", "convert"):
        part = re.split(r"\n    (?=\S)", tree.partition(f"    {package}/")[2])[0]
        for path in (ROOT / package).iterdir():
            if path.suffix in (".py", ".toml", ".md") and not path.name.startswith("__"):
                assert re.search(rf"\b{re.escape(path.name)}\b", part), path
            elif path.is_dir() and path.name != "__pycache__":
                assert f" {path.name}/" in part, path


def scripts() -> list[str]:
    return [c for c in commands() if c.startswith("./scripts/")]


def test_scripts_exist_and_run_in_continuous_integration_or_below() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in scripts():
        script = command.split()[0]
        assert os.access(ROOT / script, os.X_OK), script
        assert script in MEASUREMENTS or (script in IN_CI and script in ci), script


@pytest.mark.parametrize("script", MEASUREMENTS)
def test_measurements_take_their_arguments(script: str) -> None:
    assert any(c.split()[0] == script for c in scripts())
    done = subprocess.run([script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout


def recordings(folder: Path) -> None:
    """ESC-10 with devices in ``DIR``, other scenes in ``recordings``; a clip, and limits."""
    labels = ("Dog", "Rain", "Sea")
    rows = ["filename,label,label_id,fold"]
    for number in range(12):
        name = f"{number % 3}/{number}.wav"
        wav(folder / "DIR" / "esc10" / name, noise(number, 1.3))
        rows.append(f"{name},{labels[number % 3]},{number % 3},{1 + number // 6}")
    table(folder / "DIR" / "esc10" / "meta.csv", rows)
    wav(folder / "DIR" / "B.wav", noise(0)[:100])
    heard = ["device,impulse_response,split", "A,,seen", "B,B.wav,seen", "S,B.wav,unseen"]
    table(folder / "DIR" / "devices.csv", heard)
    rows = ["filename,scene_label"]
    for number in range(40):
        scene = ("kitchen", "street", "office", "park")[number % 4]
        wav(folder / "recordings" / scene / f"{1 + number // 4}.wav", noise(number))
        rows.append(f"{scene}/{1 + number // 4}.wav,{scene}")
    table(folder / "recordings" / "mine.csv", rows)
    wav(folder / "clip.wav", noise(1))
    (folder / "limits.toml").write_text(
        "[model]\nparameters = 128000\nmultiply_accumulates = 9_000_000\n"
    )


def runnable(command: str) -> list[str]:
    """The words of a command, its training shortened."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "train"] and "--config" in words:
        data = words[words.index("--data") + 1]
        short = SHORT["recordings" if data == "recordings" else words[words.index("--config") + 1]]
        words += ["--set", *short]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    """In the order of the README, in one folder, each with what those before it have written."""
    recordings(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"ASC_DATA": str(tmp_path / "DIR"), "ASC_CACHE": str(tmp_path / "cache")}
    ran = 0
    for command in commands():
        if command.startswith(("./scripts/", *NOT_HERE)) or incomplete(command):
            continue
        done = subprocess.run(
            runnable(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        ran += 1
        made = tmp_path / "build" / "bundle" / "model.tflite"
        if made.exists() and not (tmp_path / "model.tflite").exists():
            shutil.copy(made, tmp_path)
    assert ran >= 18


def incomplete(command: str) -> bool:
    """Whether a command is named in a sentence, with words left out."""
    trains = command.startswith("python -m train --config")
    return "..." in command or len(command.split()) == 3 or (trains and "--data" not in command)
