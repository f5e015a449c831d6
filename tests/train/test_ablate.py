"""``python -m train ablate``: every technique off once, in a table of what each is worth."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from firmware_ref.errors import BAD_INPUT, HOLDS, INTERRUPTED
from tests.train.runs import (
    SETTINGS,
    TABLE,
    arguments,
    contents,
    lasting,
    named,
    one_line,
    with_teacher,
)
from train.__main__ import main
from train.ablate import ALL, AVERAGED, TECHNIQUES
from train.config_file import load_config

# One epoch a stage: the question is whether each trains at all.
SHORT = ("float.epochs=2", "qat.epochs=1")
# Three techniques.
SMALL = (
    *SETTINGS,
    "augment.frequency_mask_bands=0",
    "augment.silence_probability=0",
    "float.restart_epochs=[]",
    "model.res_norm=false",
)
SMALL_RUNS = (ALL, "mix-up", "time mask", "QAT")


def command(data: Path, out: Path, *more: str, settings: tuple[str, ...]) -> list[str]:
    return ["ablate", *arguments(data, out, *more, settings=settings)]


@pytest.fixture(scope="module")
def settings(tiny_devices: Path) -> tuple[str, ...]:
    return (*with_teacher(named("table", tiny_devices / TABLE)), *SHORT, "model.ssn_bands=2")


@pytest.fixture(scope="module")
def ablation(
    tiny_devices: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished one, and what it printed; not to be changed."""
    out, printed = tmp_path_factory.mktemp("ablation"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(command(tiny_devices, out, "--json", "--quiet", settings=settings)) == HOLDS
    return out, json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def small(tiny_esc10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of three techniques; not to be changed."""
    out = tmp_path_factory.mktemp("small")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command(tiny_esc10, out, "--quiet", settings=SMALL)) == HOLDS
    return out


def folder(name: str, seed: int = 0) -> str:
    return f"{name.replace(' ', '-')}/seed-{seed}"


def runs_in(out: Path) -> set[str]:
    return {path.parent.relative_to(out).as_posix() for path in out.rglob("run.json")}


def test_every_technique_is_switched_off_once(
    ablation: tuple[Path, dict[str, Any]], settings: tuple[str, ...]
) -> None:
    """And each of these runs trains to its end."""
    out, _ = ablation
    assert runs_in(out) == {folder(n) for n in (ALL, *TECHNIQUES)}
    whole = json.loads(json.dumps(load_config("esc10", settings).to_dict()))
    calibrated = {**whole["qat_stage"]["optimizer"], "epochs": 0}
    changed = {
        "mix-up": ("augment", "mixup_alpha", 0.0),
        "frequency mask": ("augment", "frequency_mask_bands", 0),
        "time mask": ("augment", "time_mask_frames", 0),
        "time warp": ("augment", "time_warp_frames", 0),
        "silence": ("augment", "silence_probability", 0.0),
        "pitch shift": ("augment", "pitch_shift_probability", 0.0),
        "spectrum correction": ("augment", "spectrum_correction_probability", 0.0),
        "cross-gradient training": ("cross_gradient", "epsilon", 0.0),
        "distillation": ("distillation", "teachers", []),
        "restarts": ("float_stage", "restart_epochs", []),
        "ResNorm": ("network", "res_norm", False),
        "sub-spectral norm": ("network", "ssn_bands", 1),
        "QAT": ("qat_stage", "optimizer", calibrated),
    }
    assert set(changed) == set(TECHNIQUES)
    for name, (section, key, value) in changed.items():
        config = json.loads((out / folder(name) / "run.json").read_text())["config"]
        assert whole[section][key] != value
        expected = {**whole, section: {**whole[section], key: value}}
        assert config == expected, name
    weights = {path.read_bytes() for path in out.glob("*/*/qat.safetensors")}
    assert len(weights) == 1 + len(TECHNIQUES)
    learned, calibrated = (load_file(out / folder(n) / "float.safetensors") for n in (ALL, "QAT"))
    assert all(np.array_equal(calibrated[name], value) for name, value in learned.items())


def test_the_values_are_those_of_each_run(ablation: tuple[Path, dict[str, Any]]) -> None:
    """The figures of its INT8 model, with the interval that its report has."""
    out, values = ablation
    assert {**json.loads((out / "ablation.json").read_text()), "ok": True} == values
    head = {"config": "esc10", "dataset": "ESC-10-Devices", "fold": 1, "seeds": [0]}
    assert {key: values[key] for key in head} == head and values["warning"] is None
    assert [variant["without"] for variant in values["variants"]] == [None, *TECHNIQUES]
    whole = values["variants"][0]["mean"]["clip_accuracy"]
    for variant in values["variants"]:
        report = json.loads((out / folder(variant["without"] or ALL) / "metrics.json").read_text())
        found = report["metrics"]["int8"]
        figures = {name: found[name] for name in AVERAGED}
        interval = {"clip_accuracy_interval": found["intervals"]["clip_accuracy"]}
        assert variant["runs"] == [{"seed": 0, **figures, **interval}]
        assert variant["mean"] == figures and figures["unseen_accuracy"] is not None
        assert set(variant["std"].values()) == {None}
        if variant["without"]:
            change = variant["clip_accuracy_change"]
            mean = figures["clip_accuracy"] - whole
            assert (change["mean"], change["std"]) == (mean, None)
            assert change["interval"][0] <= mean <= change["interval"][1]


def test_a_finished_ablation_is_measured_again_and_not_trained(
    tiny_esc10: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(small)
    again = command(tiny_esc10, small, "--resume", settings=SMALL)
    assert main(again) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == "" and contents(small) == before
    assert captured.out.startswith("config esc10, dataset ESC-10, fold 1, seeds 0\n\nwithout ")


def test_seeds_and_techniques_are_added_to_an_ablation(
    tiny_esc10: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is new is trained, with the next seed; the table has the spread over both."""
    out = Path(shutil.copytree(small, tmp_path / "more"))
    old = {folder(name): lasting(out / folder(name)) for name in SMALL_RUNS}
    more = ("--resume", "--quiet", "--json", "--seeds", "2", "--only", "mix-up")
    assert main(command(tiny_esc10, out, *more, settings=SMALL)) == HOLDS
    values = json.loads(capsys.readouterr().out)
    assert runs_in(out) == {*old, folder(ALL, 1), folder("mix-up", 1)}
    assert {name: lasting(out / name) for name in old} == old
    assert values["seeds"] == [0, 1]
    whole, mixed = values["variants"]
    assert (whole["without"], mixed["without"]) == (None, "mix-up")
    for name, variant in ((ALL, whole), ("mix-up", mixed)):
        for seed, found in enumerate(variant["runs"]):
            run = out / folder(name, seed)
            assert json.loads((run / "run.json").read_text())["config"]["seed"] == seed
            report = json.loads((run / "metrics.json").read_text())["metrics"]["int8"]
            assert found["seed"] == seed
            assert found["clip_log_loss"] == report["clip_log_loss"]
        losses = [found["clip_log_loss"] for found in variant["runs"]]
        assert losses[0] != losses[1]
        assert variant["mean"]["clip_log_loss"] == pytest.approx(statistics.mean(losses))
        assert variant["std"]["clip_log_loss"] == pytest.approx(statistics.stdev(losses))
    page = (out / "ablation.md").read_text()
    assert "| seeds | 0 1 |" in page and "| mix-up |" in page and "time mask" not in page


def test_an_interrupted_ablation_resumes_to_the_same_bytes(
    tiny_esc10: Path, tmp_path: Path, small: Path, interrupted: Callable[..., None]
) -> None:
    """In the second run, of three epochs each; the first is not trained again."""
    interrupted(command(tiny_esc10, tmp_path, "--quiet", settings=SMALL), 5)
    assert runs_in(tmp_path) == {folder(ALL), folder("mix-up")}
    assert not list(tmp_path.glob("ablation.*"))
    stamp = (tmp_path / folder(ALL) / "qat.safetensors").stat().st_mtime_ns
    resumed = command(tiny_esc10, tmp_path, "--quiet", "--resume", settings=SMALL)
    assert main(resumed) == HOLDS
    for name in SMALL_RUNS:
        assert lasting(tmp_path / folder(name)) == lasting(small / folder(name)), name
    for name in ("ablation.json", "ablation.md"):
        assert (tmp_path / name).read_bytes() == (small / name).read_bytes()
    assert (tmp_path / folder(ALL) / "qat.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("began", "how"),
    [
        (True, "the same command with --resume goes on"),
        (False, "nothing was begun, start again"),
    ],
)
def test_an_interruption_says_how_to_go_on(
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    began: bool,
    how: str,
) -> None:
    """In the extraction of the first run, or before it."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.data.extract" if began else "train.datasets.load_dataset", stop)
    assert main(command(tiny_esc10, tmp_path, "--quiet", settings=SMALL)) == INTERRUPTED
    assert capsys.readouterr() == ("", f"interrupted; {how}\n")
    assert runs_in(tmp_path) == ({folder(ALL)} if began else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((), "seed-0' already holds a run; add --resume or name another"),
        (("--set", "seed=5"), "seed-0' already holds a run; add --resume or name another"),
        (("--resume", "--set", "seed=5"), "seed-5' holds no run; leave --resume out"),
        (("--resume", "--set", "float.epochs=3"), "holds a run with another config"),
        (("--resume", "--fold", "2"), "holds a run with another test_fold"),
    ],
)
def test_another_ablation_is_refused(
    tiny_esc10: Path,
    small: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, ...],
    message: str,
) -> None:
    before = contents(small)
    assert main(command(tiny_esc10, small, "--quiet", *change, settings=SMALL)) == BAD_INPUT
    assert message in one_line(capsys) and contents(small) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resume",), "holds no run; leave --resume out"),
        (("--only", "mixup"), f"--only 'mixup' is unknown; allowed: {', '.join(TECHNIQUES)}"),
        (
            ("--only", "mix-up", "--only", "ResNorm"),
            "--only 'ResNorm' is off in config 'esc10' already; allowed with it: mix-up, time "
            "mask, QAT",
        ),
        (("--seeds", "0"), "--seeds 0; allowed: from 1 to 1,000"),
        (("--seeds", "two"), "argument --seeds: invalid int value"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_begun(
    tiny_esc10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert main(command(tiny_esc10, tmp_path, "--quiet", *more, settings=SMALL)) == BAD_INPUT
    assert message in one_line(capsys) and not list(tmp_path.iterdir())


def test_several_processes_are_refused(
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What torchrun sets would have each of them train into the same folders."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(tiny_esc10, tmp_path, "--quiet", settings=SMALL)) == BAD_INPUT
    said = one_line(capsys)
    assert said == "error: ablate trains in one process; start it without torchrun"
    assert not list(tmp_path.iterdir())
