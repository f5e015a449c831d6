"""The dataset: folds, windows, normalisation and the draw of an epoch."""

from __future__ import annotations

import collections
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from firmware_ref.audio import read_audio
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, features
from train.data import (
    Dataset,
    EpochSampler,
    InputNormalization,
    Recording,
    data_folder,
    extract,
    load_dataset,
)

DEFINITION = FeatureDefinition()
SECOND = DEFINITION.clip_samples
MakeEsc10 = Callable[..., Path]
HEADER = "filename,label,label_id,fold\n"


# The index


def test_the_index_is_read(tiny_esc10: Path) -> None:
    dataset = load_dataset("esc10", tiny_esc10)
    assert dataset.name == "ESC-10"
    assert dataset.labels == ("Dog bark", "Rain", "Sea waves")
    assert len(dataset.recordings) == 12
    assert dataset == load_dataset("esc10", tiny_esc10 / "esc10")
    for recording in dataset.recordings:
        assert recording.path.is_file()
        assert recording.path.parent.name == dataset.labels[recording.label]


def test_folds_are_disjoint_and_complete(make_esc10: MakeEsc10) -> None:
    dataset = load_dataset("esc10", make_esc10(classes=2, folds=3, clips=1, seconds=(0.1,)))
    tested: list[Recording] = []
    for fold in (1, 2, 3):
        train, test = dataset.split(fold)
        assert {r.path for r in train} & {r.path for r in test} == set()
        assert {r.fold for r in test} == {fold} and fold not in {r.fold for r in train}
        assert len(train) + len(test) == 6
        tested += test
    assert collections.Counter(tested) == collections.Counter(dataset.recordings)


def test_a_fold_that_is_not_there_is_refused(tiny_esc10: Path) -> None:
    with pytest.raises(InputError, match=r"fold=3 is not in ESC-10; allowed: \[1, 2\]"):
        load_dataset("esc10", tiny_esc10).split(3)


def test_one_fold_alone_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    dataset = Dataset("ESC-10", ("a",), (Recording(tmp_path / "a.wav", 0, 1, "a"),))
    with pytest.raises(InputError, match="has only fold 1; two at least are needed"):
        dataset.split(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must number its labels 0, 1, 2"),
        (HEADER, "must number its labels 0, 1, 2"),
        ("filename,label,fold\na.wav,Rain,1\n", "line 2: needs columns filename, label, label_id"),
        ("filename;label;label_id;fold\na.wav;Rain;0;1\n", "line 2: needs columns"),
        (HEADER + "a.wav,Rain,zero,1\n", "line 2: needs columns .* whole numbers"),
        (HEADER + "a.wav,Rain,0,1.5\n", "line 2: needs columns"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Rain\n", "line 3: needs columns"),
        ("label,label_id,fold,filename\nRain,0,1\n", "line 2: needs columns"),
        ("label_id,fold,filename,label\n0,1,a.wav\n", "line 2: needs columns"),
        (HEADER + "a.wav,Rain,1,1\n", "must number its labels 0, 1, 2"),
        (HEADER + "a.wav,Rain,-1,1\n", "must number its labels 0, 1, 2"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Sea,0,1\n", "line 3: label_id 0 has two names"),
        (HEADER + "a.wav,Rain,0,1\nb.wav,Rain,1,1\n", "gives two labels one name"),
        (HEADER + "a.wav,Rain,0,1\na.wav,Rain,0,2\n", "line 3: 'a.wav' is there twice"),
        (HEADER + "a.wav,Rain,0,1\nx/../a.wav,Rain,0,2\n", "line 3: 'x/../a.wav' is there twice"),
        (HEADER + "../a.wav,Rain,0,1\n", "line 2: '../a.wav' points outside"),
        (HEADER + "/etc/passwd,Rain,0,1\n", "line 2: '/etc/passwd' points outside"),
        (HEADER + "a\0.wav,Rain,0,1\n", "line 2"),
        (HEADER + "a\rb.wav,Rain,0,1\n", "meta.csv"),
        (HEADER + "a" * 200_000 + ",Rain,0,1\n", "meta.csv"),
        (HEADER + '"a.wav,Rain,0,1\n' * 3, "meta.csv"),
        (HEADER + "a.wav,Rain,0," + "9" * 5000 + "\n", "line 2: needs columns"),
    ],
    ids=lambda text: repr(text)[-32:],
)
def test_a_hostile_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "meta.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("esc10", tmp_path)
    assert "meta.csv" in str(caught.value)


def test_an_index_of_random_bytes_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    for _ in range(50):
        (tmp_path / "meta.csv").write_bytes(HEADER.encode() + rng.bytes(500))
        with pytest.raises(InputError, match=r"meta\.csv"):
            load_dataset("esc10", tmp_path)


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_esc10: Path
) -> None:
    with pytest.raises(InputError, match=r"meta.csv' cannot be read"):
        load_dataset("esc10", tmp_path)
    with pytest.raises(InputError, match=r"data.dataset='tau' is unknown; allowed: esc10"):
        load_dataset("tau", tiny_esc10)
    monkeypatch.delenv("ASC_DATA", raising=False)
    with pytest.raises(InputError, match="give --data DIR or set ASC_DATA=DIR"):
        data_folder(None)
    with pytest.raises(InputError, match="absent' does not exist"):
        data_folder(str(tmp_path / "absent"))
    monkeypatch.setenv("ASC_DATA", str(tiny_esc10))
    assert data_folder(None) == tiny_esc10
    assert data_folder(str(tmp_path)) == tmp_path, "the argument wins"


