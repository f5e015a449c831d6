"""The reader: what it reads, and that no bytes get past it but as an InputError."""

from __future__ import annotations

import inspect
import re
import struct

import numpy as np
import pytest
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as fb

from firmware_ref import graph as model_file
from firmware_ref import schema
from firmware_ref.errors import InputError
from firmware_ref.graph import Quantization, parse
from tests.firmware_ref.build import Model


def small() -> tuple[Model, list[int], list[int]]:
    """A convolution and a mean, with metadata."""
    model = Model()
    x = model.tensor("x", (1, 6, 5, 2), 0.5, -3)
    w = model.tensor(
        "conv/weight", (3, 3, 1, 2), [0.1, 0.2, 0.3], 0, np.arange(18).reshape(3, 3, 1, 2)
    )
    b = model.tensor("conv/bias", (3,), [0.05, 0.1, 0.15], 0, np.array([7, -8, 9]), "int32")
    y = model.tensor("conv", (1, 3, 5, 3), 0.25, 4)
    z = model.tensor("mean", (1, 3), 0.25, 4)
    axes = model.integers("mean/axes", [1, 2])
    model.add("CONV_2D", [x, w, b], [y], strideH=2, strideW=1, fusedActivationFunction=1)
    model.add("MEAN", [y, axes], [z], keepDims=False)
    model.attach("tinyscene", b"{}")
    return model, [x], [z]


def packed() -> bytes:
    model, inputs, outputs = small()
    return model.pack(inputs, outputs)


VALID = packed()

# The generated name of each kind's options, without "Options".
UNIONS = {
    "ADD": "Add",
    "AVERAGE_POOL_2D": "Pool2D",
    "CONCATENATION": "Concatenation",
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "DIV": "Div",
    "FULLY_CONNECTED": "FullyConnected",
    "MAX_POOL_2D": "Pool2D",
    "MEAN": "Reducer",
    "MUL": "Mul",
    "RESHAPE": "Reshape",
    "SOFTMAX": "Softmax",
    "STRIDED_SLICE": "StridedSlice",
    "SUB": "Sub",
    "SUM": "Reducer",
}


def test_reads_what_was_written() -> None:
    graph = parse(VALID)
    assert [(t.name, t.shape, t.dtype) for t in graph.tensors] == [
        ("x", (1, 6, 5, 2), "int8"),
        ("conv/weight", (3, 3, 1, 2), "int8"),
        ("conv/bias", (3,), "int32"),
        ("conv", (1, 3, 5, 3), "int8"),
        ("mean", (1, 3), "int8"),
        ("mean/axes", (2,), "int32"),
    ]
    assert graph.tensors[0].quantization == Quantization((0.5,), (-3,))
    assert graph.tensors[1].quantization == Quantization(
        tuple(float(np.float32(s)) for s in (0.1, 0.2, 0.3)), (0, 0, 0)
    )
    weights = graph.tensors[1].data
    assert weights is not None and np.array_equal(weights, np.arange(18).reshape(3, 3, 1, 2))
    assert not weights.flags.writeable
    conv, mean = graph.operators
    assert (conv.kind, conv.inputs, conv.outputs, conv.version) == ("CONV_2D", (0, 1, 2), (3,), 2)
    assert conv.options == {
        "padding": "SAME",
        "stride_h": 2,
        "stride_w": 1,
        "fused_activation": "RELU",
        "dilation_h_factor": 1,
        "dilation_w_factor": 1,
    }
    assert mean.options == {"keep_dims": False}
    assert (graph.inputs, graph.outputs) == ((0,), (4,))
    assert (graph.metadata, graph.description) == ({"tinyscene": b"{}"}, "test")
    assert graph.name(conv) == "conv"


def test_schema_tables_are_the_generated_ones() -> None:
    names = {v: k for k, v in vars(fb.BuiltinOperator).items() if not k.startswith("_")}
    assert tuple(names[i] for i in range(len(schema.BUILTIN_OPERATORS))) == schema.BUILTIN_OPERATORS
    types = {v: k.lower() for k, v in vars(fb.TensorType).items() if not k.startswith("_")}
    assert all(types[code] == name for code, name in schema.TENSOR_TYPES.items())
    for kind, options in schema.OPTIONS.items():
        assert getattr(fb.BuiltinOptions, f"{UNIONS[kind]}Options") == options.union


