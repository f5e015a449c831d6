"""The GitHub action and the pre-commit hook: what they run, run here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from convert.flatbuffer import write
from firmware_ref.arch import preset
from tests.firmware_ref.build import network_graph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A firmware repository: a model whose name a shell would trip over, limits of its own."""
    import numpy as np

    folder = tmp_path_factory.mktemp("firmware")
    model = write(network_graph(preset("report-125k"), np.random.default_rng(0)))
    (folder / "model$(touch hacked).tflite").write_bytes(model)
    (folder / "budgets").mkdir()  # not the package
    limits = "[model]\nparameters = 128_000\nmultiply_accumulates = 30_000_000\n"
    (folder / "limits.toml").write_text(limits)
    (folder / "tight.toml").write_text(limits.replace("128_000", "100_000"))
    return folder


def action() -> dict[str, Any]:
    """The composite action, read as YAML."""
    text = (ROOT / ".github/actions/budgets/action.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def count(folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the action's last step with these inputs, as a runner would; and the job's summary."""
    found = action()
    step = next(s for s in found["runs"]["steps"] if s.get("name") == "Count")
    values = {name: spec.get("default", "") for name, spec in found["inputs"].items()} | inputs
    environment = {
        key: values[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        for key, text in step["env"].items()
    }
    summary = folder / "summary.md"
    summary.unlink(missing_ok=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path, "GITHUB_STEP_SUMMARY": str(summary)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, summary.read_text() if summary.exists() else ""


def test_within_the_limits_it_notes_and_reports(workspace: Path) -> None:
    done, summary = count(workspace, subjects="report-125k", limits="limits.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("::notice title=Budget::1 within every limit\n")
    assert "### Budgets" in summary and "within" in summary
    assert json.loads((workspace / "budget.json").read_text())["ok"] is True


def test_over_a_limit_it_annotates_and_fails(workspace: Path) -> None:
    done, summary = count(workspace, subjects="report-125k\nqti-c40", limits="tight.toml")
    assert done.returncode == 1
    assert done.stdout.count("::error title=Budget%3A parameters::") == 2
    assert "**over**" in summary


def test_the_report_is_the_next_baseline(workspace: Path) -> None:
    assert count(workspace, subjects="report-125k")[0].returncode == 0
    done, _ = count(workspace, subjects="report-125k", baseline="budget.json")
    assert done.returncode == 0, done.stderr
    assert "note" not in done.stderr and "not there yet" not in done.stdout
    done, _ = count(workspace, subjects="report-125k qti-c40", baseline="budget.json")
    assert done.returncode == 2 and "has no subject 'qti-c40'" in done.stderr


def test_the_first_run_makes_the_first_baseline(workspace: Path) -> None:
    """It limits growth over a report that it writes itself: in the first run nothing is there."""
    limits = (workspace / "limits.toml").read_text(encoding="utf-8")
    growth = "[growth_percent]\nparameters = 0\n"
    (workspace / "growth.toml").write_text(limits + growth, encoding="utf-8")
    files = {"limits": "growth.toml", "baseline": "first.json", "report": "first.json"}
    done, summary = count(workspace, subjects="report-125k", **files)
    assert done.returncode == 0, done.stderr
    first, second, _ = done.stdout.splitlines()
    assert first == (
        "::notice title=Budget::baseline first.json is not there yet: growth is not checked"
    )
    assert second == "::notice title=Budget::1 within every limit"
    assert "not checked, without a baseline: growth of parameters" in summary
    done, summary = count(workspace, subjects="report-125k", **files)
    assert done.returncode == 0 and "not there yet" not in done.stdout
    assert "nothing changed since the baseline" in summary
    done, _ = count(workspace, subjects="qti-c80", **files)
    assert done.returncode == 1 and "growth of parameters=314,650" in done.stdout


def test_a_file_name_runs_nothing(workspace: Path) -> None:
    done, _ = count(workspace, subjects="model$(touch${IFS}hacked).tflite")
    assert done.returncode == 2 and not (workspace / "hacked").exists()


def test_a_subject_is_no_option(workspace: Path) -> None:
    done, _ = count(workspace, subjects="--limits=tight.toml report-125k")
    assert done.returncode == 2 and "unknown subject '--limits=tight.toml'" in done.stderr


def test_inputs_reach_a_shell_as_variables_alone() -> None:
    for step in action()["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_hook_holds_the_files_it_is_given(workspace: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    command = shlex.split(hook["entry"])
    assert command[0] == "python"
    files = [path.name for path in workspace.glob("*.tflite")]
    for limits, code in (("limits.toml", 0), ("tight.toml", 1)):
        done = subprocess.run(
            [sys.executable, *command[1:], "--limits", limits, *files],
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert ("over limit: " in done.stderr) == bool(code)


def test_the_hook_takes_limits_of_models_that_are_not_in_the_commit(workspace: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    limits = (workspace / "limits.toml").read_text(encoding="utf-8")
    limits += "\n[[layers]]\npattern = 'of another model'\nparameters = 1\n"
    (workspace / "limits.toml").write_text(limits, encoding="utf-8")
    (file, *_) = workspace.glob("*.tflite")
    for command, code in ((hook["entry"], 0), ("python -m budgets", 2)):
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:], "--limits", "limits.toml", file.name],
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code and ("matches no layer" in done.stderr) == bool(code)
