"""The trained network as the device computes it: integer-exact, and held against the simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from firmware_ref import scheme
from firmware_ref.agreement import agreed
from firmware_ref.fixed_frontend import FixedFrontend, as_steps
from firmware_ref.graph import Graph
from firmware_ref.quantize import quantize_graph
from firmware_ref.run import Interpreter
from train import rounding
from train.data import InputNormalization
from train.qat import OPERATORS, DeviceNetwork

BATCH = 16
# Windows on which layers are compared one by one.
LAYER_WINDOWS = 64


def device_graph(device: DeviceNetwork) -> Graph:
    """The INT8 graph of a network with grids: the one that `convert` writes, but for metadata."""
    grids = agreed(device.graph, device.quantization)
    return quantize_graph(device.graph, device.float_constants(), grids, {})


def device_inputs(
    device: DeviceNetwork, normalization: InputNormalization
) -> Callable[[np.ndarray], np.ndarray]:
    """From log-mels (N, F, T) to the reals (N, F, T, C) that a device's network hears."""
    grid = device.quantization[device.activations[0]]
    codes = FixedFrontend.of(normalization.mean, normalization.std, grid).codes
    return lambda log_mels: scheme.dequantize(codes(as_steps(log_mels)), grid)


class DeviceListener:
    """A network as a device hears with it: front end and network in integers."""

    def __init__(self, device: DeviceNetwork, normalization: InputNormalization) -> None:
        self._interpreter = Interpreter(device_graph(device))
        grid, output = self._interpreter.input.quantization, self._interpreter.output.quantization
        assert grid is not None and output is not None
        self._output = output
        self._frontend = FixedFrontend.of(normalization.mean, normalization.std, grid)

    def logits(self, log_mels: np.ndarray) -> np.ndarray:
        """Logits (N, classes) float32 of (N, F, T) log-mels, as `train.extract` has for figures."""
        codes = self._frontend.codes(as_steps(log_mels))
        return scheme.dequantize(self._interpreter.run(codes), self._output)


@dataclass(frozen=True)
class LayerFidelity:
    """How one layer's simulation differs from its integer kernel on the same integer input.

    ``share`` of its values lie on another code, by ``largest`` codes at most.
    """

    layer: str
    op: str
    share: float
    largest: int


@dataclass(frozen=True)
class Fidelity:
    """How far float, simulated and device network are apart, on the same windows.

    ``as_simulated`` and ``as_float`` are the shares of windows whose top class the device shares
    with the simulation and with the float network; ``layers`` those that differ, worst first.
    """

    windows: int
    as_simulated: float
    as_float: float
    layers: tuple[LayerFidelity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """For people: both shares, and the layer that differs most."""
        found = [
            f"the device shares its top class with the simulation on {self.as_simulated:.2%} of "
            f"{self.windows} windows, with the float network on {self.as_float:.2%}"
        ]
        if self.layers:
            worst = self.layers[0]
            found.append(
                f"layer furthest from its simulation: {worst.layer} ({worst.op}), "
                f"{worst.share:.3%} of its values by at most {worst.largest}"
            )
        return found


def compare(
    device: DeviceNetwork, inputs: np.ndarray, probabilities: Mapping[str, np.ndarray]
) -> Fidelity:
    """From the probabilities (N, classes) of ``float``, ``qat`` and ``int8`` of all windows.

    ``inputs`` (n, F, T, C) are some of them, on which layers are compared.
    """
    top = {name: p.argmax(axis=1) for name, p in probabilities.items()}
    return Fidelity(
        windows=len(probabilities["int8"]),
        as_simulated=float((top["int8"] == top["qat"]).mean()),
        as_float=float((top["int8"] == top["float"]).mean()),
        layers=layer_fidelity(device, inputs[:LAYER_WINDOWS]),
    )


def layer_fidelity(device: DeviceNetwork, inputs: np.ndarray) -> tuple[LayerFidelity, ...]:
    """Every layer of maps that differs, the worst first, on (N, F, T, C) network input."""
    graph = device_graph(device)
    grid = device.quantization[graph.tensors[graph.inputs[0]].name]
    interpreter = Interpreter(graph)
    differing: dict[str, list[tuple[float, int]]] = {}
    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    for batch in batches:
        codes = interpreter.run_all(scheme.quantize(batch, grid))
        for name, found in _compare(device, codes).items():
            differing.setdefault(name, []).append(found)
    kinds = {graph.name(operator): operator.kind for operator in graph.operators}
    layers = [
        LayerFidelity(
            name,
            kinds[name],
            float(np.average([share for share, _ in found], weights=[len(b) for b in batches])),
            max(largest for _, largest in found),
        )
        for name, found in differing.items()
    ]
    return tuple(sorted((x for x in layers if x.largest), key=lambda layer: -layer.share))


def _compare(device: DeviceNetwork, codes: dict[int, np.ndarray]) -> dict[str, tuple[float, int]]:
    """Share of differing codes and largest difference of each layer, for one batch."""
    grids, names = device.quantization, [t.name for t in device.graph.tensors]
    maps = {index: value for index, value in codes.items() if value.ndim == 4}
    reals = {
        index: torch.from_numpy(scheme.dequantize(value, grids[names[index]])).permute(0, 3, 1, 2)
        for index, value in maps.items()
    }
    found = {}
    for operator in device.graph.operators:
        output = operator.outputs[0]
        if output not in maps:
            continue
        with torch.no_grad():
            y = OPERATORS[operator.kind](device, operator, reals)
            y = rounding.as_the_kernel(device, operator, y)
            if operator.options.get("fused_activation") == "RELU":
                y = functional.relu(y)
        simulated = scheme.quantize(y.permute(0, 2, 3, 1).numpy(), grids[names[output]])
        difference = np.abs(simulated.astype(np.int16) - maps[output])
        found[names[output]] = (float((difference > 0).mean()), int(difference.max()))
    return found
