"""Files of limits: their form, and every kind of bad one refused in one line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from budgets.cost import cores
from budgets.figures import LAYER_FIGURES, MODEL_FIGURES, instruction_figures
from budgets.limits import (
    DEFAULT_FILE,
    LARGEST_LIMIT,
    LayerLimit,
    Limits,
    load_limits,
    parse_limits,
)
from firmware_ref.errors import InputError

MODEL = "[model]\nparameters = 128_000\nmultiply_accumulates = 30_000_000\n"
EVERYTHING = f"""
{MODEL}
arena_bytes = 100
[model.instructions]
cortex-m4 = 80_000_000
cortex-m55 = 2

[[layers]]
pattern = "stage*.sum"
activation_bytes = 60_000
[[layers]]
pattern = "*"
live_bytes = 5
[layers.instructions]
cortex-m7 = 9

[growth_percent]
parameters = 0
arena_bytes = 1.5
[growth_percent.instructions]
cortex-m33 = 10
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "limits.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(InputError) as caught:
        load_limits(path)
    assert str(caught.value).startswith(f"limits file {str(path)!r}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_the_shipped_limits() -> None:
    limits = load_limits()
    assert limits == Limits({"parameters": 128_000, "multiply_accumulates": 30_000_000})
    assert (limits.layers, limits.growth_percent) == ((), {})


def test_the_shipped_file_shows_every_key() -> None:
    """What is commented out there is the form too: with it the file limits everything it names."""
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    shown = re.sub(r"^# (?=\[|[\w-]+ = )", "", text, flags=re.MULTILINE)
    assert shown.count("\n# ") < text.count("\n# ")
    limits = parse_limits(tomllib.loads(shown))
    assert set(limits.model) == {*MODEL_FIGURES, "instructions.cortex-m4"}
    assert limits.layers and limits.growth_percent
    for word in (
        *MODEL_FIGURES,
        *LAYER_FIGURES,
        *cores(),
        "pattern",
        " * ",
        " ? ",
        "[12]",
        "[!12]",
    ):
        assert word in text


def test_every_table(tmp_path: Path) -> None:
    assert load_limits(write(tmp_path, EVERYTHING)) == Limits(
        model={
            "parameters": 128_000,
            "multiply_accumulates": 30_000_000,
            "arena_bytes": 100,
            "instructions.cortex-m4": 80_000_000,
            "instructions.cortex-m55": 2,
        },
        layers=(
            LayerLimit("stage*.sum", {"activation_bytes": 60_000}),
            LayerLimit("*", {"live_bytes": 5, "instructions.cortex-m7": 9}),
        ),
        growth_percent={"parameters": 0.0, "arena_bytes": 1.5, "instructions.cortex-m33": 10.0},
    )


def test_every_figure_can_be_limited() -> None:
    figures = dict.fromkeys(MODEL_FIGURES, 7)
    by_core = {name.partition(".")[2]: 7 for name in instruction_figures()}
    limits = parse_limits({"model": {**figures, "instructions": by_core}})
    assert set(limits.model) == {*MODEL_FIGURES, *instruction_figures()}
    of_layers = dict.fromkeys(LAYER_FIGURES, 7)
    layer = {"pattern": "*", **of_layers, "instructions": by_core}
    (item,) = parse_limits({"model": figures, "layers": [layer]}).layers
    assert set(item.most) == {*LAYER_FIGURES, *instruction_figures()}
    growth = {**dict.fromkeys(MODEL_FIGURES, 0), "instructions": by_core}
    limits = parse_limits({"model": figures, "growth_percent": growth})
    assert set(limits.growth_percent) == {*MODEL_FIGURES, *instruction_figures()}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("[model]\nparameters = 1", Limits({"parameters": 1})),
        ("[model]\nmultiply_accumulates = 1", Limits({"multiply_accumulates": 1})),
        ("[model.instructions]\ncortex-m4 = 1", Limits({"instructions.cortex-m4": 1})),
        (
            "[[layers]]\npattern = 'a[12]'\nlive_bytes = 1",
            Limits({}, (LayerLimit("a[12]", {"live_bytes": 1}),)),
        ),
        ("[growth_percent]\narena_bytes = 1", Limits({}, (), {"arena_bytes": 1.0})),
    ],
)
def test_one_limit_is_enough(tmp_path: Path, text: str, limits: Limits) -> None:
    assert load_limits(write(tmp_path, text)) == limits


