"""What is kept between epochs: every module, the optimiser, and nothing that is another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firmware_ref.errors import InputError
from tests.train.fitting import copied, same
from train import checkpoint
from train.config import Config, OptimizerConfig
from train.model import build_model
from train.state import Progress, Score, Trained, keep, load_module, module_tensors, restore

TinyConfig = Callable[..., Config]
IDENTITY: dict[str, Any] = {"network": {}, "labels": []}
SGD = OptimizerConfig(epochs=3, learning_rate=0.1)
ADAM = OptimizerConfig(epochs=3, learning_rate=1e-3, algorithm="adam")
PLAIN = OptimizerConfig(epochs=3, learning_rate=0.1, momentum=0.0)
optimisers = pytest.mark.parametrize("config", [SGD, ADAM, PLAIN], ids=["sgd", "adam", "plain"])


class Network(nn.Module):
    """A map with statistics, and a part that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x))
        return found.mean(dim=(2, 3))


def trained(seed: int, config: OptimizerConfig) -> Trained:
    """A network, and an objective with a network of its own."""
    torch.manual_seed(seed)
    return Trained(Network(), nn.Sequential(nn.Linear(3, 2)), config, 0.0)


def steps(found: Trained, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(4, 2, 5, 5, generator=generator)
        loss = found.modules["objective"](found.modules["module"](x)).square().mean()
        found.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        found.optimizer.step()


def everything(found: Trained) -> dict[str, np.ndarray]:
    return {
        f"{kind}/{name}": array
        for kind, module in found.modules.items()
        for name, array in copied(module).items()
    }


@optimisers
def test_a_restored_training_goes_on_to_the_same_bytes(
    tmp_path: Path, config: OptimizerConfig
) -> None:
    path = tmp_path / "state.safetensors"
    whole = trained(0, config)
    steps(whole, 3, seed=1)
    keep(whole, path, "float", IDENTITY, Progress(2))
    steps(whole, 3, seed=2)
    parts = trained(99, config)
    assert restore(parts, path, "float", IDENTITY).epochs_done == 2
    steps(parts, 3, seed=2)
    assert same(everything(whole), everything(parts))
    # The comparison sees an optimiser that has forgotten.
    if config is not PLAIN:
        forgetful = trained(99, config)
        restore(forgetful, path, "float", IDENTITY)
        forgetful.optimizer.state.clear()
        steps(forgetful, 3, seed=2)
        assert not same(everything(whole), everything(forgetful))


def test_the_state_of_a_module_with_masks_is_read_again(tmp_path: Path) -> None:
    """Infinity in a user's module is no error, NaN is; a model may hold neither."""
    path = tmp_path / "state.safetensors"
    found = trained(0, SGD)
    steps(found, 1, seed=1)
    mask = next(iter(found.modules["module"].buffers()))
    mask.view(-1)[0] = -torch.inf
    keep(found, path, "float", IDENTITY, Progress(1))
    assert restore(trained(1, SGD), path, "float", IDENTITY).epochs_done == 1
    with pytest.raises(InputError, match="holds NaN or infinity"):
        checkpoint.load(path)
    mask.view(-1)[0] = torch.nan
    keep(found, path, "float", IDENTITY, Progress(1))
    with pytest.raises(InputError, match="holds NaN or infinity"):
        restore(trained(1, SGD), path, "float", IDENTITY)


@optimisers
def test_what_no_gradient_reaches_is_named(tmp_path: Path, config: OptimizerConfig) -> None:
    path = tmp_path / "state.safetensors"
    found = trained(0, config)
    steps(found, 1, seed=1)
    keep(found, path, "float", IDENTITY, Progress(1))
    state = checkpoint.load(path)
    idle = {"module/unused.weight", "module/unused.bias"}
    expected = set(found.parameters) if config is PLAIN else idle
    assert set(state.manifest["idle"]) == expected
    kinds = {"momentum_buffer"} if config is SGD else {"exp_avg", "exp_avg_sq", "step"}
    names = {name for name in state.tensors if name.partition("/")[0] in kinds}
    moved = set(found.parameters) - idle
    assert names == (set() if config is PLAIN else {f"{k}/{n}" for k in kinds for n in moved})
    assert "module/frozen" in state.tensors and "module/frozen" not in found.parameters


@pytest.mark.parametrize(
    "idle", [None, "module/unused.bias", ["module/other"], [3], [[]], {}, ["objective"]], ids=str
)
def test_names_of_what_is_idle_that_cannot_be_are_refused(tmp_path: Path, idle: object) -> None:
    path = tmp_path / "state.safetensors"
    found = trained(0, SGD)
    steps(found, 1, seed=1)
    keep(found, path, "float", IDENTITY, Progress(1))
    saved = checkpoint.load(path)
    checkpoint.save(path, saved.tensors, {**saved.manifest, "idle": idle})
    with pytest.raises(InputError, match=r"idle=.* are not its parameters; restore the file"):
        restore(trained(0, SGD), path, "float", IDENTITY)


def test_more_that_is_idle_than_is_true_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    found = trained(0, SGD)
    steps(found, 1, seed=1)
    keep(found, path, "float", IDENTITY, Progress(1))
    saved = checkpoint.load(path)
    idle = [*saved.manifest["idle"], "module/conv.bias"]
    checkpoint.save(path, saved.tensors, {**saved.manifest, "idle": idle})
    with pytest.raises(InputError, match=r"momentum_buffer: tensor 'module/conv\.bias' does not"):
        restore(trained(0, SGD), path, "float", IDENTITY)


def test_an_objective_of_other_parts_is_refused(tmp_path: Path) -> None:
    """As one that was switched off in between."""
    path = tmp_path / "state.safetensors"
    found = trained(0, SGD)
    steps(found, 1, seed=1)
    keep(found, path, "float", IDENTITY, Progress(1))
    for objective in (nn.Sequential(), nn.Sequential(nn.Linear(3, 4))):
        other = Trained(Network(), objective, SGD, 0.0)
        with pytest.raises(InputError, match=r"tensor '0\.(bias|weight)'"):
            restore(other, path, "float", IDENTITY)


def test_another_stage_or_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    found = trained(0, SGD)
    steps(found, 1, seed=1)
    keep(found, path, "teacher-1", {**IDENTITY, "config": {"seed": 1}}, Progress(1))
    with pytest.raises(InputError, match="is of stage 'teacher-1-state'; needed is 'teacher-2-s"):
        restore(trained(0, SGD), path, "teacher-2", {**IDENTITY, "config": {"seed": 1}})
    with pytest.raises(InputError, match="written by a run with another config"):
        restore(trained(0, SGD), path, "teacher-1", {**IDENTITY, "config": {"seed": 2}})


def test_without_a_file_nothing_was_done(tmp_path: Path) -> None:
    found = trained(0, SGD)
    before = everything(found)
    progress = restore(found, tmp_path / "absent", "float", IDENTITY)
    assert (progress.epochs_done, progress.score, progress.best) == (0, None, None)
    assert same(everything(found), before)


def test_the_best_is_a_copy() -> None:
    """Later steps must not move it."""
    found = trained(0, SGD)
    module = found.modules["module"]
    first = copied(module)
    progress = Progress().after(1, Score(0.5, 0.5, 1.0), module)
    steps(found, 1, seed=1)
    assert progress.best is not None and same(progress.best, first)
    later = progress.after(2, Score(0.6, 0.5, 1.0), module)
    assert later.epochs_done == 2 and later.best is progress.best
    assert later.after(3, None, module).score == Score(0.5, 0.5, 1.0)
    best = later.after(3, Score(0.4, 0.5, 1.0), module)
    assert best.best is not None and not same(best.best, first)


def test_a_module_is_not_half_loaded_in_silence(tiny_config: TinyConfig) -> None:
    model = build_model(tiny_config().network)
    tensors = {name: value.copy() for name, value in module_tensors(model).items()}
    changed = {name: np.asarray(value + 1) for name, value in tensors.items()}
    load_module(model, changed, "this")
    assert same(module_tensors(model), changed)
    with pytest.raises(InputError, match=r"this: tensor 'classifier.bias' does not fit"):
        load_module(model, {n: v for n, v in tensors.items() if n != "classifier.bias"}, "this")
