"""Teachers that are models: ONNX files and factories of a user's, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.train.refusals import refused
from train.teachers import load_factory, load_onnx

CLASSES = 3
SHAPE = (2, 4, 5)
FEATURES = int(np.prod(SHAPE))


def write_onnx(
    path: Path,
    batch: int | str | None = "batch",
    shape: Sequence[int | str] = SHAPE,
    classes: int = CLASSES,
    outputs: int = 1,
    kind: int = TensorProto.FLOAT,
    scale: float = 1.0,
    transpose: bool = False,
) -> np.ndarray:
    """A linear classifier of flattened input as a model; returns its matrix (features, classes)."""
    matrix = np.random.default_rng(1).standard_normal((FEATURES, classes)).astype(np.float32)
    weights = (scale * matrix).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y0"]),
        *(helper.make_node("Neg", ["y0"], [f"y{n}"]) for n in range(1, outputs)),
    ]
    if transpose:
        nodes[1] = helper.make_node("MatMul", ["flat", "w"], ["product"])
        nodes.append(helper.make_node("Transpose", ["product"], ["y0"]))
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info(f"y{n}", kind, None) for n in range(outputs)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return matrix


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    """Seven examples."""
    return rng.standard_normal((7, *SHAPE)).astype(np.float32)


def logits(path: Path, inputs: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """What the model of a file makes of inputs."""
    return load_onnx(path, inputs.shape[1:], CLASSES, batch_size)(inputs)


@pytest.mark.parametrize("batch", ["batch", None, 1, 3, 7, 10])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_model_is_run_over_all_examples(
    tmp_path: Path, inputs: np.ndarray, batch: int | str | None, batch_size: int
) -> None:
    matrix = write_onnx(tmp_path / "m.onnx", batch)
    found = logits(tmp_path / "m.onnx", inputs, batch_size)
    expected = inputs.reshape(7, -1).astype(np.float64) @ matrix
    assert found.dtype == np.float32 and found.shape == (7, CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    nudged = expected.copy()
    nudged[6, 2] += 1e-2
    assert not np.allclose(found, nudged, rtol=1e-4, atol=1e-4)


def test_inputs_in_another_order_of_memory_or_none_at_all(
    tmp_path: Path, inputs: np.ndarray
) -> None:
    write_onnx(tmp_path / "m.onnx", shape=("c", "f", "t"))
    expected = logits(tmp_path / "m.onnx", inputs)
    last = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not last.flags.c_contiguous
    assert np.array_equal(logits(tmp_path / "m.onnx", last), expected)
    assert logits(tmp_path / "m.onnx", inputs[:0]).shape == (0, CLASSES)


def test_a_model_is_loaded_once_for_many_calls(tmp_path: Path, inputs: np.ndarray) -> None:
    write_onnx(tmp_path / "m.onnx")
    run = load_onnx(tmp_path / "m.onnx", SHAPE, CLASSES)
    whole = logits(tmp_path / "m.onnx", inputs)
    (tmp_path / "m.onnx").unlink()
    parts = np.concatenate([run(inputs[:3]), run(inputs[3:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


BAD_MODELS = [
    ({"shape": (2, 5, 4)}, "takes tensor(float) ['batch', 2, 5, 4]; needed is tensor(float)"),
    ({"shape": (40,)}, "['batch', 40]; needed is tensor(float) (batch, 2, 4, 5)"),
    ({"kind": TensorProto.DOUBLE}, "takes tensor(double)"),
    ({"outputs": 2}, "has 1 inputs and 2 outputs; needed is one of each"),
    ({"classes": 4}, "logits are float32 (7, 4); needed are floats of shape (7, 3)"),
    ({"transpose": True}, "logits are float32 (3, 7); needed"),
    ({"scale": 1e38}, "rows of logits hold NaN or numbers beyond float32"),
]


@pytest.mark.parametrize(("options", "message"), BAD_MODELS)
def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, inputs: np.ndarray, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(path, **options)
    refused(lambda: logits(path, inputs), message, f"ONNX teacher {str(path)!r}")


def test_what_onnxruntime_refuses_is_refused(
    tmp_path: Path, inputs: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    refused(lambda: logits(path, inputs), "cannot be read")
    for content in (b"", b"no model" * 20):
        path.write_bytes(content)
        refused(lambda: logits(path, inputs), "cannot be loaded", "export it anew")
    # A reshape to another number of examples.
    write_onnx(path)
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "Reshape"
    model.graph.node[0].input.append("size")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, FEATURES]), "size"))
    path.write_bytes(model.SerializeToString())
    refused(lambda: logits(path, inputs), "cannot be run", "export it anew")
    assert capfd.readouterr().err == ""


# Factories

FACTORIES = """
import torch
from torch import nn

