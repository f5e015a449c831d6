"""``python -m train ablate``: every technique off once, in a table of what each is worth."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS
from tests.train.runs import (
    EVERYTHING,
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
from train.ablate import ALL, TECHNIQUES, Row, as_text
from train.config_file import load_config
from train.report import WARNING

# One epoch a stage: the question is whether each trains at all.
SHORT = ("float.epochs=2", "qat.epochs=1")
# Two techniques.
SMALL = (
    *SETTINGS,
    "augment.frequency_mask_bands=0",
    "float.restart_epochs=[]",
    "model.res_norm=false",
)


def command(data: Path, out: Path, *more: str, settings: tuple[str, ...]) -> list[str]:
    return ["ablate", *arguments(data, out, *more, settings=settings)]


@pytest.fixture(scope="module")
def settings(tiny_devices: Path) -> tuple[str, ...]:
    return (*with_teacher(named("table", tiny_devices / TABLE)), *SHORT)


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
    """One of two techniques; not to be changed."""
    out = tmp_path_factory.mktemp("small")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command(tiny_esc10, out, "--quiet", settings=SMALL)) == HOLDS
    return out


def folder(name: str) -> str:
    return name.replace(" ", "-")


def test_every_technique_is_switched_off_once(
    ablation: tuple[Path, dict[str, Any]], settings: tuple[str, ...]
) -> None:
    """And each of these runs trains to its end."""
    out, _ = ablation
    assert {path.name for path in out.iterdir()} == {folder(n) for n in (ALL, *TECHNIQUES)}
    whole = json.loads(json.dumps(load_config("esc10", settings).to_dict()))
    changed = {
        "mix-up": ("augment", "mixup_alpha", 0.0),
        "frequency mask": ("augment", "frequency_mask_bands", 0),
        "time mask": ("augment", "time_mask_frames", 0),
        "time warp": ("augment", "time_warp_frames", 0),
        "pitch shift": ("augment", "pitch_shift_probability", 0.0),
        "spectrum correction": ("augment", "spectrum_correction_probability", 0.0),
        "cross-gradient training": ("cross_gradient", "epsilon", 0.0),
        "distillation": ("distillation", "teachers", []),
        "restarts": ("float_stage", "restart_epochs", []),
        "ResNorm": ("network", "res_norm", False),
    }
    assert set(changed) == set(TECHNIQUES)
    for name, (section, key, value) in changed.items():
        config = json.loads((out / folder(name) / "run.json").read_text())["config"]
        assert whole[section][key] != value
        expected = {**whole, section: {**whole[section], key: value}}
        assert config == expected, name
    weights = {path.read_bytes() for path in out.glob("*/float.safetensors")}
    assert len(weights) == 1 + len(TECHNIQUES)


def test_the_table_has_a_row_for_each(ablation: tuple[Path, dict[str, Any]]) -> None:
    """The figures of each run's INT8 model."""
    out, values = ablation
    assert values["ok"] is True
    assert [row["without"] for row in values["rows"]] == [ALL, *TECHNIQUES]
    for row in values["rows"]:
        report = json.loads((out / folder(row["without"]) / "metrics.json").read_text())
        found = report["metrics"]["int8"]
        names = ("clip_accuracy", "clip_log_loss", "window_accuracy")
        names += ("seen_accuracy", "unseen_accuracy")
        figures = {name: found[name] for name in names}
        same = {"without": row["without"], "selected_on_reported_split": False}
        assert row == {**same, **figures}
        assert row["unseen_accuracy"] is not None


