from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from budgets.count import Count, Total, count_network
from budgets.limits import Limits, Violation, check, enforce_network, load_limits
from firmware_ref.arch import preset
from firmware_ref.errors import InputError


def test_the_shipped_limits() -> None:
    assert load_limits() == Limits(parameters=128_000, multiply_accumulates=30_000_000)


def test_exactly_on_a_limit_holds_and_one_more_fails() -> None:
    count = count_network(preset("report-125k"))
    limits = Limits(parameters=125_330, multiply_accumulates=8_637_000)
    assert check(count, limits) == []
    found = check(count, dataclasses.replace(limits, parameters=125_329))
    assert found == [Violation("report-125k", "parameters", 125_330, 125_329)]
    found = check(count, dataclasses.replace(limits, multiply_accumulates=8_636_999))
    assert found == [Violation("report-125k", "multiply_accumulates", 8_637_000, 8_636_999)]


def test_tensors_and_operators_are_checked_too() -> None:
    count = Count(
        name="m.tflite",
        kind="tflite",
        layers=(),
        conventions={"plain": Total(1, 1)},
        not_int8=tuple(f"t{i}: float32" for i in range(7)),
        not_counted=("spell: CUSTOM:Magic",),
    )
    tensors, operators = check(count, load_limits())
    assert (tensors.limit, tensors.value, tensors.allowed) == ("int8", 7, 0)
    assert "t0: float32" in tensors.message
    assert "and 2 more" in tensors.message
    assert (operators.limit, operators.value) == ("operators", 1)
    assert "spell: CUSTOM:Magic" in operators.message


def test_enforce_network_lets_a_small_one_pass() -> None:
    assert enforce_network(preset("report-125k")).parameters == 125_330


def test_enforce_network_names_every_broken_limit() -> None:
    with pytest.raises(InputError) as caught:
        enforce_network(preset("qti-c80"))
    message = str(caught.value)
    assert "parameters=314,650; allowed are 128,000" in message
    assert "multiply_accumulates=33,926,360; allowed are 30,000,000" in message


def test_enforce_network_takes_other_limits() -> None:
    roomy = Limits(parameters=400_000, multiply_accumulates=40_000_000)
    assert enforce_network(preset("qti-c80"), roomy).macs == 33_926_360


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "table 'model' is missing"),
        ("model = 3", "model must be a table"),
        ("[model]\nparameters = 1", "'multiply_accumulates' is missing"),
        ("[model]\nparameters = 1\nmultiply_accumulates = 1\nmacs = 1", "unknown key 'macs'"),
        ("[model]\nparameters = 1\nmultiply_accumulates = 1\n[flash]", "unknown table 'flash'"),
        ("[model]\nparameters = 128e3\nmultiply_accumulates = 1", "parameters=128000.0"),
        ("[model]\nparameters = true\nmultiply_accumulates = 1", "parameters=True"),
        ("[model]\nparameters = 0\nmultiply_accumulates = 1", "parameters=0"),
        ("[model]\nparameters = -5\nmultiply_accumulates = 1", "whole number from 1"),
        (f"[model]\nparameters = {'9' * 5000}\nmultiply_accumulates = 1", "not readable TOML"),
        (f"[model]\nparameters = 0x{'f' * 9000}\nmultiply_accumulates = 1", "not readable TOML"),
        ("model = " + "[" * 20_000, "not readable TOML"),
        ("[model", "not readable TOML"),
    ],
)
def test_bad_limit_files_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        load_limits(path)


def test_unreadable_limit_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00[model]")
    (tmp_path / "long.toml").write_text("#" * 100_000, encoding="utf-8")
    for name in ("bytes.toml", "long.toml", "missing.toml", "."):
        with pytest.raises(InputError):
            load_limits(tmp_path / name)
