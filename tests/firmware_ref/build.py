"""Builds small INT8 flatbuffers with the schema's own generated code, apart from our reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as fb

from firmware_ref.arch import Network
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Quantization, Tensor
from firmware_ref.lowering import lower
from firmware_ref.ops import prepare
from firmware_ref.scheme import SAME_SCALE

TYPES = {"int8": fb.TensorType.INT8, "int32": fb.TensorType.INT32, "float32": fb.TensorType.FLOAT32}
OPTIONS = {
    "CONV_2D": fb.Conv2DOptionsT,
    "DEPTHWISE_CONV_2D": fb.DepthwiseConv2DOptionsT,
    "AVERAGE_POOL_2D": fb.Pool2DOptionsT,
    "MAX_POOL_2D": fb.Pool2DOptionsT,
    "FULLY_CONNECTED": fb.FullyConnectedOptionsT,
    "SOFTMAX": fb.SoftmaxOptionsT,
    "ADD": fb.AddOptionsT,
    "SUB": fb.SubOptionsT,
    "MUL": fb.MulOptionsT,
    "MEAN": fb.ReducerOptionsT,
    "RESHAPE": fb.ReshapeOptionsT,
    "PAD": fb.PadOptionsT,
    "SLICE": fb.SliceOptionsT,
    "STRIDED_SLICE": fb.StridedSliceOptionsT,
    "CONCATENATION": fb.ConcatenationOptionsT,
    "TRANSPOSE": fb.TransposeOptionsT,
    "QUANTIZE": fb.QuantizeOptionsT,
    "SQUARED_DIFFERENCE": fb.SquaredDifferenceOptionsT,
}


@dataclass
class Model:
    """A graph under construction; tensors are named by the caller and numbered in order."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [fb.BufferT()])
    operators: list[Any] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    metadata: list[Any] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        scale: float | Sequence[float] | None = None,
        zero_point: int = 0,
        data: np.ndarray | None = None,
        dtype: str = "int8",
        axis: int = 0,
    ) -> int:
        """Add a tensor (a constant if it has data) and return its index."""
        tensor = fb.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[dtype]
        tensor.buffer = self.buffer(b"" if data is None else data.astype(dtype).tobytes())
        if scale is not None:
            quantization = fb.QuantizationParametersT()
            quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            quantization.zeroPoint = np.full(quantization.scale.size, zero_point, np.int64)
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def buffer(self, data: bytes) -> int:
        """Add a buffer."""
        buffer = fb.BufferT()
        if data:
            buffer.data = np.frombuffer(data, np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def integers(self, name: str, values: Any) -> int:
        """Add an int32 constant (axes, shapes, paddings)."""
        array = np.asarray(values, np.int32)
        return self.tensor(name, array.shape, data=array, dtype="int32")

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator; options by their names in the generated code."""
        if kind not in self.codes:
            self.codes.append(kind)
        operator = fb.OperatorT()
        operator.opcodeIndex = self.codes.index(kind)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if kind in OPTIONS:
            stored = OPTIONS[kind]()
            for name, value in options.items():
                assert hasattr(stored, name), name
                setattr(stored, name, value)
            operator.builtinOptions = stored
            union = OPTIONS[kind].__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(fb.BuiltinOptions, union)
        self.operators.append(operator)

    def pack(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The bytes of the model."""
        model, graph = fb.ModelT(), fb.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model.version, model.subgraphs, model.buffers = 3, [graph], self.buffers
        model.description, model.metadata = "test", self.metadata
        model.operatorCodes = []
        for kind in self.codes:
            code = fb.OperatorCodeT()
            custom = kind.startswith("CUSTOM:")
            code.builtinCode = getattr(fb.BuiltinOperator, "CUSTOM" if custom else kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.customCode = kind.removeprefix("CUSTOM:") if custom else None
            # The versions that carry int8 in these operators; both interpreters accept them.
            code.version = 1 if kind == "RESHAPE" else 2
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def attach(self, name: str, data: bytes) -> None:
        """Add a metadata buffer."""
        entry = fb.MetadataT()
        entry.name, entry.buffer = name, self.buffer(data)
        self.metadata.append(entry)


def random_int8(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Uniform int8 with both ends of the range well represented."""
    values = rng.integers(-128, 128, shape, dtype=np.int8)
    ends = rng.random(shape)
    values[ends < 0.1] = -128
    values[ends > 0.9] = 127
    return values


PADDING = {"SAME": fb.Padding.SAME, "VALID": fb.Padding.VALID}
ACTIVATION = {"NONE": 0, "RELU": 1}
FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "padding": ("padding", PADDING.__getitem__),
    "fused_activation": ("fusedActivationFunction", ACTIVATION.__getitem__),
    "stride_h": ("strideH", int),
    "stride_w": ("strideW", int),
    "filter_height": ("filterHeight", int),
    "filter_width": ("filterWidth", int),
    "depth_multiplier": ("depthMultiplier", int),
    "dilation_h_factor": ("dilationHFactor", int),
    "dilation_w_factor": ("dilationWFactor", int),
    "keep_dims": ("keepDims", bool),
    "keep_num_dims": ("keepNumDims", bool),
    "weights_format": ("weightsFormat", int),
    "axis": ("axis", int),
    "beta": ("beta", float),
    "new_shape": ("newShape", list),
}


def write(graph: Graph) -> bytes:
    """A flatbuffer of a graph of INT8 operators, as `firmware_ref.graph` describes it."""
    model = Model()
    for tensor in graph.tensors:
        found = tensor.quantization
        model.tensor(
            tensor.name,
            tensor.shape,
            found.scale if found else None,
            found.zero_point[0] if found else 0,
            tensor.data,
            tensor.dtype,
            found.axis if found else 0,
        )
    for operator in graph.operators:
        options = {
            FIELDS[name][0]: FIELDS[name][1](value) for name, value in operator.options.items()
        }
        model.add(operator.kind, operator.inputs, operator.outputs, **options)
    for name, data in graph.metadata.items():
        model.attach(name, data)
    return model.pack(graph.inputs, graph.outputs)


def network_graph(network: Network, rng: np.random.Generator) -> Graph:
    """The device graph of a network with random weights, on scales that use the int8 range."""
    plan = lower(network)
    tensors = [_filled(tensor, rng) for tensor in plan.tensors]
    tensors[0] = replace(tensors[0], quantization=Quantization((0.03,), (3,)))
    return calibrated(replace(plan, tensors=tuple(tensors)), rng)


def calibrated(plan: Graph, rng: np.random.Generator) -> Graph:
    """The graph with a scale for every activation, found by running it on a few random inputs."""
    tensors = list(plan.tensors)
    values = {0: rng.integers(-128, 128, (4, *tensors[0].shape[1:]), dtype=np.int8)}
    for operator in plan.operators:
        index = operator.outputs[0]
        tensors[index], values[index] = _calibrated(operator, tensors, values)
    return replace(plan, tensors=tuple(tensors))


def _filled(tensor: Tensor, rng: np.random.Generator) -> Tensor:
    """A constant of the plan with data; activations stay as they are. Biases need no scale."""
    if tensor.data is not None or not tensor.name.endswith(("/weight", "/bias")):
        return tensor
    if tensor.dtype == "int32":
        return replace(tensor, data=rng.integers(-2000, 2000, tensor.shape, dtype=np.int32))
    data = rng.integers(-127, 128, tensor.shape, dtype=np.int8)
    axis = 3 if "frequency_conv" in tensor.name or "temporal_conv" in tensor.name else 0
    scales = tuple(
        float(s) for s in rng.uniform(0.002, 0.006, tensor.shape[axis]).astype(np.float32)
    )
    return replace(tensor, data=data, quantization=Quantization(scales, (0,) * len(scales), axis))


# Squares, their means, and what becomes of them: never below zero.
POSITIVE = (".square", ".power_over_channels", ".power", ".squared_mean", ".variance", ".rsqrt")
BAND = re.compile(r"\.band\d+$")


def _calibrated(
    operator: Operator, tensors: list[Tensor], values: dict[int, np.ndarray]
) -> tuple[Tensor, np.ndarray]:
    """The operator's output with the smallest scale that saturates few of its values."""
    output = tensors[operator.outputs[0]]
    if fixed := _fixed_quantization(operator, tensors):
        return _computed(operator, tensors, values, fixed)
    relu = operator.options.get("fused_activation") == "RELU"
    positive = relu or output.name.endswith(POSITIVE)
    source = tensors[operator.inputs[0]].quantization
    assert source
    best = None
    # What saturates, and what is refused as too small, ends as the scale grows.
    low, high = -60, 40
    while low < high:
        exponent = (low + high) // 2
        found = Quantization((float(np.float32(1.19**exponent)),), (-128 if positive else -5,))
        try:
            tensor, result = _computed(operator, tensors, values, found)
        except InputError:
            low = exponent + 1
            continue
        if operator.kind == "RSQRT":  # one over zero saturates on every scale
            kept = result[values[operator.inputs[0]] > source.zero_point[0]]
        else:
            kept = result
        if not kept.size or np.isin(kept, (127,) if positive else (-128, 127)).mean() < 0.01:
            best, high = (tensor, result), exponent
        else:
            low = exponent + 1
    assert best, f"no scale for {output.name}"
    return best


def _fixed_quantization(operator: Operator, tensors: list[Tensor]) -> Quantization | None:
    """The quantisation that the kind or the sub-bands before it leave no choice of."""
    name = tensors[operator.outputs[0]].name
    if operator.kind in ("LOGISTIC", "SOFTMAX"):
        return Quantization((1 / 256,), (-128,))
    if operator.kind in SAME_SCALE:
        return tensors[operator.inputs[0]].quantization
    # The bands of one map are joined, so they share a scale: the first one's.
    first = BAND.sub(".band1", name)
    alike = (t.quantization for t in tensors if t.name == first != name)
    return next(alike, None)


def _computed(
    operator: Operator,
    tensors: list[Tensor],
    values: dict[int, np.ndarray],
    quantization: Quantization,
) -> tuple[Tensor, np.ndarray]:
    """The output on that quantisation, and its values."""
    index = operator.outputs[0]
    tensor = replace(tensors[index], quantization=quantization)
    trial = Graph((*tensors[:index], tensor, *tensors[index + 1 :]), (operator,), (), ())
    inputs = [values[i] for i in operator.inputs if tensors[i].data is None]
    return tensor, prepare(operator, trial)(*inputs)