def test_what_is_written_back_is_read_the_same() -> None:
    limits = parse_limits(tomllib.loads(EVERYTHING))
    assert limits.to_dict() == {
        "model": dict(limits.model),
        "layers": [
            {"pattern": "stage*.sum", "activation_bytes": 60_000},
            {"pattern": "*", "live_bytes": 5, "instructions.cortex-m7": 9},
        ],
        "growth_percent": {
            "parameters": 0.0,
            "arena_bytes": 1.5,
            "instructions.cortex-m33": 10.0,
        },
    }


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("stage1.*", "stage1.block1.sum", True),
        ("stage1.*", "stage2.block1.sum", False),
        ("stage?.pool", "stage4.pool", True),
        ("stage?.pool", "stage12.pool", False),
        ("stage[12].pool", "stage2.pool", True),
        ("stage[!12].pool", "stage2.pool", False),
        ("Stem.conv", "stem.conv", False),
        ("stem.conv", "stem.conv.more", False),
        ("*a*a*a*a*a*a*a*a*a*a*a*a*a*b", "a" * 10_000, False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert LayerLimit(pattern, {"parameters": 1}).applies_to(name) is matches


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "nothing is limited; give for instance .model. with parameters = 128_000"),
        ("[model]", "nothing is limited"),
        ("layers = []\n[model.instructions]\n[growth_percent]", "nothing is limited"),
        ("model = 3", "model must be a table"),
        ("[[model]]\nparameters = 1", "model must be a table"),
        (MODEL + "macs = 1", "unknown key 'macs'; allowed: parameters"),
        (MODEL + "[flash]", "unknown table 'flash'; allowed: model, layers, growth_percent"),
        (MODEL + "[model.instructions]\ncortex-m0 = 1", "'instructions.cortex-m0'; allowed: .*m33"),
        (MODEL + "instructions = 1", "instructions must be a table"),
        (MODEL.replace("128_000", "128e3"), "parameters=128000.0"),
        (MODEL.replace("128_000", "true"), "parameters=True"),
        (MODEL.replace("128_000", "'128_000'"), "parameters='128_000'"),
        (MODEL.replace("128_000", "[1]"), r"parameters=\[1\]"),
        (MODEL.replace("128_000", "0"), "parameters=0; allowed is a whole number from 1"),
        (MODEL.replace("128_000", "-5"), "parameters=-5; allowed"),
        (MODEL.replace("128_000", "nan"), "parameters=nan"),
        (MODEL.replace("128_000", "inf"), "parameters=inf"),
        (MODEL.replace("128_000", str(LARGEST_LIMIT + 1)), "to 1,000,000,000,000"),
        (MODEL.replace("128_000", "2020-01-01"), "parameters=datetime.date"),
        (MODEL.replace("128_000", "9" * 900), "parameters=9999"),
        (MODEL.replace("128_000", "0x" + "f" * 900), "parameters=[0-9]{60};"),
        (MODEL.replace("128_000", "9" * 5_000), "a line of 5,013 bytes; at most 1,000"),
        (MODEL + "layers = 3", "unknown key 'layers'"),
        ("layers = 3\n" + MODEL, "layers must be at most 200 tables"),
        ("layers = ['a']\n" + MODEL, "layers must be a table"),
        (MODEL + "[layers]\npattern = '*'", r"written \[\[layers\]\]"),
        (MODEL + "[[layers]]\nparameters = 1", "pattern=None; it must be a text"),
        (MODEL + "[[layers]]\npattern = ''\nparameters = 1", "pattern=''; it must be"),
        (MODEL + "[[layers]]\npattern = 3\nparameters = 1", "pattern=3; it must be"),
        (MODEL + f"[[layers]]\npattern = '{'x' * 201}'\nparameters = 1", "text of 1 to 200"),
        (MODEL + "[[layers]]\npattern = '*'", r"layers '\*' limits nothing; give parameters"),
        (MODEL + "[[layers]]\npattern = '*'\narena_bytes = 1", "unknown key 'arena_bytes'"),
        (MODEL + "[[layers]]\npattern = '*'\nparameters = 1.5", "limit parameters=1.5"),
        (MODEL + "[[layers]]\npattern = '*'\n[layers.instructions]\nz80 = 1", "instructions.z80"),
        (MODEL + "[[layers]]\npattern = '*'\nlive_bytes = 1\n" * 201, "at most 200 tables"),
        ("growth_percent = 5\n" + MODEL, "growth_percent must be a table"),
        (MODEL + "[growth_percent]\nlive_bytes = 1", "unknown key 'live_bytes'"),
        (MODEL + "[growth_percent]\nparameters = -0.1", "from 0 to 1000"),
        (MODEL + "[growth_percent]\nparameters = nan", "growth_percent parameters=nan"),
        (MODEL + "[growth_percent]\nparameters = inf", "growth_percent parameters=inf"),
        (MODEL + "[growth_percent]\nparameters = 1e4", "parameters=10000.0"),
        (MODEL + "[growth_percent]\nparameters = true", "parameters=True"),
        (MODEL + "[growth_percent]\nparameters = '5'", "parameters='5'"),
        (MODEL + f"[growth_percent]\nparameters = 1{'0' * 900}", "from 0 to 1000"),
        ("model = " + "[" * 900, "not readable TOML"),
        ("model = " + "[\n" * 20_000, "not readable TOML"),
        (MODEL.replace("128_000", "{a = " * 150 + "1" + "}" * 150), "parameters={'a'"),
        (MODEL + "[model.more" + ".a" * 400 + "]", "unknown key 'more'"),
        (MODEL + "[layers" + ".a" * 20_000 + "]", "a line of 40,008 bytes"),
        ("[model]\nparameters" + ".a" * 30_000 + " = 1", "a line of"),
        ("[model", r"not readable TOML: .*\(at .*\); limits.toml of the package shows the form"),
        (MODEL + "parameters = 2\n", r"not readable TOML: .*\(at line 4, column 15\); limits"),
        (MODEL.replace("128_000", "128,000"), r"not readable TOML: .*\(at line 2, column 17\); l"),
        (f"[{'k' * 900}]\n[{'k' * 900}]", r"not readable TOML: .*kk\.\.\.kk.*\(at line 2, col"),
        ("#" * 100_000, "at most 65,536"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, match: str) -> None:
    assert re.search(match, refusal(write(tmp_path, text)))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00[model]")
    assert "not readable TOML; limits.toml of the" in refusal(tmp_path / "bytes.toml")
    assert "No such file" in refusal(tmp_path / "missing.toml")
    assert "is not a file" in refusal(tmp_path)


@pytest.mark.parametrize("percent", [0, 1000, 0.25])
def test_growth_up_to_its_ends(percent: float) -> None:
    tables = {**tomllib.loads(MODEL), "growth_percent": {"parameters": percent}}
    assert parse_limits(tables).growth_percent == {"parameters": percent}


@pytest.mark.parametrize("value", [1, LARGEST_LIMIT])
def test_limits_up_to_their_ends(value: int) -> None:
    tables = {"model": {"parameters": value, "multiply_accumulates": value}}
    assert parse_limits(tables).model["parameters"] == value
