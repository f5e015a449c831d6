"""A whole run: what chooses its epochs, what it computes on, what it refuses first."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from firmware_ref.errors import BAD_INPUT, CHECK_FAILED, HOLDS, InputError, write_whole
from firmware_ref.features import FeatureDefinition
from tests.train.runs import (
    EVERYTHING,
    FILES,
    SETTINGS,
    arguments,
    contents,
    named,
    one_line,
    with_teacher,
)
from tests.train.stages import bench, source
from train import checkpoint
from train.__main__ import main
from train.config_file import CONFIG_FOLDER, load_config
from train.datasets import load_dataset
from train.run import Console, _check_sizes, _recipe, run, start

# What is refused, and when


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("augmnt.mixup_alpha=0.4", BAD_INPUT, "unknown key 'augmnt'; allowed: seed, model, data"),
        ("augment.mixup=0.4", BAD_INPUT, "unknown config key augment.mixup; allowed: mixup_alpha"),
        ("model.ssn_bands=5", BAD_INPUT, "ssn_bands=5 does not divide the"),
        ("model.widths=[400,400]", CHECK_FAILED, "parameters="),
        (
            "augment.pitch_shift_probability=0.8",
            BAD_INPUT,
            "augment.pitch_shift_probability and spectrum_correction_probability are 1.05 together",
        ),
        (
            "augment.pitch_shift_semitones=[]",
            BAD_INPUT,
            "augment.pitch_shift_semitones=[] leaves no shift; name some",
        ),
        (
            f"distillation.teachers=[{named('oracle', 'x')}]",
            BAD_INPUT,
            "teachers.kind='oracle'; allowed: network, checkpoint, table, onnx, module",
        ),
        ("compute.device=tpu", BAD_INPUT, "compute.device='tpu'; allowed: cpu, cuda, auto"),
        (
            "compute.precision=int8",
            BAD_INPUT,
            "compute.precision='int8'; allowed: float32, bfloat16",
        ),
        ("data.selection=train", BAD_INPUT, "data.selection='train'; allowed: validation, test"),
        ("float.keep=first", BAD_INPUT, "float.keep='first'; allowed: best, last"),
        (
            "qat.learning_rate=1e-6",
            BAD_INPUT,
            "config qat.final_learning_rate=1e-05 is above qat.learning_rate=1e-06",
        ),
        ("compute.threads=0", BAD_INPUT, "compute.threads=0 must be an integer from 1 to 1024"),
    ],
)
def test_a_wrong_configuration_is_refused_before_features(
    tiny_devices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("train.data.extract", None)
    settings = (*EVERYTHING, "model.name=custom")
    command = arguments(tiny_devices, tmp_path / "out", "--quiet", settings=(*settings, change))
    assert main(command) == code
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_teachers_to_train_need_their_section(
    tiny_devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        s for s in with_teacher(named("network", "qti-c40")) if not s.startswith("teacher.")
    ]
    out = tmp_path / "out"
    assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == BAD_INPUT
    assert "config section [teacher] is missing; say how teachers are trained" in one_line(capsys)
    assert not out.exists()


def test_cross_gradient_training_needs_two_devices(
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("train.data.extract", None)
    settings, out = (*SETTINGS, "cross_gradient.epsilon=0.1"), tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == BAD_INPUT
    assert "two devices at least, not 1; switch it off for these" in one_line(capsys)
    assert not out.exists()


# On what it is computed


def test_a_gpu_that_is_not_there_is_one_line(
    tiny_esc10: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings, out = (*SETTINGS, "compute.device=cuda"), tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == BAD_INPUT
    assert (
        one_line(capsys)
        == "error: compute.device='cuda', and torch finds no CUDA GPU; allowed: cpu, auto"
    )
    assert not out.exists()


def test_auto_is_the_cpu_where_there_is_no_gpu(
    finished: Path, tiny_esc10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights to the byte, in a checkpoint that says another configuration."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings, out = (*SETTINGS, "compute.device=auto"), tmp_path / "out"
    assert main(arguments(tiny_esc10, out, "--quiet", settings=settings)) == HOLDS
    for name in ("float", "qat"):
        ours, theirs = (checkpoint.load(o / f"{name}.safetensors").tensors for o in (out, finished))
        assert {n: t.tobytes() for n, t in ours.items()} == {
            n: t.tobytes() for n, t in theirs.items()
        }


def test_so_many_threads_compute(tiny_esc10: Path, tmp_path: Path) -> None:
    threads: list[int] = []
    config = load_config("esc10", (*SETTINGS, "compute.threads=2", "qat.epochs=0"))
    found = bench(tiny_esc10, tmp_path, SETTINGS)
    console = Console(lambda epoch: threads.append(torch.get_num_threads()), lambda line: None)
    try:
        run(config, found.dataset, 1, tmp_path / "out", False, source(), console)
    finally:
        torch.set_num_threads(1)
    assert threads == [2, 2]


# Bad recordings


def test_bad_recordings_are_left_out_with_a_warning(
    make_esc10: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_esc10()
    (data / "esc10" / "Rain" / "2-1.wav").write_bytes(b"no sound")
    command = arguments(data, tmp_path / "out", "--quiet", "--skip-bad")
    assert main(command) == HOLDS
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith("warning: left out: ") and "2-1.wav' cannot be read" in first
    assert second == "warning: left out 1 of 6 recordings"
    # It goes on where the recording is missing still.
    before = contents(tmp_path / "out")
    assert main([*command, "--resume"]) == HOLDS
    assert contents(tmp_path / "out") == before


def test_a_folder_is_claimed_while_a_run_goes_on_and_free_if_nothing_came_of_it(
    tiny_esc10: Path, tmp_path: Path
) -> None:
    config = load_config("esc10", SETTINGS)
    dataset = load_dataset("esc10", tiny_esc10)
    claim = start(config, dataset, 1, tmp_path, resume=False)
    assert claim is not None
    with claim:
        for resume in (False, True):
            with pytest.raises(InputError, match="in use by another process"):
                start(config, dataset, 1, tmp_path, resume)
    other = dataclasses.replace(config, seed=1)
    with start(other, dataset, 2, tmp_path, resume=False) or nullcontext():
        (tmp_path / "float-state.safetensors").touch()
    with pytest.raises(InputError, match="already holds a run"):
        start(other, dataset, 2, tmp_path, resume=False)
    with pytest.raises(InputError, match="another config"):
        start(config, dataset, 2, tmp_path, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_what_a_killed_process_left_half_written_goes_and_nothing_else(
    tiny_esc10: Path, tmp_path: Path, resume: bool
) -> None:
    config = load_config("esc10", SETTINGS)
    dataset = load_dataset("esc10", tiny_esc10)
    with start(config, dataset, 1, tmp_path, resume=False) or nullcontext():
        pass
    others = ("float-state.safetensors", "teacher-12.safetensors", "teacher-1.npz")
    for name in {*FILES, *others, "spectrum-correction.npz", "spectrum-correction.png"}:
        if name != "tensorboard":
            os.close(tempfile.mkstemp(dir=tmp_path, prefix=f".{name}.")[0])
    kept = {".run.json.bak", ".notes.md.original", "run.json.abcdefgh", ".float.txt.abcdefgh"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".run.json.a_folder").mkdir()
    with start(config, dataset, 1, tmp_path, resume) or nullcontext():
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run.json", ".run.json.a_folder", *kept}


def test_a_process_that_trains_keeps_what_it_is_writing(tiny_esc10: Path, tmp_path: Path) -> None:
    """Another, which is refused, does not take it for left over."""
    config = load_config("esc10", SETTINGS)
    dataset = load_dataset("esc10", tiny_esc10)
    with start(config, dataset, 1, tmp_path, resume=False) or nullcontext():
        descriptor, written = tempfile.mkstemp(dir=tmp_path, prefix=".epochs.jsonl.")
        with open(descriptor, "wb"):
            for resume in (False, True):
                with pytest.raises(InputError, match="in use by another process"):
                    start(config, dataset, 1, tmp_path, resume)
        assert Path(written).exists()


def test_a_teacher_of_each_fold_is_one_recipe() -> None:
    def recipe(kind: str, source: str) -> str:
        return _recipe(load_config("esc10-devices", with_teacher(named(kind, source))))

    assert recipe("checkpoint", "fold-1") == recipe("checkpoint", "fold-2")
    assert recipe("checkpoint", "fold-1") != recipe("table", "fold-1")
    assert recipe("network", "qti-c40") != recipe("network", "qti-c80")


def test_what_moves_figures_makes_a_recipe_and_what_names_them_does_not(tmp_path: Path) -> None:
    def recipe(*changes: str, config: str = "esc10") -> str:
        return _recipe(load_config(config, changes))

    copy = tmp_path / "mine.toml"
    copy.write_bytes((CONFIG_FOLDER / "esc10.toml").read_bytes())
    assert recipe(config=str(copy)) == recipe()
    for change in ("compute.device=auto", "compute.threads=7", "compute.compile=true", "seed=3"):
        assert recipe(change) == recipe(), change
    for change in ("compute.precision=bfloat16", "qat.epochs=9", "augment.mixup_alpha=0"):
        assert recipe(change) != recipe(), change

    def tuned(source: str, weights: str) -> str:
        return _recipe(load_config("report", with_teacher(named("module", source, weights))))

    assert tuned("m:f", "fold-1.safetensors") == tuned("m:f", "fold-2.safetensors")
    assert len({tuned("m:f", "a"), tuned("m:g", "a"), tuned("m:f", "")}) == 3


def test_of_two_that_start_at_once_in_a_fresh_folder_one_goes_on(
    tiny_esc10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts while the first writes what claims the folder."""
    config, dataset = load_config("esc10", SETTINGS), load_dataset("esc10", tiny_esc10)
    out = tmp_path / "new" / "out"

    def meanwhile(path: Path, data: bytes) -> None:
        monkeypatch.setattr("train.run.write_whole", write_whole)
        with pytest.raises(InputError, match="in use by another process"):
            start(dataclasses.replace(config, seed=1), dataset, 1, out, resume=False)
        write_whole(path, data)

    monkeypatch.setattr("train.run.write_whole", meanwhile)
    with start(config, dataset, 1, out, resume=False) or nullcontext():
        assert json.loads((out / "run.json").read_text())["config"]["seed"] == 0
        with pytest.raises(InputError, match="in use by another process"):
            start(config, dataset, 1, out, resume=False)


