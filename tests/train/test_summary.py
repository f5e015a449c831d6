"""Runs of several folds and seeds: means and deviations by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS, InputError
from tests.train.runs import one_line
from train.__main__ import main
from train.curves import EPOCHS_FILE
from train.summary import (
    CONFUSION_FILE,
    CURVES_FILE,
    JSON_FILE,
    MARKDOWN_FILE,
    METRICS_FILE,
    as_markdown,
    as_text,
    summarize,
)

LABELS = ("Rain", "Sea")


def written(folder: Path, seed: int = 0, fold: int = 1, clips: float = 0.5, **changes: Any) -> Path:
    """The part of a run's figures that is read; ``changes`` to those of INT8."""
    figures = {
        "clip_accuracy": clips,
        "clip_log_loss": 1 - clips,
        "window_accuracy": clips / 2,
        "window_log_loss": 2.0,
    }
    deployed = {**figures, "class_clips": dict.fromkeys(LABELS, 2), "confusion": [[2, 0], [1, 1]]}
    values = {
        "dataset": "ESC-10",
        "split": f"fold {fold}",
        "selected_on_reported_split": False,
        "provenance": {"seed": seed},
        "metrics": {"float": {**figures, "clip_accuracy": 1.0}, "int8": {**deployed, **changes}},
    }
    path = folder / f"{seed}-{fold}"
    path.mkdir(parents=True, exist_ok=True)
    (path / METRICS_FILE).write_text(json.dumps(values))
    epoch = {"stage": "float", "number": 1, "loss": 1.0, "validation_log_loss": None}
    (path / EPOCHS_FILE).write_text(json.dumps(epoch) + "\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of two folds, clips in % 80 and 90, 84 and 98."""
    grid = {(0, 1): 0.80, (0, 2): 0.90, (1, 1): 0.84, (1, 2): 0.98}
    return [written(tmp_path, seed, fold, clips) for (seed, fold), clips in grid.items()]


def test_means_and_deviations_by_hand(runs: list[Path]) -> None:
    summary = summarize(runs)
    found = summary.spread("int8", "clip_accuracy")
    assert found.mean == pytest.approx(0.88)
    # Folds: 82 and 94; seeds: 85 and 91.
    assert found.over_splits == pytest.approx(0.12 / 2**0.5)
    assert found.over_seeds == pytest.approx(0.06 / 2**0.5)
    assert summary.spread("float", "clip_accuracy").mean == 1.0
    assert summary.confusion.tolist() == [[8, 0], [4, 4]]
    kept = [(r["seed"], r["split"], r["models"]["int8"]) for r in summary.to_dict()["runs"]]
    wanted = {(0, "fold 1"): 0.80, (0, "fold 2"): 0.90, (1, "fold 1"): 0.84, (1, "fold 2"): 0.98}
    assert {(seed, split): v["clip_accuracy"] for seed, split, v in kept} == wanted


def test_one_figure_nudged_is_another_mean(runs: list[Path]) -> None:
    before = summarize(runs).spread("int8", "clip_accuracy").mean
    written(runs[0].parent, 0, 1, 0.81)
    assert summarize(runs).spread("int8", "clip_accuracy").mean == pytest.approx(before + 0.0025)


def test_the_tables(runs: list[Path]) -> None:
    lines = as_text(summarize(runs)).splitlines()
    assert lines[0] == "ESC-10: 2 splits, 2 seeds"
    assert lines[5].split()[:4] == ["int8", "88.00", "(8.49,", "4.24)"]
    assert lines[9].split() == ["seed", "0", "80.00", "90.00"]
    assert lines[10].split() == ["seed", "1", "84.00", "98.00"]
    page = as_markdown(summarize(runs[:1]))
    assert page.startswith("# ESC-10: 1 split, 1 seed\n")
    assert "| int8 | 80.00 (-, -) | 0.200 (-, -) |" in page


def test_devices_are_there_where_every_run_has_them(tmp_path: Path) -> None:
    devices = {"seen_accuracy": 0.5, "unseen_accuracy": 0.25}
    path = written(tmp_path, **devices)
    assert "seen_accuracy" not in summarize([path]).names  # float has none
    values = json.loads((path / METRICS_FILE).read_text())
    values["metrics"]["float"] |= devices
    (path / METRICS_FILE).write_text(json.dumps(values))
    summary = summarize([path])
    assert summary.names[-2:] == ("seen_accuracy", "unseen_accuracy")
    assert summary.spread("int8", "unseen_accuracy").mean == 0.25


def test_a_choice_on_the_reported_split_is_marked(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = (path / METRICS_FILE).read_text()
    (path / METRICS_FILE).write_text(text.replace('_split": false', '_split": true'))
    summary = summarize([path])
    assert "selected" in as_text(summary).splitlines()[0].lower()
    assert summary.to_dict()["selected_on_reported_split"] is True


def test_the_command_reads_a_real_run_and_writes_its_files(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "summary"
    assert main(["summarize", str(finished), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("ESC-10: 1 split, 1 seed\n")
    assert {path.name for path in out.iterdir()} == {
        *(CONFUSION_FILE, CURVES_FILE),
        *(JSON_FILE, MARKDOWN_FILE),
    }
    metrics = json.loads((finished / METRICS_FILE).read_text())["metrics"]
    found = json.loads((out / JSON_FILE).read_text())
    for model, values in metrics.items():
        for name in ("clip_accuracy", "window_log_loss"):
            assert found["models"][model][name]["mean"] == pytest.approx(values[name])
    assert main(["summarize", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confusion"] == metrics["int8"]["confusion"]


def test_runs_that_do_not_go_together(runs: list[Path], tmp_path: Path) -> None:
    def refused(paths: list[Path], words: str) -> None:
        with pytest.raises(InputError, match=words):
            summarize(paths)

    refused([], "no run is named")
    refused([*runs, runs[0]], "seed 0 has fold 1 twice")
    refused(runs[:3], "seed 1 lacks fold 2")
    refused([tmp_path / "absent"], "cannot be read")
    text = (runs[1] / METRICS_FILE).read_text()
    (runs[1] / METRICS_FILE).write_text(text.replace("ESC-10", "other"))
    refused(runs, "is of 'other', others are not")
    (runs[1] / METRICS_FILE).write_text(text.replace('"seed": 0', '"seed": 0, "recipe": "b"'))
    refused(runs, "has another recipe than others")


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_accuracy": None},
        {"clip_accuracy": "1"},
        {"clip_accuracy": float("nan")},
        {"clip_accuracy": True},
        {"confusion": [[1]]},
        {"confusion": [[-1, 0], [0, 0]]},
        {"confusion": [[10**30, 0], [0, 0]]},
        {"confusion": []},
        {"class_clips": 5},
    ],
)
def test_figures_that_no_run_has(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"is no metrics\.json with INT8 figures"):
        summarize([written(tmp_path, **changes)])


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"metrics": {}}', "null", "\udcff"])
def test_files_that_are_no_figures(tmp_path: Path, text: str) -> None:
    (tmp_path / METRICS_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"is no metrics\.json"):
        summarize([tmp_path])


def test_a_summary_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path), tmp_path / "out"
    command = ["summarize", str(path), "--out", str(out)]
    (path / EPOCHS_FILE).write_text("")
    assert main(command) == BAD_INPUT
    assert "epochs.jsonl' has no epochs; give the one of a run" in one_line(capsys)
    assert not out.exists()
    (path / EPOCHS_FILE).write_text('{"stage": "float", "number": 1, "loss": 1}\n')

    def failing(*parts: object) -> bytes:
        raise InputError("no picture")

    for part in ("confusion_png", "curves_png"):
        with monkeypatch.context() as patch:
            patch.setattr(f"train.summary.{part}", failing)
            assert main(command) == BAD_INPUT
        assert one_line(capsys) == "error: no picture"
        assert not out.exists()
    assert main(command) == HOLDS
