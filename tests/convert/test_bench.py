"""The table of comparisons, and the stock conversion that figures stand beside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from budgets.count import count_graph, count_network
from convert import bench, emulate
from convert.bench import Comparison, as_document, as_text, main
from convert.stock import Equations, convert_stock
from firmware_ref import graph as graphs
from firmware_ref.arch import preset
from firmware_ref.errors import CheckFailedError
from tests.convert.bundles import conversion
from tests.convert.members import Converted
from train.model import ResNorm

FAST = Comparison("training", "examples/s", 900.0, 300.0, "an eager loop", more_is_better=True)
SMALL = Comparison("arena", "bytes", 1_000, 4_000, "another")
WORSE = Comparison("conversion", "s", 20.0, 10.0, "another")


def test_how_many_times_better_by_hand() -> None:
    assert [c.ratio for c in (FAST, SMALL, WORSE)] == [3.0, 4.0, 0.5]


def test_the_table_is_aligned_and_says_what_plain_is() -> None:
    assert as_text([FAST, SMALL, WORSE]).splitlines() == [
        "                    here       plain   times                 plain is",
        "training           900.0       300.0    3.00  examples/s     (1)",
        "arena              1,000       4,000    4.00  bytes          (2)",
        "conversion          20.0        10.0    0.50  s              (2)",
        "times: how many times better; all of one run on this machine",
        "(1) an eager loop",
        "(2) another",
    ]


def test_the_document_has_ratios_and_versions() -> None:
    document = json.loads(json.dumps(as_document([SMALL])))
    assert document["schema_version"] == 1
    assert document["machine"]["packages"]["tflite-micro"].startswith("0.dev")
    assert document["comparisons"] == [
        {
            "what": "arena",
            "unit": "bytes",
            "here": 1000,
            "plain": 4000,
            "plain_is": "another",
            "more_is_better": False,
            "ratio": 4.0,
        }
    ]


def test_the_command_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(say: Any) -> list[Comparison]:
        say("measuring")
        return [FAST]

    monkeypatch.setattr(bench, "bench", measured)
    assert main(["--out", str(tmp_path)]) == 2
    refusal = capsys.readouterr().err  # and no word of measuring
    assert refusal == f"error: --out '{tmp_path}' is no regular file; give the path of a file\n"
    out = tmp_path / "new" / "bench.json"
    assert main(["--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "measuring\n" and captured.out == as_text([FAST]) + "\n"
    assert main(["--out", str(out), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out == out.read_text()
    assert json.loads(captured.out)["comparisons"][0]["ratio"] == 3.0
    assert main(["--out", str(out / "a")]) == 2


def test_without_an_emulator_it_says_so(small: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate.shutil, "which", lambda tool: None)
    said: list[str] = []
    # Beside itself: everything is one.
    found = bench.on_device(conversion(small.checkpoint), small.model, said.append)
    assert [c.ratio for c in found] == [1.0, 1.0, 1.0]
    assert said[-1] == (
        "C on an emulated board is not measured: arm-none-eabi-gcc is not installed"
    )


def test_an_operator_of_unknown_cost_is_named(small: Converted) -> None:
    count = replace(conversion(small.checkpoint).count, not_costed=("CUSTOM",))
    with pytest.raises(CheckFailedError, match=r"operators of unknown cost: .*CUSTOM"):
        bench._estimated(count)


@pytest.mark.slow
def test_the_equations_of_the_stock_network_are_those_of_training() -> None:
    network, x = preset("report-125k"), torch.randn(2, 3, 5, 7, generator=torch.manual_seed(0))
    trained = ResNorm(network)(x)
    torch.testing.assert_close(Equations(network)(x), trained)
    nudged = replace(network, res_norm_lambda=1.001 * network.res_norm_lambda)
    assert not torch.allclose(Equations(nudged)(x), trained)


def test_the_stock_conversion_is_the_same_network_in_int8(small: Converted) -> None:
    """As many multiply-accumulates as it was trained with, all INT8; and it costs more."""
    here = conversion(small.checkpoint)
    model = convert_stock(here.checkpoint.network)
    count = count_graph(graphs.parse(model), "stock", len(model))
    assert count.macs == count_network(here.checkpoint.network).macs
    assert not count.not_int8
    assert count.instructions[bench.CORE] > here.count.instructions[bench.CORE]
    assert len(model) > len(small.model)
