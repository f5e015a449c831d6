"""Files made to do harm are refused or reported in under a second and under 200 MiB."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgets.baseline import BASELINE_BYTES
from budgets.check import MOST_LAYER_VIOLATIONS
from budgets.deployed import MOST_OPERATORS, refuse_endless
from budgets.figures import LAYER_FIGURES, instruction_figures
from firmware_ref.arch import Network, preset
from firmware_ref.errors import LONGEST_LINE, InputError
from firmware_ref.graph import MAX_OPERATORS
from firmware_ref.lowering import lower
from firmware_ref.manifest import CHECKPOINT_LIMIT_BYTES
from tests.budgets.commands import Finished, measured, slowness, write_checkpoint
from tests.firmware_ref.build import Model

SMALL = (1, 4)


def chain(kind: str, shape: tuple[int, ...], count: int, *more: int, **options: Any) -> bytes:
    """Operators one after the other; ``more`` is the shape of a constant that each reads."""
    model = Model()
    first = x = model.tensor("x", shape, 0.5)
    constant = [model.tensor("c", more, 0.5, data=np.zeros(more, np.int8))] if more else []
    for number in range(count):
        y = model.tensor(f"{number}" + "n" * 100, shape, 0.5)
        model.add(kind, [x, *constant], [y], **options)
        x = y
    return model.pack([first], [x])


def fan() -> bytes:
    """As many activations alive at once as there may be, each of another size, read by one."""
    model = Model()
    x = model.tensor("x", SMALL, 0.5)
    parts = [model.tensor(f"t{n}", (1, 1 + n % 977), 0.5) for n in range(MAX_OPERATORS - 2)]
    for part in parts:
        model.add("CUSTOM:part", [x], [part])
    y = model.tensor("y", SMALL, 0.5)
    model.add("CONCATENATION", parts, [y])
    return model.pack([x], [y])


def tangle() -> bytes:
    """Random sizes and lifetimes."""
    rng, model = np.random.default_rng(0), Model()
    made = [model.tensor("x", SMALL, 0.5)]
    for number in range(MAX_OPERATORS - 2):
        y = model.tensor(f"t{number}", (1, int(rng.integers(1, 10**6))), 0.5)
        read = [made[int(i)] for i in rng.integers(0, len(made), 3)]
        model.add("CUSTOM:part", read, [y])
        made.append(y)
    return model.pack([0], [made[-1]])


def one(shape: tuple[int, ...], inputs: int = 1, outputs: int = 1) -> bytes:
    """One operator that reads its input many times or writes many outputs."""
    model = Model()
    x = model.tensor("x", shape, 0.5)
    made = [model.tensor(f"y{number}", shape, 0.5) for number in range(outputs)]
    model.add("CONCATENATION", [x] * inputs, made)
    return model.pack([x], made)


def cycle() -> bytes:
    model = Model()
    x, a, b = (model.tensor(name, SMALL, 0.5) for name in "xab")
    model.add("ADD", [x, b], [a])
    model.add("ADD", [x, a], [b])
    return model.pack([x], [b])


MOST = MAX_OPERATORS - 2  # of so many tensors
ENDS = {"strideH": 2**31 - 1, "strideW": -(2**31)}
TAPS = {"filterHeight": 2**31 - 1, "filterWidth": 2**31 - 1}
SPREAD = {"dilationHFactor": 2**31 - 1, "dilationWFactor": -(2**31)}
HUGE = (1, 2**14, 2**14, 1)
# What each ends with, and a word of what it says on stderr.
MODELS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "as many operators as may be": (lambda: chain("RELU", SMALL, MOST), 0, ""),
    "as many unknown ones": (lambda: chain("CUSTOM:x", SMALL, MOST), 1, f"operators={MOST:,}"),
    "maps of 256 MiB": (lambda: chain("RELU", HUGE, MOST), 0, ""),
    "all alive at once": (fan, 1, f"operators={MOST:,}"),
    "random lifetimes": (tangle, 1, f"operators={MOST:,}"),
    "windows without end": (lambda: chain("MAX_POOL_2D", HUGE, 1_000, **ENDS, **TAPS), 0, ""),
    "dilated without end": (
        lambda: chain("CONV_2D", (1, 8, 8, 2), 1_000, 2, 3, 3, 2, **ENDS, **SPREAD),
        0,
        "",
    ),
    "two million inputs": (lambda: one(SMALL, inputs=1_900_000), 2, "inputs=1900000"),
    "as many outputs": (lambda: one(SMALL, outputs=MOST), 0, ""),
    "constants read again and again": (
        lambda: chain("ADD", SMALL, 2_000, 1, 10_000, 1_000),
        1,
        "parameters=20,000,000,000",
    ),
    "negative sizes": (lambda: one((1, -4)), 2, "shape=(1, -4)"),
    "sizes beyond memory": (lambda: one((2**31 - 1,) * 3), 2, "shape=(2147483647, "),
    "a cycle": (cycle, 2, "before it is written"),
    "too many operators": (lambda: chain("RELU", SMALL, MAX_OPERATORS), 2, "tensors=2501"),
}
NETWORK = preset("report-125k").to_dict()
ENDLESS = {"widths": [1024] * 16, "blocks": [1024] * 16, "pool_after": []}


def held(done: Finished, code: int, word: str) -> None:
    """The command ended so, said so in lines of its own, and took no more than it may."""
    assert (done.code, done.stdout) == (code, "")
    assert word in done.stderr and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == (1 if code else 0) and all(len(line) < 1_000 for line in lines)
    assert done.mebibytes < 200
    assert done.processor_seconds < 1.0 * slowness()


def report(folder: Path, what: str, form: str) -> Finished:
    path = folder / f"{what}.tflite"
    path.write_bytes(MODELS[what][0]())
    out = str(folder / "report")
    return measured("-m", "budgets", str(path), "--format", form, "--out", out, "--quiet")


@pytest.mark.parametrize("what", MODELS)
def test_models(tmp_path: Path, what: str) -> None:
    held(report(tmp_path, what, "json"), *MODELS[what][1:])


@pytest.mark.parametrize("form", ["table", "markdown", "html"])
@pytest.mark.parametrize("what", ["as many unknown ones", "maps of 256 MiB"])
def test_models_in_other_forms(tmp_path: Path, what: str, form: str) -> None:
    held(report(tmp_path, what, form), *MODELS[what][1:])


@pytest.mark.parametrize("stage", ["float", "qat"])
@pytest.mark.parametrize("bands", [1, 64])
def test_checkpoints_of_endless_networks(tmp_path: Path, stage: str, bands: int) -> None:
    network = NETWORK | ENDLESS | {"ssn_bands": bands}
    path = write_checkpoint(tmp_path / "c.safetensors", network, stage, {})
    held(measured("-m", "budgets", str(path), "--quiet"), 2, "at most 4,000 are counted")


def test_a_nested_checkpoint(tmp_path: Path) -> None:
    header = b'{"__metadata__": ' + b"[" * 100_000
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    held(measured("-m", "budgets", str(path), "--quiet"), 2, "no readable manifest")


def test_a_checkpoint_as_large_as_may_be(tmp_path: Path) -> None:
    """Its header is read, not its tensors."""
    path = write_checkpoint(tmp_path / "c.safetensors", NETWORK)
    with path.open("r+b") as file:
        file.truncate(CHECKPOINT_LIMIT_BYTES)
    held(measured("-m", "budgets", str(path), "--quiet"), 0, "")


@pytest.mark.parametrize(
    ("blocks", "bands"), [([1], 1), ([3, 5], 4), ([2, 2, 2], 1), ([40, 40], 16)]
)
def test_a_network_is_refused_before_it_is_lowered(blocks: list[int], bands: int) -> None:
    """By a number no smaller than that of its operators."""
    values = NETWORK | {"widths": [4] * len(blocks), "ssn_bands": bands, "pool_after": []}
    network = Network.from_dict(values | {"blocks": blocks})
    refuse_endless(network)
    assert len(lower(network).operators) < MOST_OPERATORS
    times = MOST_OPERATORS // (8 * sum(blocks)) + 1  # of a block, at least
    with pytest.raises(InputError, match="at most 4,000 are counted"):
        refuse_endless(Network.from_dict(values | {"blocks": [n * times for n in blocks]}))


FIGURES = (*LAYER_FIGURES, *instruction_figures())
LISTS = '{"schema_version": 2, "subjects": ['
BASELINES = {
    "lists": LISTS + "[]," * ((BASELINE_BYTES - 99) // 3) + "[]]}",
    "tables": LISTS + "{}," * ((BASELINE_BYTES - 99) // 3) + "{}]}",
    "numbers": LISTS + ("9" * 4_000 + ",") * (BASELINE_BYTES // 4_001 - 2) + "1]}",
    "nested": LISTS + "[" * 1_000_000,
    "layers": json.dumps(
        {
            "schema_version": 2,
            "subjects": [
                {
                    "name": "report-125k",
                    "figures": {},
                    "layers": [
                        {"name": str(number), "figures": dict.fromkeys(FIGURES, 1)}
                        for number in range(MAX_OPERATORS)
                    ],
                }
            ],
        }
    ),
    "names": json.dumps(
        {
            "schema_version": 2,
            "subjects": [
                {
                    "name": "report-125k",
                    "figures": {f"{number:x}": 1 for number in range(300_000)},
                    "layers": [],
                }
            ],
        }
    ),
    "figures": json.dumps(
        {
            "schema_version": 2,
            "subjects": [{"name": "report-125k", "figures": {"x" * 10**6: 10**9}, "layers": []}],
        }
    ),
}


@pytest.mark.parametrize("what", BASELINES)
def test_baselines(tmp_path: Path, what: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(BASELINES[what])
    arguments = ("report-125k", "--baseline", str(path), "--json", "--out", str(tmp_path / "out"))
    done = measured("-m", "budgets", *arguments, "--quiet")
    sound = what in ("layers", "names", "figures")
    held(done, *((0, "") if sound else (2, f"baseline {str(path)!r}")))


@pytest.mark.parametrize(
    "text",
    [
        "[model]\nparameters" + ".a" * 30_000 + " = 1",
        "[model" + ".a" * 30_000 + "]",
        "".join(f"[b{number}" + ".a" * 480 + "]\n" for number in range(60)),
        "x = " + "[\n" * 30_000,
    ],
)
def test_limits(tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    done = measured("-m", "budgets", "report-125k", "--limits", str(path), "--quiet")
    held(done, 2, f"limits file {str(path)!r}")


def test_a_limit_that_every_layer_breaks(tmp_path: Path) -> None:
    """Two hundred times over: a million lines."""
    model = tmp_path / "m.tflite"
    model.write_bytes(MODELS["as many operators as may be"][0]())
    limits = tmp_path / "limits.toml"
    text = "[model]\nparameters = 1\nmultiply_accumulates = 1\n"
    limits.write_text(text + "[[layers]]\npattern = '*'\nlive_bytes = 1\n" * 200)
    out = str(tmp_path / "report")
    arguments = (str(model), "--limits", str(limits), "--json", "--out", out, "--quiet")
    done = measured("-m", "budgets", *arguments)
    assert done.code == 1 and len(done.stderr.splitlines()) == MOST_LAYER_VIOLATIONS
    assert done.mebibytes < 200 and done.processor_seconds < 1.0 * slowness()


def test_a_name_without_end(tmp_path: Path) -> None:
    model = Model()
    x, y = (
        model.tensor(name * 900_000, shape, 0.5) for name, shape in (("x", SMALL), ("y", (-1,)))
    )
    model.add("RELU", [x], [y])
    path = tmp_path / "m.tflite"
    path.write_bytes(model.pack([x], [y]))
    done = measured("-m", "budgets", str(path), "--quiet")
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert len(done.stderr) < LONGEST_LINE + 20 and "shape=(-1,)" in done.stderr


def test_patterns_that_match_slowly(tmp_path: Path) -> None:
    """Two hundred patterns of many stars, against names made for them."""
    model = tmp_path / "m.tflite"
    model.write_bytes(chain("RELU", SMALL, 200))
    limits = tmp_path / "limits.toml"
    pattern = "[[layers]]\npattern = '*n" + "*n" * 80 + "{}'\nparameters = 1\n"
    text = "[model]\nparameters = 1\nmultiply_accumulates = 1\n"
    limits.write_text(text + "".join(pattern.format(number) for number in range(200)))
    done = measured("-m", "budgets", str(model), "--limits", str(limits), "--quiet")
    held(done, 2, "matches no layer")