OPTION_VALUES = {
    "int": (3, 3),
    "byte": (1, 1),
    "bool": (True, True),
    "float": (0.5, 0.5),
    "ints": ([2, 5], (2, 5)),
    "padding": (fb.Padding.VALID, "VALID"),
    "activation": (fb.ActivationFunctionType.RELU6, "RELU6"),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, options in schema.OPTIONS.items() for name in options.fields],
)
def test_every_option_is_read_from_its_slot(kind: str, name: str) -> None:
    """Written by the schema's own code; every other option keeps its default."""
    first, *rest = {"fused_activation": "fused_activation_function"}.get(name, name).split("_")
    generated = first + "".join(word.capitalize() for word in rest)
    model = Model()
    x, y = (model.tensor(tensor, (1, 4), 0.5, 0) for tensor in "xy")
    stored = getattr(fb, f"{UNIONS[kind]}OptionsT")()
    assert hasattr(stored, generated)
    field = schema.OPTIONS[kind].fields[name]
    written, expected = OPTION_VALUES[field.type]
    plain = parse_options(model, kind, stored, x, y)
    setattr(stored, generated, written)
    assert parse_options(model, kind, stored, x, y) == {**plain, name: expected}


def parse_options(model: Model, kind: str, stored: object, x: int, y: int) -> dict[str, object]:
    """What the reader finds of the options of one operator."""
    model.operators.clear()
    model.add(kind, [x], [y])
    model.operators[0].builtinOptions = stored
    model.operators[0].builtinOptionsType = schema.OPTIONS[kind].union
    return dict(parse(model.pack([x], [y])).operators[0].options)


# What interpreters read of the same tables, and nothing here: each of one byte, but for one that
# the pinned wheels do not know.
UNREAD = {
    "ADD": {1: "Bool"},
    "CONV_2D": {6: "Int8"},
    "FULLY_CONNECTED": {3: "Bool", 4: "Int8", 5: "UOffsetTRelative"},
    "SUB": {1: "Bool"},
}


def test_options_that_nothing_here_reads_are_of_one_byte() -> None:
    text = inspect.getsource(fb)
    for kind, options in schema.OPTIONS.items():
        adders = rf"def {UNIONS[kind]}OptionsAdd\w+\(.*\):\s+builder\.Prepend(\w+)Slot\((\d+)"
        stored = {int(slot): form for form, slot in re.findall(adders, text)}
        known = {option.slot for option in options.fields.values()}
        unread = {slot: form for slot, form in stored.items() if slot not in known}
        assert known <= set(stored) and unread == UNREAD.get(kind, {})


def test_float_custom_and_unknown_operators_are_read() -> None:
    model = Model()
    x = model.tensor("x", (1, 4), dtype="float32")
    y = model.tensor("y", (1, 4), dtype="float32")
    z = model.tensor("z", (1, 4), dtype="float32")
    model.add("CUSTOM:Mystery", [x], [y])
    model.add("STABLEHLO_CASE", [y], [z])
    graph = parse(model.pack([x], [z]))
    assert [o.kind for o in graph.operators] == ["CUSTOM:Mystery", "BUILTIN_209"]
    assert graph.tensors[0].quantization is None


def test_an_optional_input_is_minus_one() -> None:
    model, inputs, outputs = small()
    model.operators[0].inputs = [0, 1, -1]
    assert parse(model.pack(inputs, outputs)).operators[0].inputs == (0, 1, -1)


