"""A graph in real arithmetic: what its operators mean, apart from every scale and rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from firmware_ref.graph import Graph, Operator
from firmware_ref.scheme import dequantize


def evaluate(graph: Graph, values: Mapping[str, np.ndarray], wanted: str) -> np.ndarray:
    """The tensor ``wanted`` from ``values`` (activations and constants by name), in float64.

    Operators whose inputs are not all known are left out.
    """
    known = dict(values)
    for operator in graph.operators:
        operands = [_operand(graph, index, known) for index in operator.inputs]
        if graph.name(operator) not in known and all(x is not None for x in operands):
            known[graph.name(operator)] = FUNCTIONS[operator.kind](operator, *operands)
        if graph.name(operator) == wanted:
            break
    return known[wanted]


def _operand(graph: Graph, index: int, known: Mapping[str, np.ndarray]) -> np.ndarray | None:
    tensor = graph.tensors[index]
    if tensor.name in known:
        return known[tensor.name]
    if tensor.data is None or tensor.quantization is None:
        return tensor.data
    return dequantize(tensor.data, tensor.quantization).astype(np.float64)


def _activated(operator: Operator, y: np.ndarray) -> np.ndarray:
    relu = operator.options["fused_activation"] == "RELU"
    return np.maximum(y, 0) if relu else y


def _windows(operator: Operator, x: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """(N, F', T', C, KF, KT); SAME padding of odd kernels on stride 1 only."""
    options = operator.options
    strides = options["stride_h"], options["stride_w"]
    if options["padding"] == "SAME" and kernel != (1, 1):
        assert strides == (1, 1) and all(size % 2 for size in kernel)
        (f, t) = (size // 2 for size in kernel)
        x = np.pad(x, ((0, 0), (f, f), (t, t), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return seen[:, :: strides[0], :: strides[1]]


def _conv(operator: Operator, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    windows = _windows(operator, x, (w.shape[1], w.shape[2]))
    return _activated(operator, np.einsum("nftcij,oijc->nfto", windows, w) + b)


def _depthwise(operator: Operator, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    windows = _windows(operator, x, (w.shape[1], w.shape[2]))
    return _activated(operator, np.einsum("nftcij,ijc->nftc", windows, w[0]) + b)


def _pool(reduce: Callable[..., np.ndarray]) -> Callable[[Operator, np.ndarray], np.ndarray]:
    def pool(operator: Operator, x: np.ndarray) -> np.ndarray:
        kernel = operator.options["filter_height"], operator.options["filter_width"]
        return reduce(_windows(operator, x, kernel), axis=(-2, -1))

    return pool


def _slice(_: Operator, x: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    ends = zip(begin, size, strict=True)
    return x[tuple(slice(int(first), int(first + count)) for first, count in ends)]


FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "ADD": lambda o, a, b: _activated(o, a + b),
    "SUB": lambda o, a, b: _activated(o, a - b),
    "MUL": lambda o, a, b: _activated(o, a * b),
    "RSQRT": lambda _, x: 1 / np.sqrt(x),
    "LOGISTIC": lambda _, x: 1 / (1 + np.exp(-x)),
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "AVERAGE_POOL_2D": _pool(np.mean),
    "MAX_POOL_2D": _pool(np.max),
    "PAD": lambda _, x, amounts: np.pad(x, amounts),
    "SLICE": _slice,
    "CONCATENATION": lambda o, *parts: np.concatenate(parts, axis=o.options["axis"]),
}
