"""The teachers of a run: trained or read, and asked once for the logits of every window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firmware_ref.arch import Network, preset
from firmware_ref.errors import InputError
from train import checkpoint, distributed, loop
from train.config import TRAINED_TEACHERS, Config, TeacherConfig
from train.data import InputNormalization, over_windows
from train.evaluate import module_logits
from train.float_stage import validator
from train.model import build_model
from train.objective import LabelObjective
from train.prepare import Prepared
from train.state import Score, load_module, module_tensors
from train.teachers import average, load_factory, load_onnx, load_table, save_table


def teacher_logits(
    config: Config,
    prepared: Prepared,
    identity: Mapping[str, Any],
    out: Path,
    device: torch.device,
    report: Callable[[loop.Epoch], None],
) -> Tensor | None:
    """The mean logits of all teachers, (N, classes) float32 on the CPU, of every training window.

    They hear a recording as it is; what they say of a window holds for its variations. Each
    teacher's own logits are written to ``teacher-N.npz``, a table for other runs too, and read
    from there where this run has them already. None without teachers.
    """
    teachers = config.distillation.teachers
    if not teachers:
        return None
    counts = np.bincount(prepared.plain.clips, minlength=len(prepared.names))
    # What is read comes before what is trained: a file that does not fit costs no epoch.
    numbered = sorted(enumerate(teachers, start=1), key=lambda t: t[1].kind in TRAINED_TEACHERS)
    tables = {}
    for number, teacher in numbered:
        path = out / f"teacher-{number}.npz"
        there = path.exists()
        distributed.barrier()  # every process has looked
        if not there:
            stage = _TeacherStage(config, prepared, identity, out, device, report, number)
            names = np.repeat(np.array(prepared.names), counts).tolist()
            logits = stage.logits(teacher, counts)
            if distributed.is_first():
                save_table(path, names, logits)
            distributed.barrier()
        distributed.remove(_state_file(out, number))
        classes = config.network.classes
        tables[number] = load_table(path, prepared.names, counts.tolist(), classes)
    found = average([tables[number] for number in sorted(tables)])
    return torch.from_numpy(found[prepared.train.moments])


def check_teachers(teachers: Sequence[TeacherConfig], network: Network) -> None:
    """Refuse what names, files and a module's code already tell, before anything is computed."""
    for teacher in teachers:
        if teacher.kind == "network":
            preset(teacher.source)
        elif teacher.kind == "module":
            shape = network.input_channels, network.input_bands, network.input_frames
            load_factory(teacher.source, shape, network.classes, teacher.weights or None)
        elif not Path(teacher.source).is_file():
            raise InputError(
                f"config distillation.teachers: {teacher.kind} source={teacher.source!r} is not a "
                "file; give the path of one"
            )


def _state_file(out: Path, number: int) -> Path:
    return out / f"teacher-{number}-state.safetensors"


class _TeacherStage:
    """One teacher: what its logits are, by kind."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        identity: Mapping[str, Any],
        out: Path,
        device: torch.device,
        report: Callable[[loop.Epoch], None],
        number: int,
    ) -> None:
        self.config, self.prepared, self.out = config, prepared, out
        self.identity, self.device, self.report = identity, device, report
        self.name, self.state = f"teacher-{number}", _state_file(out, number)
        # Of several networks alike each begins elsewhere.
        self.seed = config.seed + number - 1

    def logits(self, teacher: TeacherConfig, counts: np.ndarray) -> np.ndarray:
        """(n, classes) float32 of every training window as recorded."""
        classes = self.config.network.classes
        if teacher.kind == "table":
            return load_table(teacher.source, self.prepared.names, counts.tolist(), classes)
        if teacher.kind == "onnx":
            onnx = load_onnx(teacher.source, self._input_shape(), classes)
            return self._ask(lambda x: onnx(x.transpose(0, 3, 1, 2)))
        if teacher.kind == "checkpoint":
            return self._checkpoint(teacher)
        module = (self._network if teacher.kind == "network" else self._module)(teacher)
        return self._ask(lambda x: module_logits(module, x))

    def _ask(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        normalization: InputNormalization | None = None,
    ) -> np.ndarray:
        own = normalization or self.prepared.normalization
        return over_windows(self.prepared.plain, own, compute)

    def _network(self, teacher: TeacherConfig) -> nn.Module:
        """A preset of ours, trained from scratch on the same windows."""
        network = _beside(preset(teacher.source), self.config.network)
        torch.manual_seed(self.seed)
        model = build_model(network)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        identity = {**self.identity, "network": network.to_dict()}
        self._train(model, identity)
        tensors = module_tensors(model)
        checkpoint.save(
            self.out / f"{self.name}.safetensors", tensors, {"stage": "float", **identity}
        )
        return model

    def _checkpoint(self, teacher: TeacherConfig) -> np.ndarray:
        """Of a float checkpoint of one of our networks, which heard neither test nor validation."""
        saved = checkpoint.load(teacher.source, "float")
        found = _what_decides(saved.manifest)
        for key, wanted in _what_decides(self.identity).items():
            if found[key] != wanted:
                raise InputError(
                    f"teacher {teacher.source!r} was trained with another {key}, {found[key]!r}; "
                    f"needed is {wanted!r}, so that it has heard no recording to test or validate "
                    "on"
                )
        checkpoint.check_size(saved, teacher.source)
        module = build_model(saved.network)
        load_module(module, saved.tensors, f"teacher {teacher.source!r}")
        normalization = InputNormalization(saved.metadata.mean, saved.metadata.std)
        return self._ask(lambda x: module_logits(module, x), normalization)

    def _module(self, teacher: TeacherConfig) -> nn.Module:
        """A module of the user's, fine-tuned on the same windows."""
        torch.manual_seed(self.seed)
        classes, weights = self.config.network.classes, teacher.weights or None
        module = load_factory(teacher.source, self._input_shape(), classes, weights)
        self._train(module, self.identity)
        return module

    def _input_shape(self) -> tuple[int, int, int]:
        """(C, F, T) of the network's input."""
        network = self.config.network
        return network.input_channels, network.input_bands, network.input_frames

    def _train(self, module: nn.Module, identity: Mapping[str, Any]) -> None:
        """By the same loop as the network itself, against the labels."""
        optimizer = self.config.teacher_stage
        assert optimizer is not None
        module.to(self.device)
        stage = loop.Stage(
            self.name,
            optimizer,
            LabelObjective(),
            validate=self._validator(module),
            compute=self.config.compute,
        )
        data = self.prepared.training_set(self.config, self.device)
        loop.fit(module, data, self.config, stage, identity, self.state, self.report)

    def _validator(self, module: nn.Module) -> Callable[[], Score] | None:
        return None if self.prepared.validation is None else validator(module, self.prepared)


def _what_decides(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which recordings a run learns from, and what they are to it."""
    found = {key: manifest.get(key) for key in ("dataset", "labels", "features")}
    values: Any = manifest
    for key in ("config", "data", "validation_fraction"):
        values = values.get(key) if isinstance(values, Mapping) else None
    return {**found, "validation_fraction": values}


def _beside(network: Network, wanted: Network) -> Network:
    """A preset for the classes and the input of another network, its first ResNorm at its place."""
    return replace(
        network,
        first_res_norm=wanted.first_res_norm,
        classes=wanted.classes,
        input_channels=wanted.input_channels,
        input_bands=wanted.input_bands,
        input_frames=wanted.input_frames,
    )
