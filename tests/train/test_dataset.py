"""Splits: whole folds and whole sources, nothing of one side heard on the other."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from firmware_ref.errors import InputError
from train.dataset import Dataset, Recording, hold_out
from train.datasets import load_dataset


def clip(label: int, source: str, number: int, fold: int = 1, device: str = "A") -> Recording:
    name = f"{label}-{source}-{number}-{device}.wav"
    return Recording(name, Path(name), label, fold, source, device)


# Folds


def test_folds_are_disjoint_and_complete() -> None:
    clips = tuple(clip(0, f"s{n}", n, fold=n % 3) for n in range(10))
    dataset = Dataset("made", ("a",), clips)
    tested: list[Recording] = []
    for fold in range(3):
        train, test = dataset.split(fold)
        assert {r.fold for r in test} == {fold} and fold not in {r.fold for r in train}
        assert len(train) + len(test) == 10
        tested += test
    assert collections.Counter(tested) == collections.Counter(clips)


def test_a_fold_that_is_not_there_is_refused() -> None:
    dataset = Dataset("made", ("a",), (clip(0, "a", 0, fold=1), clip(0, "b", 0, fold=2)))
    with pytest.raises(InputError, match=r"fold=3 is not in made; allowed: \[1, 2\]"):
        dataset.split(3)


def test_one_fold_alone_leaves_nothing_to_train_on() -> None:
    with pytest.raises(InputError, match="made has only fold 1; two at least are needed"):
        Dataset("made", ("a",), (clip(0, "a", 0),)).split(1)


def test_unseen_devices_are_kept_out_of_training() -> None:
    clips = tuple(clip(0, f"s{f}", 0, f, d) for f in (1, 2) for d in ("S10", "S4", "A", "B"))
    dataset = Dataset("made", ("a",), clips, frozenset({"S4", "S10"}))
    assert dataset.devices == ("A", "B", "S4", "S10")
    train, test = dataset.split(1)
    assert [r.device for r in train] == ["A", "B"] and {r.fold for r in train} == {2}
    assert [r.device for r in test] == ["S10", "S4", "A", "B"]


def test_a_source_on_both_sides_is_named() -> None:
    """One clip moved to another fold is enough."""
    clips = [clip(0, f"s{n // 4}", n, fold=1 + n // 4) for n in range(12)]
    Dataset("made", ("a",), tuple(clips)).split(2)
    clips[0] = dataclasses.replace(clips[0], fold=2)
    dataset = Dataset("made", ("a",), tuple(clips))
    for fold in (1, 2):
        with pytest.raises(InputError, match=f"made fold={fold} leaks: 1 sources .*'s0' among"):
            dataset.split(fold)
    dataset.split(3)


# Clips held out


def clips(seed: int, classes: int = 5) -> list[Recording]:
    """Classes of 12 to 20 sources with one to five clips each."""
    generator = random.Random(seed)
    return [
        clip(label, f"{label}/{source}", number)
        for label in range(classes)
        for source in range(generator.randint(12, 20))
        for number in range(generator.randint(1, 5))
    ]


def sources(recordings: Sequence[Recording]) -> set[str]:
    return {r.source for r in recordings}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_whole_sources_are_held_out_until_the_fraction_is_reached(
    seed: int, fraction: float
) -> None:
    recordings = clips(seed)
    learn, held = hold_out(recordings, fraction)
    assert not sources(learn) & sources(held)
    assert collections.Counter(learn) + collections.Counter(held) == collections.Counter(recordings)
    for label in range(5):
        mine = [r for r in recordings if r.label == label]
        apart = [r for r in held if r.label == label]
        assert len(apart) >= fraction * len(mine)
        # One source fewer would not have been enough.
        last = max(sources(apart), key=lambda s: hashlib.sha256(s.encode()).hexdigest())
        assert sum(r.source != last for r in apart) < fraction * len(mine)


def test_sources_are_taken_in_the_order_of_their_digests() -> None:
    # By hand: sha256 begins with 2c for "foo", ba for "baz", fc for "bar".
    recordings = [clip(0, name, n) for name in ("bar", "baz", "foo") for n in range(2)]
    for fraction, expected in ((0.1, {"foo"}), (0.33, {"foo"}), (0.34, {"foo", "baz"})):
        assert sources(hold_out(recordings, fraction)[1]) == expected


def test_the_order_of_recordings_does_not_matter() -> None:
    recordings = clips(1)
    expected = [set(part) for part in hold_out(recordings, 0.2)]
    for seed in range(3):
        random.seed(seed)
        shuffled = random.Random(seed).sample(recordings, len(recordings))
        learn, held = hold_out(shuffled, 0.2)
        assert [set(learn), set(held)] == expected
        # Neither part is put into another order.
        assert learn == [r for r in shuffled if r in expected[0]]
        assert held == [r for r in shuffled if r in expected[1]]


def test_clips_of_one_source_stay_together_in_every_class() -> None:
    """A recording cut into clips of two classes is heard on one side only."""
    shared = [clip(label, f"shared{n}", label) for label in (0, 1) for n in range(6)]
    recordings = [*shared, *(clip(1, f"own{n}", n) for n in range(20))]
    learn, held = hold_out(recordings, 0.3)
    assert not sources(learn) & sources(held)
    for label, count in ((0, 6), (1, 26)):
        assert sum(r.label == label for r in held) >= 0.3 * count


def test_what_another_class_takes_along_counts() -> None:
    """Class 1 shares every source with class 0, whose sources are enough for both."""
    recordings = [clip(label, f"s{n}", 0) for label in (0, 1) for n in range(10)]
    _, held = hold_out(recordings, 0.3)
    assert len(sources(held)) == 3 and len(held) == 6


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    recordings = [clip(0, "a", 0), clip(1, "b", 0)]
    assert hold_out(recordings, 0) == (recordings, [])


@pytest.mark.parametrize(
    "recordings",
    [
        [clip(0, "a", 0), clip(0, "b", 0), *(clip(1, "c", n) for n in range(3))],
        # Class 1 has nothing of its own: class 0 takes its only source along.
        [clip(0, "foo", 0), clip(0, "bar", 0), clip(1, "foo", 0)],
    ],
    ids=["one source", "another's source"],
)
def test_a_class_that_would_be_emptied_is_named(recordings: list[Recording]) -> None:
    message = r"validation_fraction=0\.1 leaves class 1 nothing to learn from.*lower it"
    with pytest.raises(InputError, match=message):
        hold_out(recordings, 0.1)


def test_a_collection_of_lone_clips_is_split_quickly() -> None:
    recordings = [clip(n % 10, f"s{n}", n) for n in range(100_000)]
    started = time.process_time()
    _, held = hold_out(recordings, 0.1)
    assert len(held) == 10_000 and time.process_time() - started < 5


@pytest.mark.parametrize("fold", range(1, 6))
def test_esc10_shares_no_source(audio_data: Path, fold: int) -> None:
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8") as stream:
        source_of = {row["filename"]: row["source_id"] for row in csv.DictReader(stream)}
    dataset = load_dataset("esc10", audio_data)
    train, test = dataset.split(fold)
    learn, held = hold_out(train, 0.1)
    folder = audio_data / "esc10"
    names = [
        {source_of[r.path.resolve().relative_to(folder).as_posix()] for r in part}
        for part in (learn, held, test)
    ]
    assert all(not a & b for a, b in itertools.combinations(names, 2))
    counts = collections.Counter(r.label for r in held)
    # 32 clips a class; a tenth is four, and the last source may bring as many more as it has.
    assert set(counts) == set(range(10)) and min(counts.values()) >= 4
    assert len(learn) + len(held) == 320 and len(held) < 0.2 * 320