def test_the_recordings_of_esc10(audio_data: Path) -> None:
    dataset = load_dataset("esc10", audio_data)
    assert len(dataset.recordings) == 400 and len(dataset.labels) == 10
    counts = collections.Counter((r.fold, r.label) for r in dataset.recordings)
    assert counts == {(fold, label): 8 for fold in range(1, 6) for label in range(10)}
    for fold in range(1, 6):
        train, test = dataset.split(fold)
        assert (len(train), len(test)) == (320, 80)
    # A source recording, cut into several clips, stays on one side of every split.
    with (audio_data / "esc10" / "meta.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    folds_of_source = collections.defaultdict(set)
    for row in rows:
        folds_of_source[row["source_id"]].add(row["fold"])
    assert all(len(folds) == 1 for folds in folds_of_source.values())


# Windows


def recording(path: Path, samples: np.ndarray) -> Recording:
    soundfile.write(path, samples, DEFINITION.sample_rate_hz, subtype="FLOAT")
    return Recording(path, 0, 1, path.name)


def test_evaluation_uses_every_window_of_the_deployed_cut(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    samples = rng.uniform(-0.5, 0.5, round(2.6 * SECOND)).astype(np.float32)
    samples[SECOND : 2 * SECOND] = 0  # silence counts, too
    clip = recording(tmp_path / "a.wav", samples)
    data = extract([clip, Recording(clip.path, 2, 1, "b")], DEFINITION)
    assert data.features.shape == (6, 128, 44, 3) and data.features.dtype == np.float32
    assert data.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert data.clips.tolist() == [0, 0, 0, 1, 1, 1]
    padded = np.pad(samples, (0, 3 * SECOND - len(samples)))
    for number in range(3):
        second = padded[number * SECOND : (number + 1) * SECOND]
        np.testing.assert_array_equal(data.features[number], features(second, DEFINITION))


def test_training_windows_start_every_hop_and_are_active(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    samples = np.zeros(4 * SECOND, np.float32)
    samples[SECOND : SECOND + 100] = rng.uniform(-0.5, 0.5, 100)
    clip = recording(tmp_path / "a.wav", samples)
    data = extract([clip], DEFINITION, hop_seconds=0.25)
    # Of the starts at 0, 1/4, ..., 3 s, those whose second holds the burst at 1 s; not that at 0.
    hop = SECOND // 4
    expected = [features(samples[n * hop : n * hop + SECOND], DEFINITION) for n in range(1, 5)]
    np.testing.assert_array_equal(data.features, expected)
    assert data.clips.tolist() == [0] * 4


def test_a_silent_recording_is_still_trained_on(tmp_path: Path) -> None:
    clip = recording(tmp_path / "a.wav", np.zeros(2 * SECOND, np.float32))
    assert len(extract([clip], DEFINITION, hop_seconds=0.5).features) == 3


def test_every_recording_is_shown_as_progress(tiny_esc10: Path) -> None:
    clips = load_dataset("esc10", tiny_esc10).recordings[:3]
    shown = []

    def progress(items: object, title: str) -> list[Recording]:
        assert isinstance(items, list | tuple)
        shown.append((len(items), title))
        return list(items)

    extract(clips, DEFINITION, progress=progress)
    assert shown == [(3, "features")]


def test_a_recording_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b.wav' is not a file"):
        extract([Recording(tmp_path / "b.wav", 0, 1, "b")], DEFINITION)


def test_a_real_clip_gives_its_windows(audio_data: Path) -> None:
    clip = load_dataset("esc10", audio_data).recordings[0]
    samples = read_audio(clip.path, DEFINITION.sample_rate_hz)
    count = len(samples) // SECOND + (len(samples) % SECOND >= SECOND // 2)
    assert len(extract([clip], DEFINITION).features) == count


# Normalisation


def test_normalisation_is_mean_and_deviation_of_each_channel(rng: np.random.Generator) -> None:
    data = rng.normal([3, -1, 100], [1, 2, 0.1], (7, 4, 5, 3)).astype(np.float32)
    found = InputNormalization.measure(data)
    for channel in range(3):
        values = [float(v) for v in data[..., channel].ravel()]
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        assert found.mean[channel] == pytest.approx(mean, rel=1e-6)
        assert found.std[channel] == pytest.approx(std, rel=1e-5)
        assert float(np.float32(found.mean[channel])) == found.mean[channel]
        assert float(np.float32(found.std[channel])) == found.std[channel]


def test_features_that_never_change_are_refused() -> None:
    data = np.zeros((4, 3, 2, 3), np.float32)
    with pytest.raises(InputError, match="silent"):
        InputNormalization.measure(data)


# Draws


def test_an_epoch_draws_so_many_windows_of_every_clip(rng: np.random.Generator) -> None:
    clips = np.repeat([0, 1, 2], [5, 2, 9])
    for _ in range(20):
        drawn = EpochSampler(clips, 4).draw(rng)
        assert len(drawn) == 12
        for clip, repeated in ((0, False), (1, True), (2, False)):
            own = drawn[clips[drawn] == clip]
            assert len(own) == 4
            assert (len(set(own.tolist())) < 4) == repeated


def test_every_window_is_drawn_as_often_as_any_other(rng: np.random.Generator) -> None:
    sampler = EpochSampler(np.repeat([0, 1], [5, 2]), 3)
    counts = np.zeros(7)
    for _ in range(2000):
        np.add.at(counts, sampler.draw(rng), 1)
    expected = 2000 * 3 / np.array([5] * 5 + [2] * 2)
    # Five standard deviations of a binomial draw.
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_an_epoch_is_in_random_order_and_repeats_with_its_seed() -> None:
    sampler = EpochSampler(np.repeat(np.arange(20), 6), 3)
    draws = [sampler.draw(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], np.sort(draws[0]))
