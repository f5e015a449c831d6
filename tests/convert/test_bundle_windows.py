"""The windows of the self-test: which seconds of which sounds, and what the oracles say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.bundle.windows import MOST_WINDOWS, chosen, prove
from convert.golden import made_seconds
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.graph import parse
from firmware_ref.signals import as_wav
from tests.convert.bundles import conversion
from tests.convert.members import Converted

RATE = 44_100


@pytest.fixture
def clips(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    """Files of 1, 3 and 7 seconds."""
    paths = []
    for seconds in (1, 3, 7):
        paths.append(str(tmp_path / f"clip {seconds}.wav"))
        sound = 0.1 * rng.standard_normal(seconds * RATE)
        Path(paths[-1]).write_bytes(as_wav(sound, RATE))
    return paths


def test_sounds_made_by_code_where_none_is_named() -> None:
    names = [name for name, _ in chosen([], lambda words: None)]
    assert names == [name for name, _ in made_seconds()] and 1 < len(names) <= MOST_WINDOWS


def test_files_in_turn_and_no_more_than_a_handful(clips: list[str]) -> None:
    said: list[str] = []
    found = chosen(clips, said.append)
    assert [name for name, _ in found] == [
        "clip 1.wav, second 0",
        "clip 3.wav, second 0",
        "clip 7.wav, second 0",
        "clip 3.wav, second 1",
        "clip 7.wav, second 1",
    ]
    assert all(sound.shape == (RATE,) for _, sound in found)
    assert said == ["golden windows: 5 of the 11 seconds given"]


def test_all_seconds_of_a_short_clip_without_a_word(clips: list[str]) -> None:
    said: list[str] = []
    assert len(chosen(clips[1:2], said.append)) == 3 and said == []


def test_too_many_files_and_none(clips: list[str]) -> None:
    with pytest.raises(InputError, match="--golden names 6 files; at most 5"):
        chosen(clips * 2, print)
    with pytest.raises(InputError, match="absent"):
        chosen(["absent.wav"], print)


def test_a_model_that_is_not_the_graph_is_seen(small: Converted) -> None:
    """One weight apart: named by window, operator and layer."""
    good = conversion(small.checkpoint)
    prove(good, made_seconds(["noise"]))
    tensors = list(good.graph.tensors)
    graph = good.graph
    place = next(o.inputs[1] for o in graph.operators if graph.name(o) == "classifier")
    weights = tensors[place].data
    assert weights is not None
    changed = weights.copy()
    changed.reshape(-1)[0] ^= 0x40
    tensors[place] = replace(tensors[place], data=changed)
    wrong = replace(good, graph=replace(parse(good.model), tensors=tuple(tensors)))
    with pytest.raises(CheckFailedError, match=r"^noise: CONV_2D 'classifier' differs from "):
        prove(wrong, made_seconds(["noise"]))
