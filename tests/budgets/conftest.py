"""Graphs and files that several tests of the counts share."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firmware_ref.graph import Graph, Operator, Quantization, Tensor

QUANTIZED = Quantization(scale=(0.5,), zero_point=(0,))


def make_tensor(
    name: str, shape: tuple[int, ...], dtype: str = "int8", constant: bool = False
) -> Tensor:
    """A quantised tensor; a constant holds zeros, which count like any other value."""
    return Tensor(name, shape, dtype, QUANTIZED, np.zeros(shape, dtype) if constant else None)


class GraphBuilder:
    """Appends tensors and operators, each output named after its layer."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []

    def add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, shape: tuple[int, ...], dtype: str = "int8") -> int:
        return self.add(make_tensor(f"constant{len(self.tensors)}", shape, dtype, constant=True))

    def op(
        self, kind: str, name: str, inputs: tuple[int, ...], shape: tuple[int, ...], **options: int
    ) -> int:
        output = self.add(make_tensor(name, shape))
        self.operators.append(Operator(kind, inputs, (output,), options))
        return output

    def build(self) -> Graph:
        return Graph(tuple(self.tensors), tuple(self.operators), (0,), (len(self.tensors) - 1,))


@pytest.fixture
def builder() -> GraphBuilder:
    return GraphBuilder()


@pytest.fixture
def baseline(builder: GraphBuilder) -> Graph:
    """The DCASE 2022 task 1 baseline as its authors' README lists it, operator by operator.

    Source: github.com/marmoi/dcase2022_task1_baseline, README.md, "Model size". The last map goes
    into the first dense layer without a RESHAPE, as the converter leaves it; input and output are
    float32, which the README's tensor sizes (8,160 bytes for 2,040 values) show.
    """
    b = builder
    x = b.add(Tensor("conv2d_input", (1, 40, 51, 1), "float32"))
    x = b.op("QUANTIZE", "conv2d_input_int8", (x,), (1, 40, 51, 1))

    def conv(x: int, name: str, channels_in: int, shape: tuple[int, ...]) -> int:
        weights = b.constant((shape[3], 7, 7, channels_in))
        return b.op("CONV_2D", name, (x, weights, b.constant((shape[3],), "int32")), shape)

    x = conv(x, "activation/Relu", 1, (1, 40, 51, 16))
    x = conv(x, "activation_1/Relu", 16, (1, 40, 51, 16))
    pool = {"filter_height": 5, "filter_width": 5}
    x = b.op("MAX_POOL_2D", "max_pooling2d/MaxPool", (x,), (1, 8, 10, 16), **pool)
    x = conv(x, "activation_2/Relu", 16, (1, 8, 10, 32))
    pool = {"filter_height": 4, "filter_width": 10}
    x = b.op("MAX_POOL_2D", "max_pooling2d_1/MaxPool", (x,), (1, 2, 1, 32), **pool)
    dense = (x, b.constant((100, 64)), b.constant((100,), "int32"))
    x = b.op("FULLY_CONNECTED", "dense/Relu", dense, (1, 100))
    dense = (x, b.constant((10, 100)), b.constant((10,), "int32"))
    x = b.op("FULLY_CONNECTED", "dense_1/BiasAdd", dense, (1, 10))
    x = b.op("SOFTMAX", "Identity_int8", (x,), (1, 10))
    output = b.add(Tensor("Identity", (1, 10), "float32"))
    b.operators.append(Operator("DEQUANTIZE", (x,), (output,)))
    return b.build()


# A real converter writes the file, in a process of its own: importing it takes seconds.
_CONVERT = """
import sys
import numpy as np, tensorflow as tf
x = tf.keras.Input((16, 12, 3), batch_size=1)
y = tf.keras.layers.Conv2D(8, (5, 5), strides=2, padding="same", activation="relu")(x)
y = tf.keras.layers.DepthwiseConv2D((3, 1), padding="same")(y)
y = tf.keras.layers.MaxPool2D(2)(y)
# The converter drops a bias of zeros.
dense = tf.keras.layers.Dense(10, bias_initializer="ones")
y = dense(tf.keras.layers.GlobalAveragePooling2D()(y))
converter = tf.lite.TFLiteConverter.from_keras_model(tf.keras.Model(x, y))
if sys.argv[2] == "int8":
    noise = np.random.default_rng(0).normal(size=(8, 1, 16, 12, 3)).astype(np.float32)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([example] for example in noise)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
open(sys.argv[1], "wb").write(converter.convert())
"""


@pytest.fixture(scope="session")
def convert_small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a small ``.tflite`` by TensorFlow's own converter, ``"int8"`` or ``"float32"``."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip('needs TensorFlow: pip install "tinyscene[convert]"')
    folder = tmp_path_factory.mktemp("tflite")

    def convert(dtype: str) -> Path:
        path = folder / f"{dtype}.tflite"
        if not path.exists():
            command = [sys.executable, "-c", _CONVERT, str(path), dtype]
            subprocess.run(command, check=True, capture_output=True)
        return path

    return convert


@pytest.fixture
def limits(tmp_path: Path) -> Callable[[str], str]:
    """Write a file of limits and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "limits.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
