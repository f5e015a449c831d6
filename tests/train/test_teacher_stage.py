"""Teachers of every kind: the logits that a run learns from are those computed directly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from firmware_ref.arch import preset
from firmware_ref.errors import HOLDS
from tests.train.fitting import copied, same, scores
from tests.train.runs import EVERYTHING, TABLE, arguments, named, with_teacher
from tests.train.stages import Bench, bench
from train import checkpoint, teacher_stage
from train.__main__ import main
from train.data import InputNormalization, over_windows
from train.evaluate import module_logits
from train.model import build_model
from train.prepare import Prepared
from train.state import Score, load_module
from train.teachers import load_table

FACTORY = """
import torch
from torch import nn


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 2))
        self.linear = nn.Linear(3 * 4 * 2, 3)
        self.unused = nn.Linear(2, 2)  # as heads of pretrained networks are

    def forward(self, x):
        return self.linear(self.pool(x).flatten(1))


def build():
    return Teacher()
"""


QTI = named("network", "qti-c40")


def logits_of(found: Bench) -> np.ndarray:
    """What the run's windows are taught, (N, classes)."""
    teacher = found.teachers()
    assert teacher is not None and teacher.dtype == torch.float32
    assert teacher.shape == (len(found.prepared.train), 3)
    return teacher.numpy()


def directly(found: Bench, module: nn.Module, own: InputNormalization | None = None) -> np.ndarray:
    """A module's logits of every training window: those of the window as recorded."""
    normalization = own or found.prepared.normalization
    plain = over_windows(found.prepared.plain, normalization, lambda x: module_logits(module, x))
    return plain[found.prepared.train.moments]


def assert_taught(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of float32 sums."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_comparison_sees_one_nudged_value(rng: np.random.Generator) -> None:
    expected = rng.standard_normal((20, 3))
    nudged = expected.copy()
    nudged[7, 1] += 1e-3
    assert_taught(expected, expected)
    with pytest.raises(AssertionError):
        assert_taught(nudged, expected)


@pytest.fixture
def module_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``package.module:factory`` of a user's package."""
    package = tmp_path / "user" / "tiny_teachers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "linear.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "user")
    return "tiny_teachers.linear:build"


# Kinds


def test_a_network_is_trained_and_asked(tiny_devices: Path, tmp_path: Path) -> None:
    found = bench(tiny_devices, tmp_path, with_teacher(named("network", "qti-c40")))
    taught = logits_of(found)
    saved = checkpoint.load(tmp_path / "teacher-1.safetensors", "float")
    network = dataclasses.replace(preset("qti-c40"), classes=3, first_res_norm="stem")
    assert saved.network == network  # its first ResNorm where that of the config is
    module = build_model(network)
    first = copied(module)
    load_module(module, saved.tensors, "this")
    assert not same(first, saved.tensors)
    assert_taught(taught, directly(found, module))
    assert [(e.stage, e.number, e.epochs) for e in found.epochs] == [
        ("teacher-1", 1, 2),
        ("teacher-1", 2, 2),
    ]
    assert all(e.validation_accuracy is not None for e in found.epochs)
    assert not (tmp_path / "teacher-1-state.safetensors").exists()


def test_two_networks_alike_are_two_teachers(tiny_devices: Path, tmp_path: Path) -> None:
    """The first is what it is alone; the second begins with other weights."""
    one, teacher = bench(tiny_devices, tmp_path / "1", with_teacher(QTI)), logits_of
    alone = teacher(one)
    both = teacher(bench(tiny_devices, tmp_path / "2", with_teacher(QTI, QTI)))
    first, second = (
        checkpoint.load(tmp_path / "2" / f"teacher-{n}.safetensors", "float") for n in (1, 2)
    )
    assert same(checkpoint.load(tmp_path / "1" / "teacher-1.safetensors").tensors, first.tensors)
    module = build_model(second.network)
    load_module(module, second.tensors, "this")
    assert_taught(both, (alone + directly(one, module)) / 2)
    assert not np.allclose(both, alone, rtol=1e-2)