def test_a_disk_that_is_full_leaves_no_claim(
    tiny_esc10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise InputError(f"{str(path)!r} cannot be written: No space left on device")

    monkeypatch.setattr("train.run.write_whole", full)
    with pytest.raises(InputError, match="No space left"):
        start(load_config("esc10", SETTINGS), load_dataset("esc10", tiny_esc10), 1, tmp_path, False)
    assert not (tmp_path / "run.json").exists()


def test_a_claim_that_was_replaced_is_no_claim(
    tiny_esc10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that start at once, the one whose file was replaced does not go on."""
    config = load_config("esc10", SETTINGS)
    dataset = load_dataset("esc10", tiny_esc10)
    flock = fcntl.flock

    def replaced(stream: IO[bytes], how: int) -> None:
        flock(stream, how)
        path = tmp_path / "run.json"
        (tmp_path / "new").write_bytes(path.read_bytes())
        os.replace(tmp_path / "new", path)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(InputError, match="in use by another process"):
        start(config, dataset, 1, tmp_path, resume=False)


@pytest.mark.parametrize("name", ["shopping\u00a0mall", "x" * 101, "a\tb"])
def test_a_name_that_no_model_can_carry_is_refused_at_once(tiny_esc10: Path, name: str) -> None:
    dataset = load_dataset("esc10", tiny_esc10)
    config = load_config("esc10", SETTINGS)
    odd = dataclasses.replace(dataset, labels=(name, *dataset.labels[1:]))
    with pytest.raises(InputError, match="cannot travel with a model; allowed are 1 to 100"):
        _check_sizes(config.network, odd, FeatureDefinition())
    _check_sizes(config.network, dataset, FeatureDefinition())


def test_the_report_says_what_repeats_it(finished: Path) -> None:
    values: dict[str, Any] = json.loads((finished / "metrics.json").read_text())
    recipe = values["provenance"].pop("recipe")
    others = [load_config("esc10", (*SETTINGS, change)) for change in ("seed=7", "float.epochs=9")]
    assert [_recipe(config) == recipe for config in others] == [True, False]
    assert values["provenance"] == {
        "seed": 0,
        "training windows": 12,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    claimed = json.loads((finished / "run.json").read_text())
    config = load_config("esc10", SETTINGS)
    assert claimed == json.loads(
        json.dumps({"config": config.to_dict(), "dataset": "ESC-10", "test_fold": 1})
    )
