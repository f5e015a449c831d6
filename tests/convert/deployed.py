"""A converted model as tflite-runtime reads it, and what its checkpoint says it should hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite_runtime.interpreter as tflite_runtime

# Constants that hold no real numbers.
INDICES = {"shape", "paddings", "begin", "size"}


@dataclass
class Stored:
    """One tensor of a flatbuffer as tflite-runtime reads it; data of constants only."""

    shape: tuple[int, ...]
    dtype: type
    scales: list[float]
    zero_points: list[int]
    axis: int
    data: np.ndarray | None


@dataclass
class Deployed:
    """A flatbuffer as tflite-runtime reads it; operators are (kind, input names, output names).

    A constant is ``<layer>/<name>``, once for every layer that reads it.
    """

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
        listed_operators = interpreter._get_ops_details()
        computed = [index for operator in listed_operators for index in operator["outputs"]]
        computed += [detail["index"] for detail in interpreter.get_input_details()]
        assert len({name[index] for index in computed}) == len(computed), "names are unique"

        def stored(index: int) -> Stored:
            grid = details[index]["quantization_parameters"]
            return Stored(
                tuple(details[index]["shape"].tolist()),
                details[index]["dtype"],
                grid["scales"].tolist(),
                grid["zero_points"].tolist(),
                grid["quantized_dimension"],
                None if index in computed else interpreter.get_tensor(index),
            )

        tensors = {name[index]: stored(index) for index in computed}
        operators = []
        for operator in listed_operators:
            (layer,) = (name[index] for index in operator["outputs"])
            inputs = []
            for index in operator["inputs"]:
                inputs.append(name[index] if index in computed else f"{layer}/{name[index]}")
                tensors.setdefault(inputs[-1], stored(index))
            assert len(set(inputs)) == len(set(operator["inputs"])), "names are unique in a layer"
            operators.append((operator["op_name"], inputs, [layer]))
        return cls(
            tensors,
            operators,
            [detail["name"] for detail in interpreter.get_input_details()],
            [detail["name"] for detail in interpreter.get_output_details()],
        )

    def constants(self) -> set[str]:
        """Names of constants that hold real numbers."""
        return {
            name
            for name, tensor in self.tensors.items()
            if tensor.data is not None and name.rpartition("/")[2] not in INDICES
        }


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


Constant = tuple[np.ndarray, np.ndarray, int]


def expected_constants(
    deployed: Deployed, manifest: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, Constant]:
    """Integers, scales and axis of every constant, computed from the checkpoint alone.

    Weights: ``round_half_even(w / s)`` with ``s = max |w| / 127`` a channel; biases int32 on
    ``s_in * s``, which the file does not repeat. Weights of a mean over n: 127 steps of 1 / n.
    """
    result: dict[str, Constant] = {}
    no_scale = np.zeros(0, np.float32)
    for kind, inputs, (layer,) in deployed.operators:
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and f"{layer}/weight" in tensors:
            axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
            others = tuple({0, 1, 2, 3} - {axis})
            weight, bias = tensors[f"{layer}/weight"], tensors[f"{layer}/bias"]
            largest = np.max(np.abs(weight), axis=others, keepdims=True)
            step = largest / np.float32(127)
            steps = np.round(weight / step).astype(np.int8)
            result[f"{layer}/weight"] = (steps, step.reshape(-1), axis)
            source = manifest["activations"][inputs[0]]
            bias_step = np.float32(source["scale"]) * step.reshape(-1)
            wide = np.round(bias.astype(np.float64) / bias_step.astype(np.float64))
            result[f"{layer}/bias"] = (wide.astype(np.int32), no_scale, 0)
        elif kind == "CONV_2D":
            _, _, frames, channels = deployed.tensors[inputs[0]].shape
            over_channels = layer.endswith("_over_channels")
            shape = (1, 1, 1, channels) if over_channels else (1, 1, frames, 1)
            result[f"{layer}/weight"] = _given(shape, 1 / (channels if over_channels else frames))
            result[f"{layer}/bias"] = (np.zeros(1, np.int32), no_scale, 0)
        elif kind == "ADD" and layer.endswith(".gain"):
            value = manifest["network"]["res_norm_lambda"]
            result[f"{layer}/res_norm.lambda"] = _given((1, 1, 1, 1), value)
    return result


def _given(shape: tuple[int, ...], value: float) -> Constant:
    """127 steps of a 127th of ``value``."""
    return np.full(shape, 127, np.int8), np.array([value / 127], np.float32), 0


def wrong_constants(
    deployed: Deployed, manifest: dict[str, Any], tensors: dict[str, np.ndarray]
) -> list[str]:
    """Names of constants that the model holds otherwise than expected, or that one side lacks."""
    expected = expected_constants(deployed, manifest, tensors)
    wrong = sorted((set(tensors) - set(expected)) | (deployed.constants() ^ set(expected)))
    for name, (data, scale, axis) in expected.items():
        stored = deployed.tensors.get(name)
        same = stored is None or (
            stored.data is not None
            and stored.data.dtype == data.dtype
            and np.array_equal(stored.data, data)
            and stored.scales == scale.tolist()
            and stored.zero_points == [0] * len(scale)
            and (len(scale) <= 1 or stored.axis == axis)
        )
        wrong += [] if same else [name]
    return wrong