def test_its_best_epoch_is_kept_or_its_last(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are made up: the first epoch is the best."""

    def made_up(module: nn.Module, prepared: Prepared) -> Callable[[], Score]:
        return scores((0.1, 0.5), (0.2, 0.5))

    monkeypatch.setattr(teacher_stage, "validator", made_up)
    found = {}
    for keep in ("best", "last"):
        settings = (*with_teacher(named("network", "qti-c40")), f"teacher.keep={keep}")
        logits_of(bench(tiny_devices, tmp_path / keep, settings))
        found[keep] = checkpoint.load(tmp_path / keep / "teacher-1.safetensors").tensors
    assert not same(found["best"], found["last"])


@pytest.fixture(scope="module")
def teacher_run(tiny_devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its float.safetensors is a teacher for runs on the same recordings."""
    out = tmp_path_factory.mktemp("teacher")
    # Other windows than the runs it teaches: its normalisation is another.
    settings = (*EVERYTHING, "data.train_hop_seconds=0.1", "qat.epochs=0", "seed=3")
    assert main(arguments(tiny_devices, out, "--quiet", settings=settings)) == HOLDS
    return out


def test_a_checkpoint_is_asked_in_its_own_normalisation(
    tiny_devices: Path, tmp_path: Path, teacher_run: Path
) -> None:
    file = teacher_run / "float.safetensors"
    found = bench(tiny_devices, tmp_path, with_teacher(named("checkpoint", file)))
    saved = checkpoint.load(file)
    module = build_model(saved.network)
    load_module(module, saved.tensors, "this")
    own = InputNormalization(saved.metadata.mean, saved.metadata.std)
    assert own != found.prepared.normalization
    taught = logits_of(found)
    assert_taught(taught, directly(found, module, own))
    with pytest.raises(AssertionError):
        assert_taught(taught, directly(found, module))
    assert found.epochs == []


def test_a_table_is_read(tiny_devices: Path, tmp_path: Path) -> None:
    found = bench(tiny_devices, tmp_path, with_teacher(named("table", tiny_devices / TABLE)))
    taught = logits_of(found)
    with np.load(tiny_devices / TABLE) as arrays:
        by_name = dict(zip(arrays["filenames"].tolist(), arrays["logits"], strict=True))
    names = [found.prepared.names[clip] for clip in found.prepared.train.clips]
    np.testing.assert_array_equal(taught, [by_name[name] for name in names])


def test_an_onnx_model_is_asked(tiny_devices: Path, tmp_path: Path) -> None:
    """A linear one, of bands and frames that must not change places."""
    torch.manual_seed(5)
    linear = nn.Linear(3 * 128 * 44, 3, bias=False)
    file, module = tmp_path / "teacher.onnx", nn.Sequential(nn.Flatten(), linear)
    file.write_bytes(onnx_model(linear.weight.detach().numpy().T.copy()))
    found = bench(tiny_devices, tmp_path, with_teacher(named("onnx", file)))
    assert_taught(logits_of(found), directly(found, module))


def onnx_model(matrix: np.ndarray) -> bytes:
    """(N, C, F, T) flattened, times a matrix."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 128, 44])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model.SerializeToString()


def test_a_module_is_fine_tuned_and_asked(
    tiny_devices: Path, tmp_path: Path, module_teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From weights of the user's, which end as others."""
    kept: list[nn.Module] = []

    def load(*arguments: object) -> nn.Module:
        kept.append(load_factory(*arguments))  # type: ignore[arg-type]
        return kept[-1]

    load_factory = teacher_stage.load_factory
    import tiny_teachers.linear  # type: ignore[import-not-found]

    start = {n: t.clone() for n, t in tiny_teachers.linear.build().state_dict().items()}
    weights = tmp_path / "start.safetensors"
    safetensors.torch.save_file(start, weights)
    monkeypatch.setattr(teacher_stage, "load_factory", load)
    teacher = named("module", module_teacher, str(weights))
    found = bench(tiny_devices, tmp_path / "out", with_teacher(teacher))
    taught = logits_of(found)
    (module,) = kept
    assert_taught(taught, directly(found, module))
    moved = {n for n, t in module.state_dict().items() if not torch.equal(t, start[n])}
    assert moved == {"linear.weight", "linear.bias"}
    assert [epoch.stage for epoch in found.epochs] == ["teacher-1"] * 2


def test_a_module_without_weights_begins_as_its_seed_says(
    tiny_devices: Path, tmp_path: Path, module_teacher: str
) -> None:
    teacher = with_teacher(named("module", module_teacher))
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(1000 + len(found))
        found.append(logits_of(bench(tiny_devices, tmp_path / name, (*teacher, f"seed={seed}"))))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_module_resumes_with_parts_that_never_trained(
    tiny_devices: Path,
    tmp_path: Path,
    module_teacher: str,
    interrupted: Callable[..., None],
    after: int,
) -> None:
    settings = (*with_teacher(named("module", module_teacher)), "float.epochs=0", "qat.epochs=0")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(tiny_devices, whole, "--quiet", settings=settings)) == HOLDS
    interrupted(arguments(tiny_devices, parts, "--quiet", settings=settings), after)
    state = checkpoint.load(parts / "teacher-1-state.safetensors")
    assert state.manifest["idle"] == ["module/unused.weight", "module/unused.bias"]
    command = arguments(tiny_devices, parts, "--quiet", "--resume", settings=settings)
    assert main(command) == HOLDS
    assert (parts / "teacher-1.npz").read_bytes() == (whole / "teacher-1.npz").read_bytes()
    assert not (parts / "teacher-1-state.safetensors").exists()


