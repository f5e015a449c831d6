"""The conversion, stage by stage: checkpoint, ONNX, float flatbuffer, INT8 flatbuffer.

The float flatbuffer that onnx2tf makes is held against the device graph operator by operator and
constant by constant; the INT8 one is that same graph with the integers and scales of training,
in place of onnx2tf's own quantisation, which would calibrate again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgets.check import enforce, enforce_network
from budgets.count import Count, count_graph
from budgets.limits import load_limits
from budgets.memory_plan import planned
from convert.flatbuffer import write
from convert.float_flatbuffer import convert_float
from convert.match import MismatchError, match
from convert.onnx_export import export_onnx
from firmware_ref import graph as graphs
from firmware_ref.errors import CheckFailedError
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import METADATA_NAME, Graph
from firmware_ref.lowering import INPUT_NAME
from firmware_ref.quantize import quantize_graph
from firmware_ref.run import Interpreter
from train import qat_checkpoint
from train.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Conversion:
    """What a conversion gives: the model's bytes, read back as a graph, and where it came from."""

    model: bytes
    graph: Graph
    count: Count
    checkpoint: Checkpoint


def convert(
    checkpoint_file: str | Path, say: Callable[[str], None], limits_file: str | None = None
) -> Conversion:
    """Convert a QAT checkpoint; ``say`` is told each stage before it begins.

    ``limits_file`` replaces the shipped limits. Raises `InputError` for a checkpoint that is
    unreadable or whose input the front end cannot make, `CheckFailedError` for one over a limit or
    an export that is not the network.
    """
    saved, device = qat_checkpoint.load(checkpoint_file)
    metadata = {METADATA_NAME: _metadata(saved)}
    limits = load_limits(limits_file)
    enforce_network(saved.network, limits)
    heard = saved.metadata
    # Refused before the time that exporting takes.
    FixedFrontend.of(heard.mean, heard.std, device.quantization[INPUT_NAME])
    constants = device.float_constants()
    with tempfile.TemporaryDirectory(prefix="tinyscene-") as name:
        folder = Path(name)
        onnx_file = folder / "model.onnx"
        say("PyTorch to ONNX")
        export_onnx(device, onnx_file)
        say("ONNX to a float flatbuffer (onnx2tf)")
        exported = graphs.read(convert_float(onnx_file, folder))
        say("match every operator and constant with the device graph")
        try:
            match(exported, device.graph, constants)
        except MismatchError as error:
            raise CheckFailedError(
                f"the graph that onnx2tf wrote is not the network's: {error}; "
                "use the pinned versions (pip install 'tinyscene[convert]')"
            ) from None
    say("write INT8 with the scales of the checkpoint")
    graph = planned(quantize_graph(device.graph, constants, device.quantization, metadata))
    model = write(graph)
    graph = graphs.parse(model)
    Interpreter(graph)  # refuses scales that no kernel can run
    count = count_graph(graph, "model.tflite", len(model))
    enforce(count, limits)
    return Conversion(model, graph, count, saved)


def _metadata(saved: Checkpoint) -> bytes:
    """Labels, features and normalisation, checked, for whoever runs the model from sound."""
    found = saved.metadata
    dataset: dict[str, Any] = {"test_fold": found.test_fold, "name": found.dataset}
    if found.folds is not None:
        dataset["folds"] = found.folds
    if found.selected_on_test:  # said only where it is so: others keep their bytes
        dataset["selected_on_test"] = True
    content = {
        "labels": found.labels,
        "features": found.features.to_dict(),
        "input_normalization": {"mean": found.mean, "std": found.std},
        "dataset": dataset,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
