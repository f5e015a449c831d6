"""The converted model against its checkpoint, each read without a line of this project."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgets.arena import arena
from budgets.memory_plan import planned
from convert import pipeline
from convert.flatbuffer import write
from firmware_ref.arch import Network, layers
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, parse
from firmware_ref.lowering import lower
from firmware_ref.memory_plan import planned_offsets
from firmware_ref.oracle import ORACLES
from firmware_ref.quantize import quantize_graph
from firmware_ref.verify import verify
from tests.convert.deployed import (
    INDICES,
    Deployed,
    Stored,
    wrong_activations,
    wrong_constants,
)
from tests.convert.drafts import one_ulp
from tests.convert.members import REPORT, SMALL, Converted
from train import qat_checkpoint

# All with int8 kernels in TFLM; it has none for SQRT, SQUARE, LOG or POW.
OPERATORS = {
    *("ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC", "MAX_POOL_2D", "MUL"),
    *("RESHAPE", "RSQRT", "SUB"),
}
OF_SUB_BANDS = {"CONCATENATION", "PAD", "SLICE"}


def network_of(converted: Converted) -> Network:
    return Network.from_dict(converted.manifest()["network"])


def test_every_activation_has_the_scale_of_the_checkpoint(converted: Converted) -> None:
    manifest = converted.manifest()
    assert wrong_activations(Deployed.read(converted.model), manifest) == []
    scales = {entry["scale"] for entry in manifest["activations"].values()}
    assert len(scales) > len(manifest["activations"]) / 2, "the case is not a trivial one"


def test_one_nudged_scale_or_zero_point_is_found(small: Converted) -> None:
    deployed = Deployed.read(small.model)
    for name in small.manifest()["activations"]:
        manifest = small.manifest()
        entry = manifest["activations"][name]
        entry["scale"] = float(np.nextafter(np.float32(entry["scale"]), np.float32(9)))
        assert wrong_activations(deployed, manifest) == [name]
        manifest = small.manifest()
        manifest["activations"][name]["zero_point"] += 1
        assert wrong_activations(deployed, manifest) == [name]
        del manifest["activations"][name]
        assert wrong_activations(deployed, manifest) == [name]


def test_every_constant_is_computed_from_the_checkpoint(converted: Converted) -> None:
    tensors = converted.tensors()
    assert wrong_constants(Deployed.read(converted.model), converted.manifest(), tensors) == []
    assert sum(tensor.size for tensor in tensors.values()) > 500


@pytest.mark.parametrize(
    "name",
    [
        "stem.conv/weight",
        "stage2.block1.frequency_conv.band1/weight",
        "stage1.block2.frequency_conv.band4/weight",
        "stage1.block1.temporal_conv/weight",
    ],
)
def test_one_nudged_constant_is_found(small: Converted, name: str) -> None:
    """The smallest, so that no scale moves, by the least that takes it to the next step."""
    deployed, manifest = Deployed.read(small.model), small.manifest()
    tensors = small.tensors()
    stored = deployed.tensors[name]
    assert stored.data is not None
    place = np.unravel_index(np.abs(stored.data).argmin(), stored.data.shape)
    scale = stored.scales[place[stored.axis] if len(stored.scales) > 1 else 0]
    tensors[name] = tensors[name].copy()
    tensors[name][place] += np.float32(1.01 * scale)
    assert wrong_constants(deployed, manifest, tensors) == [name]
    tensors = {**small.tensors(), "more": tensors[name]}
    assert wrong_constants(deployed, manifest, tensors) == ["more"]


def test_one_nudged_bias_is_found(small: Converted) -> None:
    """A bias has no scale in the file: its step is the input's times the weight's."""
    deployed, manifest, tensors = Deployed.read(small.model), small.manifest(), small.tensors()
    step = manifest["activations"]["stage2.res_norm"]["scale"]
    step *= deployed.tensors["classifier/weight"].scales[2]
    tensors["classifier/bias"] = tensors["classifier/bias"].copy()
    tensors["classifier/bias"][2] += np.float32(1.01 * step)
    assert wrong_constants(deployed, manifest, tensors) == ["classifier/bias"]


def test_one_nudged_value_of_the_model_is_found(small: Converted) -> None:
    """The scale of one channel by one ulp, an integer by one, an axis, a scale of a bias."""
    manifest, tensors = small.manifest(), small.tensors()
    name = "stage1.block2.project/weight"

    def deployed() -> tuple[Deployed, Stored]:
        result = Deployed.read(small.model)
        return result, result.tensors[name]

    model, stored = deployed()
    stored.scales[3] = float(np.nextafter(np.float32(stored.scales[3]), np.float32(9)))
    assert wrong_constants(model, manifest, tensors) == [name]
    model, stored = deployed()
    assert stored.data is not None
    stored.data = stored.data.copy()
    stored.data.flat[-1] ^= 1
    assert wrong_constants(model, manifest, tensors) == [name]
    model, stored = deployed()
    stored.axis = 3
    assert wrong_constants(model, manifest, tensors) == [name]
    model, _ = deployed()
    model.tensors["classifier/bias"].scales = [1.0]
    assert wrong_constants(model, manifest, tensors) == ["classifier/bias"]


@pytest.mark.parametrize(
    "name",
    [
        "stem.res_norm.mean_over_channels/weight",
        "stage1.res_norm.power/weight",
        "stage2.res_norm.mean/bias",
        "stage2.res_norm.gain/res_norm.lambda",
    ],
)
def test_one_nudged_given_value_of_the_model_is_found(small: Converted, name: str) -> None:
    deployed, manifest, tensors = Deployed.read(small.model), small.manifest(), small.tensors()
    stored = deployed.tensors[name]
    assert stored.data is not None
    stored.data = stored.data.copy()
    stored.data.flat[-1] -= 1
    assert wrong_constants(deployed, manifest, tensors) == [name]
    del deployed.tensors[name]
    assert wrong_constants(deployed, manifest, tensors) == [name]


def test_nothing_but_integers_and_known_operators(converted: Converted) -> None:
    deployed = Deployed.read(converted.model)
    with_sub_bands = network_of(converted).ssn_bands > 1
    kinds = OPERATORS | (OF_SUB_BANDS if with_sub_bands else set())
    assert {kind for kind, _, _ in deployed.operators} == kinds
    assert {operator.kind for operator in parse(converted.model).operators} == kinds
    assert {tensor.dtype for tensor in deployed.tensors.values()} == {np.int8, np.int32}
    wide = {name for name, tensor in deployed.tensors.items() if tensor.dtype == np.int32}
    assert {name.rpartition("/")[2] for name in wide} == (
        {"bias", "shape"} | ({"paddings", "begin", "size"} if with_sub_bands else set())
    )
    assert {name for name, tensor in deployed.tensors.items() if not tensor.scales} == wide
    assert (deployed.inputs, deployed.outputs) == (["input"], ["logits"])
    assert deployed.tensors["input"].dtype is deployed.tensors["logits"].dtype is np.int8


def test_names_are_those_of_the_layers(converted: Converted) -> None:
    """Every layer that is not folded away has an output of its name, constants below it."""
    network = network_of(converted)
    deployed = Deployed.read(converted.model)
    outputs = {name for _, _, (name,) in deployed.operators}
    folded = {"batch_norm", "sub_spectral_norm"}
    wanted = {layer.name for layer in layers(network) if layer.kind not in folded}
    assert wanted <= outputs
    shapes = {layer.name: layer.output_shape for layer in layers(network)}
    graph = parse(converted.model)
    for tensor in graph.tensors:
        if tensor.name in wanted:
            _, bands, frames, channels = tensor.shape
            assert shapes[tensor.name] == (channels, bands, frames)
    norms = tuple(f"{layer.name}." for layer in layers(network) if layer.kind == "res_norm")
    trained = {name for name in deployed.constants() if not name.startswith(norms)}
    assert trained == set(converted.tensors())
    short = {tensor.name for tensor in graph.tensors if tensor.data is not None}
    assert short <= {"weight", "bias", "res_norm.lambda", *INDICES}


def test_lambda_and_means_are_the_networks(converted: Converted) -> None:
    """As many as the network has ResNorms, by value: lambda, and means over channels and time."""
    network, deployed = network_of(converted), Deployed.read(converted.model)
    shapes = {layer.name: layer.output_shape for layer in layers(network)}
    norms = [layer.name for layer in layers(network) if layer.kind == "res_norm"]
    assert len(norms) == 1 + len(network.widths)

    def value(name: str) -> np.ndarray:
        stored = deployed.tensors[name]
        assert stored.data is not None and stored.zero_points == [0]
        return stored.data.reshape(-1) * np.float64(stored.scales[0])

    for norm in norms:
        channels, _, frames = shapes[norm]
        wanted = {"gain/res_norm.lambda": np.array([network.res_norm_lambda])}
        for mean in ("mean", "power"):
            wanted[f"{mean}_over_channels/weight"] = np.full(channels, 1 / channels)
            wanted[f"{mean}/weight"] = np.full(frames, 1 / frames)
        for name, expected in wanted.items():
            np.testing.assert_allclose(value(f"{norm}.{name}"), expected, rtol=1e-7)


def test_metadata_are_those_of_the_checkpoint(converted: Converted) -> None:
    manifest = converted.manifest()
    stored = json.loads(parse(converted.model).metadata["tinyscene"])
    for key in ("labels", "features", "input_normalization"):
        assert stored[key] == manifest[key]


def test_quantising_again_gives_the_same_bytes(converted: Converted) -> None:
    saved, device = qat_checkpoint.load(converted.checkpoint)
    graph = quantize_graph(
        device.graph,
        device.float_constants(),
        device.quantization,
        parse(converted.model).metadata,
    )
    assert write(graph) == converted.model
    assert saved.manifest["labels"] == converted.manifest()["labels"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the pipeline read a graph of the test's choice in place of onnx2tf's."""

    def use(graph: Graph) -> None:
        def convert_float(_: Path, folder: Path) -> Path:
            (folder / "float.tflite").write_bytes(write(graph))
            return folder / "float.tflite"

        monkeypatch.setattr("convert.pipeline.convert_float", convert_float)

    return use