def test_a_finished_ablation_is_measured_again_and_not_trained(
    tiny_esc10: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(small)
    again = command(tiny_esc10, small, "--resume", settings=SMALL)
    assert main(again) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == "" and contents(small) == before
    rows = []
    for name in (ALL, "mix-up", "time mask"):
        found = json.loads((small / folder(name) / "metrics.json").read_text())["metrics"]["int8"]
        names = ("clip_accuracy", "clip_log_loss", "window_accuracy")
        rows.append(Row(name, *(found[n] for n in names), found["clip_accuracy"], None, False))
    assert captured.out == as_text(rows) + "\n"


def test_an_interrupted_ablation_resumes_to_the_same_bytes(
    tiny_esc10: Path, tmp_path: Path, small: Path, interrupted: Callable[..., None]
) -> None:
    """In the second run, of three epochs each; the first is not trained again."""
    interrupted(command(tiny_esc10, tmp_path, "--quiet", settings=SMALL), 5)
    assert {path.name for path in tmp_path.iterdir()} == {folder(ALL), "mix-up"}
    stamp = (tmp_path / folder(ALL) / "qat.safetensors").stat().st_mtime_ns
    resumed = command(tiny_esc10, tmp_path, "--quiet", "--resume", settings=SMALL)
    assert main(resumed) == HOLDS
    for name in (ALL, "mix-up", "time mask"):
        assert lasting(tmp_path / folder(name)) == lasting(small / folder(name)), name
    assert (tmp_path / folder(ALL) / "qat.safetensors").stat().st_mtime_ns == stamp


def test_an_interruption_says_how_to_go_on(
    tiny_devices: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.ablate.run", stop)
    assert main(command(tiny_devices, tmp_path, "--quiet", settings=settings)) == 130
    said = capsys.readouterr()
    assert said == ("", "interrupted; the same command with --resume goes on\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((), "already holds a run; add --resume or name another"),
        (("--resume", "--set", "seed=5"), "holds a run with another config"),
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


def test_resuming_where_nothing_began_is_refused(
    tiny_devices: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = command(tiny_devices, tmp_path, "--quiet", "--resume", settings=settings)
    assert main(again) == BAD_INPUT
    assert "holds no run; leave --resume out" in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_only_what_was_on_is_switched_off() -> None:
    """Teachers' own recipe without a teacher is no technique."""
    plain = load_config("esc10", (*SETTINGS, "teacher.epochs=1", "teacher.learning_rate=0.1"))
    on = [name for name, without in TECHNIQUES.items() if without(plain) != plain]
    assert on == ["mix-up", "frequency mask", "time mask", "restarts", "ResNorm"]
    everything = load_config("esc10", EVERYTHING)
    assert TECHNIQUES["distillation"](everything) == everything
    off = ("augment.mixup_alpha=0", "float.restart_epochs=[]", "model.res_norm=false")
    bare = load_config("esc10", (*SETTINGS, *off))
    on = [name for name, without in TECHNIQUES.items() if without(bare) != bare]
    assert on == ["frequency mask", "time mask"]


def test_the_table_by_hand() -> None:
    whole = Row(ALL, 0.5, 1.25, 0.4, 0.6, 0.25, False)
    worse = Row("mix-up", 0.375, 1.5, 0.4375, 0.5, 0.125, False)
    better = Row("time warp", 0.625, 1.0, 0.5, 0.75, None, False)
    assert as_text([whole, worse, better]).splitlines() == [
        "without    clips  change  log-loss  windows  seen  unseen",
        "---------------------------------------------------------",
        "            50.0             1.250     40.0  60.0    25.0",
        "mix-up      37.5   -12.5     1.500     43.8  50.0    12.5",
        "time warp   62.5   +12.5     1.000     50.0  75.0       -",
    ]
    nudged = dataclasses.replace(worse, clip_accuracy=0.376)
    assert as_text([whole, worse, better]) != as_text([whole, nudged, better])


def test_an_ablation_selected_on_the_reported_split_is_marked() -> None:
    row = Row(ALL, 0.5, 1.25, 0.4, 0.6, 0.25, False)
    assert WARNING not in as_text([row])
    assert as_text([dataclasses.replace(row, selected_on_reported_split=True)]).startswith(WARNING)
