"""The tables of RESULTS.md say what the files behind them say."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
ABLATION = ROOT / "results" / "esc10-devices-ablation"
ROWS = {
    "all-techniques": "**all techniques**",
    "mix-up": "mix-up",
    "spectrum-correction": "spectrum correction",
    "pitch-shift": "pitch shift",
    "time-warp": "time warp",
    "frequency-mask": "frequency mask",
    "silence": "silence",
    "time-mask": "time mask",
    "cross-gradient-training": "cross-gradient training",
    "distillation": "distillation",
    "resnorm": "ResNorm",
    "qat": "QAT (calibration alone)",
    "ssn-4": "S = 4 in place of 1",
    "qti-c40": "`qti-c40` in place of `report-125k`",
    "repeat-layer-norm-seed-0": "seed 0, ResNorm as a layer norm: the same but for the last bits",
    "repeat-seed-1": "seed 1",
    "repeat-aligned-seed-0": "seed 0, shifted windows from where their sound is, layer norm",
    "repeat-aligned-seed-1": "seed 1, the same",
}
REPEATS = ("all-techniques", *(name for name in ROWS if name.startswith("repeat-")))


def section(heading: str) -> str:
    return TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(heading: str, first: str) -> list[str]:
    (found,) = (
        cells(line) for line in section(heading).splitlines() if line.startswith(f"| {first} |")
    )
    return found[1:]


def int8(name: str) -> dict[str, float]:
    values = json.loads((ABLATION / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[str, float] = values["metrics"]["int8"]
    return found


def written(name: str) -> list[str]:
    """The cells of a run: clips, log-loss, windows, seen and unseen devices."""
    values = int8(name)
    return [
        f"{100 * values['clip_accuracy']:.1f}",
        f"{values['clip_log_loss']:.3f}",
        f"{100 * values['window_accuracy']:.1f}",
        *(
            f"{100 * values[f'{which}_accuracy']:.1f}, {values[f'{which}_log_loss']:.3f}"
            for which in ("seen", "unseen")
        ),
    ]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_ablation(name: str) -> None:
    found = row("Ablation", ROWS[name])
    told = found if len(found) == 5 else [found[0], *found[4:]]  # less intervals and change
    assert told == written(name)
    if len(found) == 8 and name != "all-techniques":
        change = int8(name)["clip_accuracy"] - int8("all-techniques")["clip_accuracy"]
        assert float(found[2]) == pytest.approx(100 * change, abs=0.0501)


def test_every_file_of_the_ablation_has_a_row() -> None:
    assert {path.stem for path in ABLATION.glob("*.json")} == set(ROWS)


def test_what_the_repeats_say() -> None:
    clips = [100 * int8(name)["clip_accuracy"] for name in REPEATS]
    losses = [int8(name)["clip_log_loss"] for name in REPEATS]
    text = " ".join(section("Ablation").split())
    assert (
        f"have {fmean(clips):.1f} % of clips with a standard deviation of {stdev(clips):.1f}"
        in text
    )
    assert f"log-losses of {fmean(losses):.2f} with one of {stdev(losses):.2f}" in text
    assert f"standard deviation of some {2**0.5 * stdev(clips):.1f} points" in text


@pytest.mark.parametrize(
    ("seed", "folder"), [(0, "esc10-distilled"), (2, "esc10-distilled-seed-2")]
)
def test_the_folds_of_a_seed(seed: int, folder: str) -> None:
    summary = ROOT / "results" / folder
    lines = (summary / "summary.md").read_text(encoding="utf-8").splitlines()
    (folds,) = (cells(line)[1:] for line in lines if line.startswith(f"| seed {seed} |"))
    mean = f"{fmean(map(float, folds)):.2f}"
    assert row("ESC-10, five folds", f"seed {seed}") == [*folds, mean]
    models = json.loads((summary / "summary.json").read_text(encoding="utf-8"))["models"]
    assert f"{100 * models['int8']['clip_accuracy']['mean']:.2f}" == mean


def test_the_mean_over_seeds_and_the_one_in_the_readme() -> None:
    seeds = [row("ESC-10, five folds", f"seed {seed}") for seed in range(3)]
    means = [fmean(map(float, cells[:5])) for cells in seeds]
    told = row("ESC-10, five folds", "**INT8, device arithmetic**")[0]
    assert told == f"**{fmean(means):.2f} ({stdev(means):.2f})**"
    over_folds = stdev(
        fmean(map(float, fold)) for fold in zip(*(s[:5] for s in seeds), strict=True)
    )
    assert f"deviation over folds is {over_folds:.2f} points" in " ".join(TEXT.split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| INT8 (samples to logits in device arithmetic) | {fmean(means):.2f} % |" in readme
