"""A model measured again: the run's figures, by device, and what it may be measured on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from convert.flatbuffer import write
from firmware_ref.errors import HOLDS, InputError
from firmware_ref.graph import METADATA_NAME
from firmware_ref.quantize import quantize_graph
from tests.train.runs import EVERYTHING, arguments
from tests.train.stages import no_warning, source
from train import checkpoint, qat_checkpoint
from train.__main__ import main
from train.assess import assess
from train.dataset import Dataset
from train.datasets import load_dataset

MODELS = ("float.safetensors", "qat.safetensors", "model.tflite")


@pytest.fixture(scope="module")
def run_of_devices(tiny_devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its device model beside it; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "devices"
    assert main(arguments(tiny_devices, out, "--quiet", settings=EVERYTHING)) == HOLDS
    saved, device = qat_checkpoint.load(out / "qat.safetensors")
    metadata = {METADATA_NAME: json.dumps(dict(saved.manifest)).encode()}
    constants = device.float_constants()
    graph = quantize_graph(device.graph, constants, device.quantization, metadata)
    (out / "model.tflite").write_bytes(write(graph))
    return out


@pytest.fixture(scope="module")
def dataset(tiny_devices: Path) -> Dataset:
    return load_dataset("esc10-devices", tiny_devices)


@pytest.mark.parametrize("file", MODELS)
def test_the_figures_are_those_of_the_run(
    run_of_devices: Path, dataset: Dataset, file: str
) -> None:
    """Of every device, also the one that training never heard, with the same intervals."""
    report = assess(run_of_devices / file, dataset, None, source(), no_warning)
    written = json.loads((run_of_devices / "metrics.json").read_text())["metrics"]
    (kind,) = report.metrics
    found = json.loads(json.dumps(report.to_dict()))["metrics"]
    assert found == {kind: written[kind]}
    assert kind == {"model.tflite": "int8"}.get(file, file.partition(".")[0])
    assert found[kind]["device_clips"] == {"A": 3, "B": 3, "S": 3}
    assert found[kind]["seen_devices"] == ["A", "B"]
    nudged = {**written[kind], "clip_log_loss": written[kind]["clip_log_loss"] + 1e-9}
    assert found[kind] != nudged


@pytest.mark.parametrize("file", MODELS)
def test_only_the_fold_it_never_heard(run_of_devices: Path, dataset: Dataset, file: str) -> None:
    model = run_of_devices / file
    assert assess(model, dataset, 1, source(), no_warning).split == "fold 1"
    with pytest.raises(InputError, match="kept fold 1 apart in training, not fold 2; measure it"):
        assess(model, dataset, 2, source(), no_warning)


def test_a_model_that_does_not_say_its_fold_is_refused(
    run_of_devices: Path, dataset: Dataset, tmp_path: Path
) -> None:
    saved = checkpoint.load(run_of_devices / "float.safetensors")
    path = tmp_path / "old.safetensors"
    checkpoint.save(path, saved.tensors, {**saved.manifest, "dataset": {"name": "ESC-10"}})
    with pytest.raises(InputError, match="does not say which fold it never heard; convert it"):
        assess(path, dataset, None, source(), no_warning)


def test_a_network_larger_than_its_file_is_refused_before_it_is_built(
    run_of_devices: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint.load(run_of_devices / "float.safetensors")
    network = {**saved.manifest["network"], "widths": [1000, 1000]}
    path = tmp_path / "large.safetensors"
    checkpoint.save(path, saved.tensors, {**saved.manifest, "network": network})
    monkeypatch.setattr("train.assess.build_model", None)
    with pytest.raises(InputError, match=r"claims [\d,]+ parameters and holds [\d,]+ numbers"):
        assess(path, dataset, None, source(), no_warning)


def test_bad_recordings_of_the_fold_are_told_or_left_out(
    run_of_devices: Path, tiny_devices: Path, tmp_path: Path
) -> None:
    """Those of other folds do not matter."""
    root = Path(shutil.copytree(tiny_devices, tmp_path / "copy"))
    (root / "devices.csv").write_text("device,impulse_response,split\nA,,seen\n")
    for name in ("1-0.wav", "2-1.wav"):
        (root / "esc10" / "Rain" / name).write_bytes(b"no sound")
    found, warned = load_dataset("esc10-devices", root), list[str]()
    model = run_of_devices / "float.safetensors"
    with pytest.raises(InputError, match=r"1 of 3 recordings cannot be used.*1-0\.wav"):
        assess(model, found, None, source(), warned.append)
    skipping = dataclasses.replace(source(), skip_bad=True)
    report = assess(model, found, None, skipping, warned.append)
    assert report.metrics["float"].clips == 2
    assert len(warned) == 2 and warned[1] == "left out 1 of 3 recordings"


@pytest.mark.parametrize("file", MODELS)
def test_folds_of_other_recordings_are_refused(
    run_of_devices: Path, dataset: Dataset, file: str
) -> None:
    """The same labels and fold numbers, and yet it may have heard these recordings."""
    other = dataclasses.replace(dataset, name="mine", same_folds=())
    with pytest.raises(InputError, match=r"trained on 'ESC-10-Devices'.*nothing of mine"):
        assess(run_of_devices / file, other, None, source(), no_warning)
    same = dataclasses.replace(other, same_folds=("ESC-10-Devices",))
    # A recording that has moved to another fold may have been heard.
    (first, *others) = same.recordings
    dealt = (dataclasses.replace(first, source="another place"), *others)
    with pytest.raises(InputError, match="when mine had other recordings or folds"):
        assess(
            run_of_devices / file,
            dataclasses.replace(same, recordings=dealt),
            None,
            source(),
            no_warning,
        )
    report = assess(run_of_devices / file, same, None, source(), no_warning)
    assert report.dataset == "mine"
    # Which of its devices were heard in training is known of the plain recordings alone.
    (metrics,) = report.to_dict()["metrics"].values()
    assert metrics["seen_devices"] == ["A"]
