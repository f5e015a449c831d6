"""Operators that pass as free or weighted really run in INT8 in TFLite Micro; others are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from budgets import rules
from budgets.check import check
from budgets.count import count_graph
from budgets.limits import load_limits
from firmware_ref.graph import parse
from tests.budgets.operators import CASES, examples, model_of, steps

COUNTED = sorted(rules.FREE | {*rules.WEIGHTED})
REFUSED = sorted(set(CASES) - set(COUNTED))
FLOAT_ONLY = ("COS", "EXP", "LOG", "POW", "SIN", "SQRT", "SQUARE")

# Each model in a process of its own: an operator that TFLM cannot run may end it.
_RUN = """
import os, sys
from pathlib import Path
import numpy as np
from tflite_micro.python.tflite_micro import runtime

folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.tflite")):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        interpreter = runtime.Interpreter.from_bytes(path.read_bytes(), arena_size=2**20)
        interpreter.set_input(np.load(folder / "x.npy"), 0)
        interpreter.invoke()
        np.save(path.with_suffix(".npy"), interpreter.get_output(0))
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """What TFLite Micro computes, by kind; without those that it does not run."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in CASES:
        (folder / f"{kind}.tflite").write_bytes(model_of(kind))
    np.save(folder / "x.npy", steps())
    command = [sys.executable, "-c", _RUN, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return {path.stem: np.load(path) for path in folder.glob("*.npy") if path.stem != "x"}


def agrees(kind: str, found: np.ndarray) -> bool:
    """Within a step and a half, constants being rounded too, of real arithmetic; and not flat."""
    case = CASES[kind]
    wanted = case.reals(examples())
    if case.out is None:
        return bool(np.array_equal(found, wanted.astype(np.float32)))
    scale, zero = case.out
    wanted = np.clip(wanted, scale * (-128 - zero), scale * (127 - zero))
    return bool(
        found.dtype == np.int8
        and found.shape == wanted.shape
        and len(np.unique(found)) > 1
        and np.abs(scale * (found.astype(float) - zero) - wanted).max() <= 1.5 * scale
    )


def test_every_kind_has_a_case() -> None:
    assert set(COUNTED) <= set(CASES)


@pytest.mark.parametrize("kind", COUNTED)
def test_tflm_runs_it_in_int8(computed: Mapping[str, np.ndarray], kind: str) -> None:
    assert kind in computed, f"{kind} does not run in INT8: it is no free operator"
    assert agrees(kind, computed[kind])
    nudged = computed[kind].copy()
    nudged.flat[5] = nudged.flat[5] - 3 if nudged.flat[5] > 0 else nudged.flat[5] + 3
    assert not agrees(kind, nudged)


@pytest.mark.parametrize("kind", FLOAT_ONLY)
def test_tflm_does_not_run_it_in_int8(computed: Mapping[str, np.ndarray], kind: str) -> None:
    assert kind not in computed


@pytest.mark.parametrize("kind", REFUSED)
def test_another_kind_is_a_violation(kind: str) -> None:
    count = count_graph(parse(model_of(kind)), "m.tflite", file_bytes=1)
    (violation,) = check(count, load_limits())
    assert (violation.limit, violation.value, violation.allowed) == ("operators", 1, 0)
    assert violation.names == (f"y0: {kind}",)


@pytest.mark.parametrize("kind", [kind for kind in COUNTED if kind != "DEQUANTIZE"])
def test_a_kind_of_the_lists_is_none(kind: str) -> None:
    count = count_graph(parse(model_of(kind)), "m.tflite", file_bytes=1)
    assert check(count, load_limits()) == []
    assert count.layers[0].op == kind


def test_a_float_output_is_a_violation_even_of_a_free_operator() -> None:
    count = count_graph(parse(model_of("DEQUANTIZE")), "m.tflite", file_bytes=1)
    (violation,) = check(count, load_limits())
    assert (violation.limit, violation.names) == ("int8", ("y0: float32",))