def test_the_bytes_do_not_depend_on_the_converters_names(small: Converted, stand_in: Any) -> None:
    tensors = [replace(t, name=f"arith.{n}") for n, t in enumerate(small.exported.tensors)]
    stand_in(replace(small.exported, tensors=tuple(tensors), description="another"))
    stages: list[str] = []
    conversion = pipeline.convert(small.checkpoint, stages.append)
    assert conversion.model == small.model
    assert conversion.graph.tensors[0].name == "input"
    assert [stage for stage in stages if f"] {stage}\n" not in small.stderr] == []


def test_a_graph_that_is_not_the_networks_is_refused(small: Converted, stand_in: Any) -> None:
    (index, weight) = max(
        ((n, t.data) for n, t in enumerate(small.exported.tensors) if t.data is not None),
        key=lambda item: item[1].size,
    )
    data = weight.copy()
    one_ulp(data)
    tensors = list(small.exported.tensors)
    tensors[index] = replace(tensors[index], data=data)
    stand_in(replace(small.exported, tensors=tuple(tensors)))
    with pytest.raises(InputError, match=r"not the network's: .* differs from it; use the pinned"):
        pipeline.convert(small.checkpoint, lambda _: None)


def test_a_model_over_a_limit_is_refused_though_its_network_is_not(
    small: Converted, stand_in: Any, tmp_path: Path
) -> None:
    """The size of the file is known once there is one."""
    limits = tmp_path / "limits.toml"
    limits.write_text(
        "[model]\nparameters = 128_000\nmultiply_accumulates = 30_000_000\n"
        "flatbuffer_bytes = 10_000\n"
    )
    stand_in(small.exported)
    match = r"model\.tflite: flatbuffer_bytes=[\d,]+; allowed are 10,000; "
    with pytest.raises(InputError, match=match):
        pipeline.convert(small.checkpoint, lambda _: None, str(limits))


def test_the_networks_are_the_ones_meant(report: Converted, small: Converted) -> None:
    assert network_of(report) == REPORT
    assert network_of(small) == SMALL
    assert set(small.tensors()) - set(report.tensors()) >= {
        "stage2.block1.frequency_conv.band4/weight",
        "stage1.block1.expand/weight",
    }


def test_the_model_carries_its_plan_of_memory(small: Converted) -> None:
    """That of the network alone, which spares a tenth of the arena; the oracle runs it."""
    graph, plan = parse(small.model), planned(lower(SMALL))
    assert planned_offsets(graph) == planned_offsets(plan) is not None
    assert arena(graph) == arena(plan) != arena(lower(SMALL))
    draws = np.random.default_rng(0)
    inputs = draws.integers(-128, 128, (2, *graph.tensors[0].shape[1:]), np.int8)
    assert verify(graph, small.model, inputs, [ORACLES["tflite-micro"]]).ok
