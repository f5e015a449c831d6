"""Training curves: what is read of a log, what is refused, and that lines are drawn where due."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from firmware_ref.errors import InputError
from train.curves import EPOCHS_FILE, curves_png, read_curves


def log(folder: Path, *epochs: tuple[str, int, float, float | None]) -> Path:
    path = folder / EPOCHS_FILE
    keys = ("stage", "number", "loss", "validation_log_loss")
    lines = [json.dumps(dict(zip(keys, epoch, strict=True))) for epoch in epochs]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_epochs_by_stage_and_of_one_seen_twice_the_last(tmp_path: Path) -> None:
    path = log(tmp_path, ("float", 1, 2.0, 1.5), ("float", 3, 1.0, None), ("qat", 1, 0.5, 0.7))
    with path.open("a") as stream:
        stream.write('{"stage": "float", "number": 3, "loss": 0.9, "validation_log_loss": 0.8}\n')
    found = read_curves(path)
    assert list(found) == ["float", "qat"]
    np.testing.assert_array_equal(found["float"]["loss"], [2.0, math.nan, 0.9])
    np.testing.assert_array_equal(found["float"]["validation_log_loss"], [1.5, math.nan, 0.8])
    np.testing.assert_array_equal(found["qat"]["validation_log_loss"], [0.7])


def test_a_real_run(finished: Path) -> None:
    found = read_curves(finished / EPOCHS_FILE)
    assert {stage: len(series["loss"]) for stage, series in found.items()} == {"float": 2, "qat": 1}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[" * 100_000,
        "5",
        "{}",
        '{"stage": "a", "number": 0, "loss": 1}',
        '{"stage": "a", "number": 1000000000, "loss": 1}',
        '{"stage": "a", "number": true, "loss": 1}',
        '{"stage": "a", "number": 1, "loss": "1"}',
        '{"stage": "a", "number": 1, "loss": true}',
        '{"stage": "a", "number": 1, "loss": 1' + "0" * 400 + "}",
        '{"stage": "a", "number": 1, "loss": 1e39}',
        '{"stage": "a", "number": 1, "loss": -1e999}',
        '{"stage": "a", "number": 1, "loss": NaN}',
        "\n".join(f'{{"stage": "a{n}", "number": 1, "loss": 1}}' for n in range(65)),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / EPOCHS_FILE
    path.write_text(line and line + "\n")
    with pytest.raises(InputError, match="has no epochs; give the one of a run"):
        read_curves(path)


def pixels(runs: list[Any]) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(curves_png(runs)))[:, :, :3]


def test_the_picture_repeats_has_a_panel_a_stage_and_shows_a_change(tmp_path: Path) -> None:
    def curve(*losses: float) -> dict[str, dict[str, np.ndarray]]:
        values = np.array(losses)
        return {"float": {"loss": values, "validation_log_loss": values + 1}}

    one = pixels([curve(3, 2, 1)])
    assert np.array_equal(one, pixels([curve(3, 2, 1)]))
    assert not np.array_equal(one, pixels([curve(3, 2.1, 1)]))
    two_stages = [{**curve(3, 2, 1), "qat": curve(1)["float"]}, curve(2, 1)]
    assert pixels(two_stages).shape[1] == 2 * one.shape[1]