# Several


def test_several_teachers_are_averaged_and_kept_apart(
    tiny_devices: Path, tmp_path: Path, teacher_run: Path
) -> None:
    tables = [
        named("table", tiny_devices / TABLE),
        named("checkpoint", teacher_run / "float.safetensors"),
    ]
    apart = [
        logits_of(bench(tiny_devices, tmp_path / str(n), with_teacher(table)))
        for n, table in enumerate(tables)
    ]
    found = bench(tiny_devices, tmp_path / "both", with_teacher(*tables))
    together = logits_of(found)
    np.testing.assert_array_equal(together, (np.add(*apart, dtype=np.float64) / 2).astype("f4"))
    counts = np.bincount(found.prepared.plain.clips)
    for number, alone in enumerate(apart, start=1):
        written = load_table(
            tmp_path / "both" / f"teacher-{number}.npz", found.prepared.names, counts.tolist(), 3
        )
        np.testing.assert_array_equal(written[found.prepared.train.moments], alone)


def test_logits_that_are_there_are_not_computed_again(
    tiny_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench(tiny_devices, tmp_path, with_teacher(named("network", "qti-c40")))
    first = logits_of(found)
    state = tmp_path / "teacher-1-state.safetensors"
    state.write_bytes(b"left over")
    monkeypatch.setattr(teacher_stage, "build_model", None)
    np.testing.assert_array_equal(logits_of(found), first)
    assert not state.exists()


def test_variations_are_taught_what_the_window_as_recorded_is(
    tiny_devices: Path, tmp_path: Path, teacher_run: Path
) -> None:
    """A corrected or shifted window keeps its teacher's opinion."""
    file = teacher_run / "float.safetensors"
    found = bench(tiny_devices, tmp_path, with_teacher(named("checkpoint", file)))
    taught, train = logits_of(found), found.prepared.train
    for moment in range(len(found.prepared.plain)):
        rows = taught[train.moments == moment]
        assert len(rows) == 3 and (rows == rows[0]).all()
    assert len(np.unique(taught, axis=0)) == len(found.prepared.plain)


def test_no_teachers_are_nothing(tiny_devices: Path, tmp_path: Path) -> None:
    assert bench(tiny_devices, tmp_path, EVERYTHING).teachers() is None
