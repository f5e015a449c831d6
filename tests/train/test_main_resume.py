"""``python -m train --resume``: the same bytes as in one go, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_ref.errors import BAD_INPUT, HOLDS, INTERRUPTED
from tests.train.runs import FILES, arguments, contents, lasting, one_line
from train.__main__ import main
from train.cache import Store


def test_a_second_run_into_the_same_folder_is_refused(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied)
    assert main(arguments(tiny_esc10, copied, "--quiet")) == BAD_INPUT
    assert "already holds a run; add --resume or name another" in one_line(capsys)
    assert before == contents(copied)


def test_resuming_a_finished_run_changes_nothing(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied)
    assert main(arguments(tiny_esc10, copied, "--quiet", "--resume")) == HOLDS
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("report-125k, esc10\n"), "the report is printed again"
    assert before == contents(copied)


Interrupted = Callable[..., None]


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    finished: Path, tiny_esc10: Path, tmp_path: Path, interrupted: Interrupted, after: int
) -> None:
    out = tmp_path / "parts"
    interrupted(arguments(tiny_esc10, out, "--quiet"), after)
    state = "float-state.safetensors" if after == 1 else "qat-state.safetensors"
    assert (out / state).exists() and not (out / "qat.safetensors").exists()
    assert main(arguments(tiny_esc10, out, "--quiet", "--resume")) == HOLDS
    assert lasting(out) == lasting(finished)
    assert {path.name for path in out.iterdir()} == FILES


def test_a_run_interrupted_before_it_began_starts_again(
    finished: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There --resume would be refused: the folder holds no run."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("train.datasets.load_dataset", interrupt)
        assert main(arguments(tiny_esc10, out, "--quiet")) == INTERRUPTED
    assert capsys.readouterr() == ("", "interrupted; nothing was begun, start again\n")
    assert not out.exists()
    assert main(arguments(tiny_esc10, out, "--quiet")) == HOLDS
    assert lasting(out) == lasting(finished)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_interrupted_in_its_features_goes_on_with_and_without_resume(
    finished: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    resume: bool,
) -> None:
    out = tmp_path / "out"
    command = arguments(tiny_esc10, out, "--quiet", "--cache", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", interrupt)
        assert main(command) == INTERRUPTED
    said = capsys.readouterr()
    assert said == ("", "interrupted; the same command with --resume goes on\n")
    assert set(contents(out)) == {"run.json"}
    assert main([*command, "--resume"] if resume else command) == HOLDS
    assert lasting(out) == lasting(finished)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--fold", "2"), "test_fold"),
        (("--set", "seed=5"), "config"),
        (("--set", "qat.epochs=2"), "config"),
        (("--set", "model.dropout=0.2"), "config"),
    ],
)
def test_resuming_as_another_run_is_refused(
    copied: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    key: str,
) -> None:
    """Or figures would be printed of a model that was trained on its own test fold."""
    parts = tmp_path / "parts"
    interrupted(arguments(tiny_esc10, parts, "--quiet"), 1)
    for folder in (copied, parts):
        before = contents(folder)
        assert main(arguments(tiny_esc10, folder, "--quiet", "--resume", *more)) == BAD_INPUT
        assert f"holds a run with another {key}; resume with that one, or" in one_line(capsys)
        assert before == contents(folder)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--fold", "2"), "input_normalization"),
        (("--set", "seed=5"), "config"),
        (("--set", "model.dropout=0.2"), "network"),
    ],
)
@pytest.mark.parametrize("left", ["float", "qat", "float-state"])
def test_a_file_of_another_run_is_refused_whatever_the_folder_says(
    copied: Path,
    tiny_esc10: Path,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
    left: str,
    more: tuple[str, ...],
    key: str,
) -> None:
    """A checkpoint that was put there by hand says itself what it is."""
    folder = tmp_path / "other"
    interrupted(arguments(tiny_esc10, folder, "--quiet", *more), 1)
    name = f"{left}.safetensors"
    if left == "float-state":
        (copied / "float.safetensors").unlink()
        interrupted(arguments(tiny_esc10, tmp_path / "this", "--quiet"), 1)
        (folder / name).write_bytes((tmp_path / "this" / name).read_bytes())
    else:
        (folder / name).write_bytes((copied / name).read_bytes())
    assert main(arguments(tiny_esc10, folder, "--quiet", "--resume", *more)) == BAD_INPUT
    assert f"written by a run with another {key}" in one_line(capsys)


def test_resuming_where_nothing_began_is_refused(
    tiny_esc10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped --out would otherwise train again from the start."""
    for out in (tmp_path, tmp_path / "absent"):
        assert main(arguments(tiny_esc10, out, "--quiet", "--resume")) == BAD_INPUT
        assert f"--resume: {str(out)!r} holds no run; leave --resume out" in one_line(capsys)
        assert not contents(tmp_path) and not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "3", "[" * 100_000, "\xff", '{"config": 1}']
)
def test_a_damaged_claim_is_one_line(
    copied: Path, tiny_esc10: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (copied / "run.json").write_bytes(text.encode("latin-1"))
    assert main(arguments(tiny_esc10, copied, "--quiet", "--resume")) == BAD_INPUT
    assert "holds a run with another config" in one_line(capsys)


def test_a_damaged_state_is_one_line(
    tiny_esc10: Path,
    tmp_path: Path,
    interrupted: Interrupted,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    interrupted(arguments(tiny_esc10, out, "--quiet"), 1)
    state = out / "float-state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(arguments(tiny_esc10, out, "--quiet", "--resume")) == BAD_INPUT
    assert "float-state.safetensors' is damaged" in one_line(capsys)
