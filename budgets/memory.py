"""How long activations live, and how many bytes of them are alive while each operator runs.

A lower bound of any plan of the memory: no gaps, no alignment, no buffers of kernels
(`budgets.arena` adds these). In-place computation would need less; TFLite Micro has none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from budgets.names import layer_names
from firmware_ref.graph import Graph, Tensor

BEFORE = -1  # the place in the order of operators at which the graph's inputs are written


@dataclass(frozen=True)
class LiveActivations:
    """Bytes alive while each operator runs: what it reads and writes, and what is needed later.

    ``peak_bytes`` is the most of them, ``peak_layer`` the first layer at which it is reached, as
    `layer_names` calls it; 0 and an empty name in a graph without operators.
    """

    bytes_by_operator: tuple[int, ...]
    peak_bytes: int
    peak_layer: str


def live_activations(graph: Graph) -> LiveActivations:
    """Count the activations alive, operator by operator, in time linear in the graph's size.

    An input that no operator reads is alive while none runs; an output that nothing reads, while
    its operator does.
    """
    changes = [0] * (len(graph.operators) + 1)
    for index, (first, last) in lifetimes(graph).items():
        if last == BEFORE:
            continue
        size = tensor_bytes(graph.tensors[index])
        changes[max(first, 0)] += size
        changes[last + 1] -= size
    alive = tuple(itertools.accumulate(changes[:-1]))
    if not alive:
        return LiveActivations((), 0, "")
    peak = max(alive)
    return LiveActivations(alive, peak, layer_names(graph)[alive.index(peak)])


def lifetimes(graph: Graph) -> Mapping[int, tuple[int, int]]:
    """The operators, by number, at which each activation is first and last needed.

    Activations are graph inputs, from `BEFORE`, and what operators write; graph outputs live to the
    end. All else is a constant, whether or not it has data: `firmware_ref.lowering.lower` gives
    constants without.
    """
    first = dict.fromkeys(graph.inputs, BEFORE)
    last = dict(first)
    for number, operator in enumerate(graph.operators):
        for index in operator.outputs:
            first[index] = last[index] = number
        last.update((index, number) for index in set(operator.inputs) if index in first)
    last.update((index, len(graph.operators) - 1) for index in graph.outputs if index in first)
    return {index: (first[index], last[index]) for index in first}


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
