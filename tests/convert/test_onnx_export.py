"""The ONNX file, run by onnxruntime, against the network in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from convert.onnx_export import export_onnx
from firmware_ref.arch import Network
from firmware_ref.scheme import WEIGHT_AXIS
from tests.convert.members import REPORT, SMALL, device_network, examples
from train.ranges import calibrate

# SAME pads a convolution of stride 2 by 1 and 2 where the size is even, by 2 and 2 where it is odd.
ODD = replace(SMALL, name="odd", input_bands=31, input_frames=43, ssn_bands=1)
HALF_ODD = replace(SMALL, name="half odd", input_bands=32, input_frames=23, input_channels=3)
NETWORKS = [REPORT, SMALL, ODD, HALF_ODD]


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    (logits,) = session.run(["logits"], {"input": x.numpy()})
    return np.asarray(logits)


def assert_equal(found: np.ndarray, wanted: torch.Tensor) -> None:
    atol = 1e-4 * float(wanted.abs().max())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_onnx_computes_what_torch_computes(network: Network, tmp_path: Path) -> None:
    device = device_network(network)
    export_onnx(device, tmp_path / "model.onnx")
    x = examples(network, 1, 3)
    with torch.no_grad():
        assert_equal(run(tmp_path / "model.onnx", x), device(x))

    model = onnx.load(tmp_path / "model.onnx")
    kinds = [node.op_type for node in model.graph.node]
    # Sub-bands alone are padded by an operator of their own.
    padded = [operator.kind == "PAD" for operator in device.graph.operators]
    assert kinds.count("Pad") == sum(padded)
    convolutions = [operator.kind in WEIGHT_AXIS for operator in device.graph.operators]
    assert kinds.count("Conv") == sum(convolutions)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == list(x.shape)


def padding(path: Path) -> dict[str, str | list[int]]:
    """``auto_pad`` or ``pads`` of the first convolution, by attribute name."""
    model = onnx.load(path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in conv.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else list(value)
        for name, value in attributes.items()
        if name in ("auto_pad", "pads")
    }


@pytest.mark.parametrize("network", [SMALL, HALF_ODD], ids=lambda network: network.name)
def test_uneven_padding_is_same_upper(network: Network, tmp_path: Path) -> None:
    """SAME_LOWER in its place, the odd zero first, computes something else."""
    device = device_network(network)
    path = tmp_path / "model.onnx"
    export_onnx(device, path)
    assert padding(path) == {"auto_pad": "SAME_UPPER"}
    model = onnx.load(path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "auto_pad").s = b"SAME_LOWER"
    onnx.save(model, path)
    x = examples(network, 1, 3)
    with torch.no_grad():
        wanted = device(x)
    with pytest.raises(AssertionError):
        assert_equal(run(path, x), wanted)


def test_even_padding_stays_in_numbers(tmp_path: Path) -> None:
    export_onnx(device_network(ODD), tmp_path / "model.onnx")
    assert padding(tmp_path / "model.onnx") == {"pads": [2, 2, 2, 2]}


def test_the_float_network_is_exported_whatever_the_scales(tmp_path: Path) -> None:
    """A network with its grids set is exported without them, and is not changed by it."""
    device = device_network(SMALL)
    export_onnx(device, tmp_path / "before.onnx")
    calibrate(device, [examples(SMALL, 2, 0)], 0)
    quantization = dict(device.quantization)
    export_onnx(device, tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()
    assert device.quantization == quantization
