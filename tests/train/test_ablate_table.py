"""What an ablation compares, and its table, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.train.refusals import refused
from tests.train.runs import EVERYTHING, SETTINGS
from train.ablate import (
    Ablation,
    Figures,
    Spread,
    Variant,
    as_markdown,
    as_text,
    seeds_from,
    variants,
)
from train.config_file import load_config
from train.report import WARNING

# Two sources of four clips. Drawn twice, once or never, the first alone makes the changes.
WHOLE = Figures(0, 0.5, 1.25, 0.4, 0.6, 0.25, (0.375, 0.625), ((4, 2), (4, 2)))
WORSE = Figures(0, 0.375, 1.5, 0.4375, 0.5, 0.125, (0.25, 0.5), ((4, 1), (4, 2)))
BETTER = Figures(0, 0.625, 1.0, 0.5, 0.75, None, (0.5, 0.75), ((4, 3), (4, 2)))
ONE = Ablation(
    "esc10",
    "A|B",
    1,
    (0,),
    False,
    (Variant(None, (WHOLE,)), Variant("mix-up", (WORSE,)), Variant("time warp", (BETTER,))),
)
# The second run of each has another clip accuracy.
TWO = replace(
    ONE,
    seeds=(0, 1),
    variants=(
        Variant(None, (WHOLE, replace(WHOLE, clip_accuracy=0.6))),
        Variant("mix-up", (WORSE, replace(WORSE, clip_accuracy=0.575))),
    ),
)


def test_only_what_was_on_is_switched_off() -> None:
    """Teachers' own recipe without a teacher is no technique."""
    plain = load_config("esc10", (*SETTINGS, "teacher.epochs=1", "teacher.learning_rate=0.1"))
    on = ["mix-up", "frequency mask", "time mask", "silence", "restarts", "ResNorm", "QAT"]
    assert list(variants(plain)) == [None, *on]
    assert list(variants(plain, ("ResNorm", "mix-up", "ResNorm"))) == [None, "mix-up", "ResNorm"]
    assert variants(plain)[None] == plain
    everything = load_config("esc10", EVERYTHING)
    assert "distillation" not in variants(everything)
    off = ("augment.mixup_alpha=0", "float.restart_epochs=[]", "model.res_norm=false")
    bare = load_config("esc10", (*SETTINGS, *off))
    assert list(variants(bare)) == [None, "frequency mask", "time mask", "silence", "QAT"]


def test_seeds_in_a_row() -> None:
    assert seeds_from(3, 1) == (3,) and seeds_from(3, 3) == (3, 4, 5)
    assert seeds_from(2**32 - 2, 2)[-1] == 2**32 - 1
    refused(lambda: seeds_from(2**32 - 1, 2), "--seeds 2 from seed=4294967295", "4294967295")
    refused(lambda: seeds_from(0, 1001), "allowed: from 1 to 1,000")


def test_the_table_of_one_seed_has_intervals() -> None:
    assert as_text(ONE).splitlines()[:7] == [
        "config esc10, dataset A|B, fold 1, seeds 0",
        "",
        "without    clips  95 % interval  change  95 % interval  log-loss  windows  seen  unseen",
        "---------------------------------------------------------------------------------------",
        "            50.0    37.5 - 62.5                            1.250     40.0  60.0    25.0",
        "mix-up      37.5    25.0 - 50.0   -12.5  -25.0 to +0.0     1.500     43.8  50.0    12.5",
        "time warp   62.5    50.0 - 75.0   +12.5  +0.0 to +25.0     1.000     50.0  75.0       -",
    ]
    worse = Variant("mix-up", (replace(WORSE, clip_accuracy=0.376),))
    assert as_text(ONE) != as_text(replace(ONE, variants=(ONE.variants[0], worse)))


def test_the_table_of_two_seeds_has_deviations() -> None:
    """Of two values, half their distance times the root of two; of changes too, pair by pair."""
    assert as_text(TWO).splitlines()[2:6] == [
        "without        clips      change       log-loss     windows        seen      unseen",
        "-----------------------------------------------------------------------------------",
        "          55.0 (7.1)              1.250 (0.000)  40.0 (0.0)  60.0 (0.0)  25.0 (0.0)",
        "mix-up   47.5 (14.1)  -7.5 (7.1)  1.500 (0.000)  43.8 (0.0)  50.0 (0.0)  12.5 (0.0)",
    ]
    assert Spread.of([None, None]) == Spread(None, None)
    assert Spread.of([0.25]) == Spread(0.25, None)
    five = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.mean == 3.0 and five.std == pytest.approx(2.5**0.5)


def test_the_page_has_the_same_cells() -> None:
    lines = as_markdown(ONE).splitlines()
    assert lines[:3] == ["# Ablation", "", "| config | esc10 |"] and r"| dataset | A\|B |" in lines
    cells = ("mix-up", "37.5", "25.0 - 50.0", "-12.5", "-25.0 to +0.0", "1.500", "43.8", "50.0")
    assert f"| {' | '.join(cells)} | 12.5 |" in lines


def test_the_interval_of_a_change_is_of_all_seeds() -> None:
    mixed = Variant("mix-up", (WORSE, BETTER)), Variant(None, (WHOLE, WHOLE))
    assert mixed[0].change_interval(mixed[1]) == (0.0, 0.0)
    assert ONE.to_dict()["variants"][1]["clip_accuracy_change"]["interval"] == (-0.25, 0.0)
    assert ONE.to_dict()["variants"][0]["clip_accuracy_change"] is None


def test_an_ablation_selected_on_the_reported_split_is_marked() -> None:
    marked = replace(ONE, selected_on_reported_split=True)
    assert as_text(marked).startswith(WARNING) and WARNING not in as_text(ONE)
    assert f"> **{WARNING}**" in as_markdown(marked) and WARNING not in as_markdown(ONE)
    assert (marked.to_dict()["warning"], ONE.to_dict()["warning"]) == (WARNING, None)
