"""Small networks, recordings made by code and configurations that the training tests share."""

from __future__ import annotations

import copy
import csv
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from firmware_ref.arch import Network
from firmware_ref.errors import HOLDS, INTERRUPTED
from firmware_ref.lowering import lower
from tests.train.devices import inputs
from tests.train.runs import TABLE, arguments
from train import loop
from train.__main__ import main
from train.cache import CACHE_VARIABLE
from train.config import Config
from train.config_file import parse_config
from train.data import Windows
from train.datasets import load_dataset
from train.fold import fold
from train.model import BCResNetMod, build_model
from train.qat import DeviceNetwork
from train.ranges import calibrate
from train.state import module_tensors
from train.teachers import save_table

RATE_HZ = 44_100
LABELS = ("Dog bark", "Rain", "Sea waves", "Crying baby", "Clock tick")
MakeEsc10 = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On maps this small more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the features that a user has extracted."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


def write_index(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """An index as ESC-10's, of any rows."""
    with (folder / "meta.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["filename", "label", "label_id", "fold"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def make_esc10(tmp_path_factory: pytest.TempPathFactory) -> MakeEsc10:
    """Write a tree shaped as ESC-10: every class hums at a pitch of its own, under noise."""

    def make(
        classes: int = 3, folds: int = 2, clips: int = 2, seconds: Sequence[float] = (1.3,)
    ) -> Path:
        rng = np.random.default_rng(7)
        root = tmp_path_factory.mktemp("recordings")
        folder = root / "esc10"
        rows: list[dict[str, object]] = []
        for label in range(classes):
            (folder / LABELS[label]).mkdir(parents=True)
            for number in range(folds * clips):
                length = round(seconds[number % len(seconds)] * RATE_HZ)
                time = np.arange(length) / RATE_HZ
                hum = np.sin(2 * np.pi * 300 * 2**label * time + rng.uniform(0, 6))
                sound = 0.2 * hum + 0.02 * rng.standard_normal(length)
                name = f"{LABELS[label]}/{number % folds + 1}-{number}.wav"
                soundfile.write(folder / name, sound, RATE_HZ, subtype="PCM_16")
                row = {"label": LABELS[label], "label_id": label, "fold": number % folds + 1}
                rows.append({"filename": name, **row})
        write_index(folder, rows)
        return root

    return make


@pytest.fixture(scope="session")
def tiny_esc10(make_esc10: MakeEsc10) -> Path:
    """Three classes, two folds, two clips of 1.3 s a class and fold; the folder above esc10/."""
    return make_esc10()


@pytest.fixture(scope="session")
def tiny_devices(make_esc10: MakeEsc10) -> Path:
    """Three classes through three devices, S unheard in training; with a teacher's table.

    One clip a class in fold 1 and two in fold 2: six recordings to train on, three to validate
    with, nine to test on.
    """
    root = make_esc10()
    folder = root / "esc10"
    with (folder / "meta.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["filename"].endswith("1-2.wav")]
    write_index(folder, rows)
    for device, response in (("B", [1.0, 0.6, 0.2]), ("S", [0.5, -0.4])):
        soundfile.write(root / f"{device}.wav", np.array(response), RATE_HZ, subtype="FLOAT")
    lines = ["device,impulse_response,split", "A,,seen", "B,B.wav,seen", "S,S.wav,unseen"]
    (root / "devices.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = [r.name for r in load_dataset("esc10-devices", root).recordings]
    save_table(root / TABLE, names, np.random.default_rng(3).normal(size=(len(names), 3)))
    return root


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    """Every kind of layer, in about 1,500 parameters and on maps of 32 x 20."""
    return Network(
        name="tiny",
        stem_channels=8,
        widths=(8, 12),
        blocks=(2, 1),
        pool_after=(1,),
        conv_bias=True,
        head_channels=16,
        classes=3,
        input_bands=32,
        input_frames=20,
    )


TinyConfig = Callable[..., Config]


@pytest.fixture
def tiny_config(tiny_network: Network) -> TinyConfig:
    """A configuration of two short epochs a stage; keyword arguments replace whole sections."""

    def make(**sections: Any) -> Config:
        stage = {"epochs": 2, "learning_rate": 0.05, "batch_size": 8}
        values = {
            "model": tiny_network.to_dict(),
            "data": {"windows_per_clip": 2, "validation_fraction": 0},
            "float": {**stage, "restart_epochs": [1], "weight_decay": 1e-3},
            "qat": {**stage, "learning_rate": 1e-3, "calibration_batches": 2},
            **sections,
        }
        return parse_config(values, "tiny")

    return make


@pytest.fixture
def tiny_windows(rng: np.random.Generator) -> Windows:
    """24 windows of 12 clips, 3 classes and 2 devices; a class is loud in frames of its own.

    In bands it would not do: residual normalisation makes all bands equally loud.
    """
    labels = np.repeat(np.arange(12) % 3, 2)
    log_mels = rng.standard_normal((24, 32, 20)).astype(np.float32)
    for window, label in zip(log_mels, labels, strict=True):
        window[:, 6 * label : 6 * label + 5] += 2
    clips = np.repeat(np.arange(12), 2)
    numbers = np.arange(24)
    return Windows((log_mels,), 0 * numbers, numbers, labels, clips % 2, clips, numbers)


def random_network(rng: np.random.Generator, number: int) -> Network:
    """Any member of the family that fits 128 x 44."""
    stages = int(rng.integers(1, 5))
    numbers = np.arange(1, stages + 1)
    return Network(
        name=f"random{number}",
        stem_channels=int(rng.integers(8, 65)),
        widths=tuple(int(w) for w in rng.choice([8, 12, 16, 40, 64], stages)),
        blocks=tuple(int(b) for b in rng.integers(1, 3, stages)),
        pool_after=tuple(int(n) for n in numbers[rng.random(stages) < 0.5]),
        ssn_bands=int(rng.choice([1, 2, 4])),
        conv_bias=bool(rng.random() < 0.5),
        stem_norm=bool(rng.random() < 0.5),
        head_channels=int(rng.integers(8, 65)) if rng.random() < 0.6 else None,
        head_norm=bool(rng.random() < 0.5),
        res_norm=bool(rng.random() < 0.8),
        first_res_norm=str(rng.choice(["input", "stem"])),
        classes=int(rng.integers(2, 12)),
        input_channels=int(rng.choice([1, 3])),
    )


@pytest.fixture(scope="session")
def family() -> list[Network]:
    """Twelve random networks, the same in every run; both sorts of each switch are among them."""
    rng = np.random.default_rng(42)
    networks = [random_network(rng, number) for number in range(12)]
    for switch in ("head_norm", "res_norm", "stem_norm", "conv_bias", "first_res_norm"):
        assert len({getattr(network, switch) for network in networks}) == 2
    assert {network.ssn_bands for network in networks} == {1, 2, 4}
    assert {network.head_channels is None for network in networks} == {True, False}
    return networks


BuildTrained = Callable[..., BCResNetMod]


@pytest.fixture(scope="session")
def trained() -> BuildTrained:
    """A network whose batch norms have statistics and affine parts as if trained; in eval mode."""

    def build(network: Network, seed: int = 0) -> BCResNetMod:
        torch.manual_seed(seed)
        model = build_model(network)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.3)
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.3, 2)
        return model.eval()

    return build


BuildDevice = Callable[[BCResNetMod], DeviceNetwork]


@pytest.fixture(scope="session")
def folded() -> BuildDevice:
    """The device graph of a network, batch norms folded, still in float."""

    def build(model: BCResNetMod) -> DeviceNetwork:
        graph = lower(model.network)
        return DeviceNetwork(graph, fold(model.network, module_tensors(model), graph)).eval()

    return build


@pytest.fixture(scope="session", params=[1, 2], ids=["S=1", "S=2"])
def calibrated(
    request: pytest.FixtureRequest,
    tiny_network: Network,
    trained: BuildTrained,
    folded: BuildDevice,
) -> DeviceNetwork:
    """The tiny network on its INT8 grids, with and without sub-bands; not to be changed."""
    device = folded(trained(dataclasses.replace(tiny_network, ssn_bands=request.param)))
    calibrate(device, [inputs(16, 1), inputs(16, 2)], seed=0)
    return device


@pytest.fixture
def quantized(calibrated: DeviceNetwork) -> DeviceNetwork:
    """A copy for each test to change."""
    return copy.deepcopy(calibrated)


@pytest.fixture(scope="session")
def finished(tiny_esc10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "a"
    assert main(arguments(tiny_esc10, out, "--quiet")) == HOLDS
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Sequence[str], int], None]:
    """Stop a run of these arguments after so many epochs of all stages together."""

    def run(command: Sequence[str], after: int) -> None:
        keep, count = loop.keep, 0

        def stop(*parts: Any) -> None:
            nonlocal count
            keep(*parts)
            count += 1
            if count == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(loop, "keep", stop)
            assert main(command) == INTERRUPTED
        capsys.readouterr()

    return run