def edited(**changes: object) -> bytes:
    """The small model with one part replaced; keys are ``tensors_0_shape`` and the like."""
    model, inputs, outputs = small()
    for path, value in changes.items():
        part, number, name = path.split("_", 2)
        item = getattr(model, part)[int(number)]
        *parents, last = name.split("__")
        for parent in parents:
            item = getattr(item, parent)
        setattr(item, last, value)
    return model.pack(inputs, outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors_0_shape": [1, 6, -5, 2]}, "shape="),
        ({"tensors_0_shape": [2**20, 2**20]}, "shape="),
        ({"tensors_0_shape": [1] * 9}, "shape="),
        ({"tensors_0_shape": [1] * 5000}, "5000 sizes"),
        ({"tensors_1_shape": [3, 3, 1, 3]}, "buffer holds 18 bytes"),
        ({"tensors_1_buffer": 99}, "buffer=99"),
        ({"tensors_0_type": 5}, "type=5"),
        ({"tensors_0_type": -3}, "type=-3"),
        ({"tensors_0_isVariable": True}, "variable"),
        ({"tensors_0_sparsity": fb.SparsityParametersT()}, "sparsely"),
        ({"tensors_1_quantization__scale": [0.1, 0.2]}, "differ"),
        ({"tensors_1_quantization__scale": [0.1, 0.2, float("nan")]}, "scale=nan"),
        ({"tensors_1_quantization__scale": [0.1, 0.2, -1.0]}, "scale=-1"),
        ({"tensors_1_quantization__scale": [0.1, 0.2, 0.0]}, "scale=0"),
        ({"tensors_1_quantization__quantizedDimension": 2}, "scales=3"),
        ({"tensors_1_quantization__quantizedDimension": 4}, "dimension=4"),
        ({"tensors_1_quantization__quantizedDimension": -1}, "dimension=-1"),
        ({"tensors_0_quantization__zeroPoint": [128]}, "zero point"),
        ({"tensors_2_quantization__zeroPoint": [2**40, 0, 0]}, "zero point"),
        ({"operators_0_opcodeIndex": 2}, "opcode index=2"),
        ({"operators_0_inputs": [0, 1, 6]}, "tensor 6"),
        ({"operators_0_inputs": [0, 1, -2]}, "tensor -2"),
        ({"operators_0_inputs": [4, 1, 2]}, "before it is written"),
        ({"operators_0_inputs": [3, 1, 2]}, "before it is written"),
        ({"operators_0_outputs": []}, "no output"),
        ({"operators_0_outputs": [1]}, "has a value"),
        ({"operators_0_outputs": [0]}, "has a value"),
        ({"operators_1_outputs": [3]}, "has a value"),
        ({"operators_0_outputs": [-1]}, "tensor -1"),
        ({"operators_0_builtinOptions__padding": 2}, "padding=2"),
        ({"operators_0_builtinOptions__fusedActivationFunction": 6}, "fused_activation=6"),
        ({"operators_0_builtinOptionsType": 5}, "options type=5"),
        ({"metadata_0_buffer": 99}, "buffer=99"),
    ],
)
def test_refuses_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(edited(**changes))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], [4], "at least one"),
        ([0], [], "at least one"),
        ([0], [7], "tensor 7"),
        ([1], [4], "constant"),
        ([0, 0], [4], "twice"),
    ],
)
def test_refuses_graph_ends(inputs: list[int], outputs: list[int], message: str) -> None:
    model, _, _ = small()
    with pytest.raises(InputError, match=message):
        parse(model.pack(inputs, outputs))


def test_refuses_an_output_that_is_never_written() -> None:
    model, inputs, _ = small()
    orphan = model.tensor("orphan", (1, 3), 0.25, 4)
    with pytest.raises(InputError, match="never written"):
        parse(model.pack(inputs, [orphan]))


def test_refuses_metadata_named_twice() -> None:
    model, inputs, outputs = small()
    model.attach("tinyscene", b"other")
    with pytest.raises(InputError, match="twice"):
        parse(model.pack(inputs, outputs))


def test_refuses_another_format_or_version() -> None:
    with pytest.raises(InputError, match="identifier"):
        parse(VALID[:4] + b"TFL2" + VALID[8:])
    position = VALID.index(struct.pack("<I", 3), 8)
    with pytest.raises(InputError, match="schema version=4; only 3"):
        parse(VALID[:position] + struct.pack("<I", 4) + VALID[position + 4 :])


def test_read_names_the_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("graph") / "model.tflite"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.tflite"):
        model_file.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        model_file.read(path.parent / "absent.tflite")