def linear():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 3))

def odd():
    return nn.Flatten()

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(41, 3))

def number():
    return 3

def broken():
    raise RuntimeError("no weights\\nat all")

def wants(size):
    return nn.Flatten()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """The name of a module of a user's, in a package, unlike that of any other test."""
    name = f"user{abs(hash(request.node.name))}"
    package = tmp_path / name
    package.mkdir()
    (package / "teacher.py").write_text(FACTORIES)
    (package / "bad.py").write_text("import a_package_that_nobody_has\n")
    (package / "syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}.teacher"


def test_a_factory_gives_a_module_for_evaluation(module: str) -> None:
    found = load_factory(f"{module}:linear", SHAPE, CLASSES)
    assert not any(m.training for m in found.modules())
    assert all(p.requires_grad for p in found.parameters()), "none is frozen for it"
    assert found(torch.ones(5, *SHAPE)).shape == (5, CLASSES)


def test_its_weights_are_those_of_the_file(module: str, tmp_path: Path) -> None:
    wanted = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 3)).eval()
    safetensors.torch.save_file(wanted.state_dict(), tmp_path / "w.safetensors")
    found = load_factory(f"{module}:linear", SHAPE, CLASSES, tmp_path / "w.safetensors")
    x = torch.randn(4, *SHAPE)
    assert torch.equal(found(x), wanted(x))
    assert not torch.equal(load_factory(f"{module}:linear", SHAPE, CLASSES)(x), wanted(x))


BAD_FACTORIES = [
    (":odd", "gives (2, 40) for a batch of shape (2, 2, 4, 5); it must give (2, 3)"),
    (":pair", "gives tuple for a batch"),
    (":narrow", "failed on zeros of shape (2, 2, 4, 5): RuntimeError: mat1"),
    (":number", "returned a int; it must return a torch.nn.Module"),
    (":broken", "failed: RuntimeError: no weights at all; mend it"),
    (":wants", "failed: TypeError: wants() missing 1 required positional argument"),
    (":absent", "failed: AttributeError"),
    ("x:linear", "failed: ModuleNotFoundError"),
    ("", "must read package.module:factory"),
    (":", "must read package.module:factory"),
]


@pytest.mark.parametrize(("rest", "message"), BAD_FACTORIES)
def test_a_factory_that_does_not_fit_is_refused(module: str, rest: str, message: str) -> None:
    spec = f"{module}{rest}"
    refused(lambda: load_factory(spec, SHAPE, CLASSES), message, f"teacher {spec!r}")


def test_a_module_that_cannot_be_imported_is_refused(module: str) -> None:
    package = module.partition(".")[0]
    for spec, message in (
        (f"{package}.bad:f", "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        (f"{package}.syntax:f", "SyntaxError"),
        (".relative:f", "failed: TypeError"),
        (":f", "must read package.module:factory"),
    ):
        refused(lambda spec=spec: load_factory(spec, SHAPE, CLASSES), message)  # type: ignore[misc]


BAD_WEIGHTS: list[tuple[dict[str, torch.Tensor], str]] = [
    ({"2.weight": torch.ones(3, 40)}, "lacks '2.bias', the first of 1 names"),
    (
        {"2.weight": torch.ones(3, 40), "2.bias": torch.ones(3), "3.bias": torch.ones(1)},
        "has '3.bias', the first of 1 names",
    ),
    (
        {"2.weight": torch.ones(3, 41), "2.bias": torch.ones(3)},
        "'2.weight' is (3, 41); the module has (3, 40)",
    ),
    ({"2.weight": torch.full((3, 40), np.nan), "2.bias": torch.ones(3)}, "'2.weight' holds NaN"),
]


@pytest.mark.parametrize(("tensors", "message"), BAD_WEIGHTS)
def test_weights_of_another_module_are_refused(
    module: str, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, path)
    refused(
        lambda: load_factory(f"{module}:linear", SHAPE, CLASSES, path),
        message,
        f"teacher weights {str(path)!r}",
    )


def test_a_file_that_is_no_safetensors_is_refused(module: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for content in (b"", b"x" * 100, b"\xff" * 64):
        path.write_bytes(content)
        refused(
            lambda: load_factory(f"{module}:linear", SHAPE, CLASSES, path),
            "is no safetensors file",
        )
    path.unlink()
    refused(lambda: load_factory(f"{module}:linear", SHAPE, CLASSES, path), "cannot be read")
