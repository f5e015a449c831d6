"""Counts of members of the network family: against torchinfo, and against the bytes of a file."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgets.__main__ import count_subject
from budgets.count import Count, count_graph, count_network
from budgets.deployed import deployed_graph
from budgets.rules import torchinfo_macs
from firmware_ref.arch import PRESETS, Network, layers, preset
from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from tests.firmware_ref.build import fb, write

MEMBERS = 20


def draw(seed: int) -> Network:
    """A random member of the family, every option drawn."""
    rng = np.random.default_rng(seed)
    while True:
        stages = int(rng.integers(1, 4))
        flag = [bool(rng.integers(2)) for _ in range(5)]
        try:
            return Network(
                name=f"member{seed}",
                stem_channels=int(rng.integers(1, 17)),
                widths=tuple(map(int, rng.integers(1, 17, stages))),
                blocks=tuple(map(int, rng.integers(1, 4, stages))),
                pool_after=tuple(n for n in range(1, stages + 1) if rng.integers(2)),
                ssn_bands=int(rng.choice([1, 2, 4])),
                conv_bias=flag[0],
                stem_norm=flag[1],
                head_channels=int(rng.integers(1, 33)) if flag[2] else None,
                head_norm=flag[2] and flag[3],
                res_norm=bool(rng.integers(4)),
                first_res_norm="input" if flag[4] else "stem",
                classes=int(rng.integers(2, 12)),
                input_channels=int(rng.choice([1, 3])),
                input_bands=int(rng.integers(8, 40)),
                input_frames=int(rng.integers(8, 30)),
            )
        except InputError:
            continue  # no band left, or sub-bands that do not divide them


MEMBER = pytest.mark.parametrize("seed", range(MEMBERS))


def test_the_members_differ_in_every_option() -> None:
    members = [draw(seed) for seed in range(MEMBERS)]
    for field in dataclasses.fields(Network):
        if field.name not in ("res_norm_lambda", "res_norm_epsilon", "dropout"):
            assert len({getattr(member, field.name) for member in members}) > 1, field.name


def summarised(network: Network) -> Any:
    """What torchinfo prints of a network, as data."""
    torchinfo = pytest.importorskip("torchinfo")
    build_model = pytest.importorskip("train.model").build_model
    shape = (1, network.input_channels, network.input_bands, network.input_frames)
    return torchinfo.summary(build_model(network), input_size=shape, depth=10, verbose=0)


@pytest.mark.parametrize("name", PRESETS)
def test_torchinfo_agrees_layer_by_layer(name: str) -> None:
    network = preset(name)
    summary = summarised(network)
    count = count_network(network)
    assert summary.total_params == count.parameters
    assert summary.total_mult_adds == count.conventions["torchinfo"].macs

    model = summary.summary_list[0].module
    paths = {id(module): path for path, module in model.named_modules()}
    table = {layer.name: layer for layer in layers(network) if layer.parameters}
    seen = {}
    for info in summary.summary_list:
        if info.is_leaf_layer and info.num_params:
            path = paths[id(info.module)]
            # Sub-spectral norm wraps a batch norm of its own.
            seen[path if path in table else path.removesuffix(".norm")] = info
    assert set(seen) == set(table)
    for path, layer in table.items():
        assert seen[path].num_params == layer.parameters, path
        assert seen[path].macs == torchinfo_macs(layer), path


@MEMBER
def test_torchinfo_agrees_on_the_totals_of_a_member(seed: int) -> None:
    """To the digit, and one parameter or MAC more would not."""
    network = draw(seed)
    summary = summarised(network)
    count = count_network(network)
    found = count.conventions["torchinfo"]
    assert (summary.total_params, summary.total_mult_adds) == (found.parameters, found.macs)
    assert count.parameters == found.parameters
    wider = count_network(dataclasses.replace(network, classes=network.classes + 1))
    assert wider.conventions["torchinfo"] != found


def by_schema(data: bytes) -> dict[str, dict[str, int]]:
    """What each operator of a file costs, read by the schema's generated code, by layer.

    MACs from the shapes of outputs and inputs, not of weights but for the window's size.
    """
    model = fb.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    names = {number: name for name, number in vars(fb.BuiltinOperator).items()}
    found = {}
    for operator in graph.operators:
        kind = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
        shapes = [[int(size) for size in tensor.shape] for tensor in tensors]
        output = graph.tensors[operator.outputs[0]]
        positions, channels = math.prod(map(int, output.shape[:-1])), int(output.shape[-1])
        stored = [model.buffers[tensor.buffer].data for tensor in tensors]
        sizes = [0 if data is None else len(data) for data in stored]
        row: dict[str, Any] = {"op": kind}
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            row["weight_bytes"], row["bias_bytes"] = sizes[1], sum(sizes[2:])
            row["parameters"] = sizes[1] + sum(sizes[2:]) // 4
            taps = math.prod(shapes[1][1:3]) if kind != "FULLY_CONNECTED" else 1
            into = math.prod(shapes[0]) if kind == "FULLY_CONNECTED" else shapes[0][-1]
            row["macs"] = positions * channels * taps * (1 if "DEPTH" in kind else into)
        else:
            row["other_bytes"] = sum(sizes)
        if kind in ("ADD", "SUB", "MUL", "RSQRT", "LOGISTIC"):
            row["elementwise"] = positions * channels
        if kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            options = operator.builtinOptions
            row["reductions"] = positions * channels * options.filterHeight * options.filterWidth
        found[output.name.decode()] = row
    return found


def disagreements(count: Count, data: bytes) -> list[str]:
    """Layers and figures where a count and the file differ."""
    wanted = by_schema(data)
    figures = ("parameters", "macs", "weight_bytes", "bias_bytes", "other_bytes")
    figures = (*figures, "elementwise", "reductions")
    found = [
        f"{row.name}: {figure}"
        for row in count.layers
        for figure in figures
        if getattr(row, figure) != wanted.get(row.name, {}).get(figure, 0)
    ]
    found += [row.name for row in count.layers if row.op != wanted.get(row.name, {}).get("op")]
    return found + sorted(set(wanted) - {row.name for row in count.layers})


@MEMBER
def test_the_file_of_a_member_agrees(seed: int) -> None:
    """As written, as read again by `graph.parse`, and as planned before there is a file."""
    network = draw(seed)
    graph = deployed_graph(network)
    data = write(graph)
    planned = count_network(network).on_device
    written = count_graph(parse(data), planned.name, len(data))
    assert disagreements(planned, data) == disagreements(written, data) == []
    assert written.layers == planned.layers
    assert written.conventions == planned.conventions
    assert written.sizes == {**planned.sizes, "file": len(data)}
    assert sum(written.parts.values()) == len(data)
    totals = Counter[str]()
    for row in by_schema(data).values():
        totals.update({key: value for key, value in row.items() if isinstance(value, int)})
    assert (written.parameters, written.macs) == (totals["parameters"], totals["macs"])
    assert (written.sizes["weights"], written.sizes["biases"], written.sizes["other"]) == (
        *(totals["weight_bytes"], totals["bias_bytes"], totals["other_bytes"]),
    )


def test_one_nudged_figure_disagrees() -> None:
    network = draw(0)
    data = write(deployed_graph(network))
    count = count_network(network).on_device
    for figure in ("parameters", "macs", "weight_bytes", "bias_bytes", "elementwise"):
        row = count.layers[3]
        nudged = dataclasses.replace(row, **{figure: getattr(row, figure) + 1})
        changed = dataclasses.replace(count, layers=(*count.layers[:3], nudged, *count.layers[4:]))
        assert disagreements(changed, data) == [f"{row.name}: {figure}"]
    assert disagreements(dataclasses.replace(count, layers=count.layers[1:]), data) == [
        count.layers[0].name
    ]


def test_the_shipped_model_agrees() -> None:
    path = Path(__file__).parents[2] / "build" / "bundle" / "model.tflite"
    if not path.is_file():
        pytest.skip("needs the shipped model: ./scripts/demo builds it")
    assert disagreements(count_subject(str(path)), path.read_bytes()) == []


@pytest.mark.parametrize("name", PRESETS)
def test_the_plan_of_a_preset_agrees(name: str) -> None:
    data = write(deployed_graph(preset(name)))
    assert disagreements(count_network(preset(name)).on_device, data) == []
