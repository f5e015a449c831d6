"""Scales on which the oracles agree: the last bits of a scale, chosen so that no code differs.

The two interpreters compute two things from the same scales in different precision:

* MUL's multiplier ``s1 * s2 / s_out`` in float32 (tflite-runtime, ``mul.cc``) or double (TFLM);
* LOGISTIC from a table of float32 sigmoids (tflite-runtime) or in fixed point (TFLM).

A few of all possible inputs then come out one code apart. Another last bit of the output's, or the
sigmoid's input's, scale moves them: by a millionth as a rule, a two-thousandth at most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from firmware_ref.fixedpoint import mbqm, quantize_multiplier
from firmware_ref.graph import Graph, Quantization
from firmware_ref.ops.logistic import sigmoid_codes
from firmware_ref.scheme import INT8_MAX, INT8_MIN, SAME_SCALE

# Relative steps that are tried: last bits one by one, then twice as far each time.
STEPS = tuple(k * 2.0**-23 for k in (*range(33), *(2**power for power in range(6, 13))))


def agreed(graph: Graph, quantization: Mapping[str, Quantization]) -> dict[str, Quantization]:
    """``quantization`` with every scale that makes the oracles differ moved by a few last bits.

    Applied to its own result it changes nothing. A scale with no such neighbour stays as it is
    (sigmoid inputs on scales of about 2 and above): `verify` then shows the layer.

    What moves, a MUL's output or a LOGISTIC's input, is one tensor's own: the graph must be in
    order of execution, no operator of `SAME_SCALE` may read or write that tensor, and nothing
    decided before may rest on its scale. Graphs of `lowering.lower` hold this; it is asserted.
    """
    result = dict(quantization)
    fixed = _tied(graph)
    for operator in graph.operators:
        sources = [graph.tensors[index] for index in operator.inputs]
        if operator.kind == "MUL":
            output = graph.name(operator)
            assert output not in fixed, f"{output}: its scale is fixed elsewhere"
            first, second = (
                (tensor.quantization or result[tensor.name]).scale[0] for tensor in sources
            )
            test = functools.partial(same_products, first, second)
            result[output] = _moved(result[output], test)
            fixed |= {output, *(tensor.name for tensor in sources)}
        elif operator.kind == "LOGISTIC":
            name = sources[0].name
            assert name not in fixed, f"{name}: its scale is fixed elsewhere"
            result[name] = _moved(result[name], same_sigmoids)
            fixed.add(name)
    return result


def _tied(graph: Graph) -> set[str]:
    """Tensors whose scale another one must share."""
    tied = [operator for operator in graph.operators if operator.kind in SAME_SCALE]
    return {graph.tensors[i].name for o in tied for i in (*o.inputs, *o.outputs) if i != -1}


def _moved(grid: Quantization, holds: Callable[[Quantization], bool]) -> Quantization:
    """The grid of the nearest scale tried, its own first, for which ``holds``; else its own."""
    for step in STEPS:
        scale = float(np.float32(grid.scale[0] * (1 + step)))
        candidate = Quantization((scale,), grid.zero_point)
        if holds(candidate):
            return candidate
    return grid


def same_products(first: float, second: float, output: Quantization) -> bool:
    """Whether float32 and double multipliers give the same code for every product of codes."""
    in_double = quantize_multiplier(first * second / output.scale[0])
    product = np.float32(first) * np.float32(second)
    in_float = quantize_multiplier(float(product / np.float32(output.scale[0])))
    low, high = INT8_MIN - output.zero_point[0], INT8_MAX - output.zero_point[0]
    micro, runtime = (
        np.clip(mbqm(_products(), *multiplier), low, high) for multiplier in (in_double, in_float)
    )
    return np.array_equal(micro, runtime)


def same_sigmoids(source: Quantization) -> bool:
    """Whether table and fixed point give the same code for every input."""
    steps = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int64) - source.zero_point[0]
    reals = np.float32(source.scale[0]) * steps.astype(np.float32)
    with np.errstate(over="ignore"):
        sigmoids = np.float32(1) / (np.float32(1) + np.exp(-reals))
    table = np.clip(np.floor(sigmoids * 256 + np.float32(0.5)) + INT8_MIN, INT8_MIN, INT8_MAX)
    return np.array_equal(table, sigmoid_codes(source.scale[0], source.zero_point[0]))


@functools.cache
def _products() -> np.ndarray:
    """Every product of two offset codes, once."""
    offsets = np.arange(-255, 256, dtype=np.int64)
    return np.unique(offsets[:, None] * offsets)
