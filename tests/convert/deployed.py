"""A converted model as tflite-runtime reads it, and what its checkpoint says it should hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite_runtime.interpreter as tflite_runtime

DEPTHWISE = (".frequency_conv", ".temporal_conv")


@dataclass
class Stored:
    """One tensor of a flatbuffer as tflite-runtime reads it; data of constants only."""

    dtype: type
    scales: list[float]
    zero_points: list[int]
    axis: int
    data: np.ndarray | None


@dataclass
class Deployed:
    """A flatbuffer as tflite-runtime reads it; operators are (kind, input names, output names)."""

    tensors: dict[str, Stored]
    operators: list[tuple[str, list[str], list[str]]]
    inputs: list[str]
    outputs: list[str]

    @classmethod
    def read(cls, model: bytes) -> Deployed:
        interpreter = tflite_runtime.Interpreter(
            model_content=model,
            experimental_op_resolver_type=tflite_runtime.OpResolverType.BUILTIN_REF,
        )
        interpreter.allocate_tensors()
        # Kernels add scratch tensors without a name.
        listed = [detail for detail in interpreter.get_tensor_details() if detail["name"]]
        details = {detail["index"]: detail for detail in listed}
        name = {index: detail["name"] for index, detail in details.items()}
        assert len(set(name.values())) == len(name), "names are unique"
        operators = interpreter._get_ops_details()
        computed = {index for operator in operators for index in operator["outputs"]}
        computed |= {detail["index"] for detail in interpreter.get_input_details()}
        tensors = {}
        for index, detail in details.items():
            grid = detail["quantization_parameters"]
            tensors[detail["name"]] = Stored(
                detail["dtype"],
                grid["scales"].tolist(),
                grid["zero_points"].tolist(),
                grid["quantized_dimension"],
                None if index in computed else interpreter.get_tensor(index),
            )
        return cls(
            tensors,
            [
                (o["op_name"], [name[i] for i in o["inputs"]], [name[i] for i in o["outputs"]])
                for o in operators
            ],
            [detail["name"] for detail in interpreter.get_input_details()],
            [detail["name"] for detail in interpreter.get_output_details()],
        )


def wrong_activations(deployed: Deployed, manifest: dict[str, Any]) -> list[str]:
    """Names of activations whose grid is not the manifest's, or that only one side has."""
    found = {
        name: (np.int8, [entry["scale"]], [entry["zero_point"]])
        for name, entry in manifest["activations"].items()
    }
    stored = {
        name: (tensor.dtype, tensor.scales, tensor.zero_points)
        for name, tensor in deployed.tensors.items()
        if tensor.data is None
    }
    names = sorted({*found, *stored})
    return [name for name in names if found.get(name) != stored.get(name)]


def expected_constants(
    deployed: Deployed, manifest: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Integers, scales and axis of every constant, computed from the checkpoint alone.

    Weights: ``round_half_even(w / s)`` with ``s = max |w| / 127`` a channel; biases int32 on
    ``s_in * s``; operands of element-wise operators: one scale.
    """
    result = {}
    for kind, inputs, outputs in deployed.operators:
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            source, layer = manifest["activations"][inputs[0]], outputs[0]
            axis = 3 if layer.endswith(DEPTHWISE) else 0
            others = tuple({0, 1, 2, 3} - {axis})
            weight, bias = tensors[f"{layer}/weight"], tensors[f"{layer}/bias"]
            largest = np.max(np.abs(weight), axis=others, keepdims=True)
            step = largest / np.float32(127)
            bias_step = np.float32(source["scale"]) * step.reshape(-1)
            result[f"{layer}/weight"] = (
                np.round(weight / step).astype(np.int8),
                step.reshape(-1),
                axis,
            )
            wide = np.round(bias.astype(np.float64) / bias_step.astype(np.float64))
            result[f"{layer}/bias"] = (wide.astype(np.int32), bias_step, 0)
        for name in inputs:
            if name in tensors and name not in result:
                step = np.max(np.abs(tensors[name])) / np.float32(127)
                steps = np.round(tensors[name] / step).astype(np.int8)
                result[name] = (steps, np.array([step]), 0)
    return result


def wrong_constants(
    deployed: Deployed, manifest: dict[str, Any], tensors: dict[str, np.ndarray]
) -> list[str]:
    """Names of constants of the checkpoint that the model holds otherwise, or not at all."""
    expected = expected_constants(deployed, manifest, tensors)
    wrong = sorted(set(tensors) ^ set(expected))
    for name, (data, scale, axis) in expected.items():
        stored = deployed.tensors[name]
        same = (
            stored.data is not None
            and stored.data.dtype == data.dtype
            and np.array_equal(stored.data, data)
            and stored.scales == scale.tolist()
            and set(stored.zero_points) == {0}
            and (len(scale) == 1 or stored.axis == axis)
        )
        wrong += [] if same else [name]
    return wrong
