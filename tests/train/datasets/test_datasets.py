"""Which folder, and which reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.refusals import refused
from tests.train.trees import table
from train.datasets import READERS, data_folder, load_dataset


def test_the_folder_is_the_argument_or_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASC_DATA", raising=False)
    refused(lambda: data_folder(None), "give --data DIR or set ASC_DATA=DIR")
    refused(lambda: data_folder(str(tmp_path / "absent")), "absent' does not exist")
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("ASC_DATA", str(tmp_path / "a"))
    assert data_folder(None) == tmp_path / "a"
    assert data_folder(str(tmp_path)) == tmp_path, "the argument wins"


@pytest.mark.parametrize("name", ["tau", "", "ESC10", "../esc10", "meta.tsv"])
def test_an_unknown_name_is_refused(tmp_path: Path, name: str) -> None:
    allowed = "allowed: esc10, esc10-devices, tau2022, or the path of a .csv with columns filename"
    refused(lambda: load_dataset(name, tmp_path), f"data.dataset={name!r} is unknown", allowed)


@pytest.mark.parametrize("name", [*READERS, "mine.csv"])
def test_an_empty_folder_is_named(tmp_path: Path, name: str) -> None:
    # ESC-10 needs no index.
    words = "holds neither" if name.startswith("esc10") else "cannot be read: No such file"
    refused(lambda: load_dataset(name, tmp_path), f"'{tmp_path}", words)


def test_a_table_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    table(tmp_path / "sub" / "mine.csv", ["filename,scene_label", "a.wav,x", "b.wav,y"])
    dataset = load_dataset("sub/mine.csv", tmp_path)
    assert [r.path for r in dataset.recordings] == [tmp_path / "a.wav", tmp_path / "b.wav"]
