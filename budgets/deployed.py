"""A network as it is deployed, before it has weights: for what only a device graph can tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from budgets.memory_plan import planned
from firmware_ref.arch import Network
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Quantization, Tensor
from firmware_ref.lowering import lower

# Far beyond any device; a checkpoint that claims a network of millions shall not be waited for.
MOST_OPERATORS = 4_000


def refuse_endless(network: Network) -> None:
    """An `InputError` where a device graph might have more than `MOST_OPERATORS`."""
    norms = 1 + len(network.widths)
    most = sum(network.blocks) * (16 + 2 * network.ssn_bands) + 12 * norms + 5
    if most > MOST_OPERATORS:
        raise InputError(
            f"network {network.name}: blocks={network.blocks} of ssn_bands={network.ssn_bands} "
            f"become up to {most:,} operators; at most {MOST_OPERATORS:,} are counted; give fewer"
        )


def deployed_graph(network: Network) -> Graph:
    """`lower`'s graph with zeros for weights and biases, which count like any other value.

    With the plan of memory that its flatbuffer will have.
    """
    refuse_endless(network)
    graph = lower(network)
    constants = {index for operator in graph.operators for index in operator.inputs}
    constants -= {index for operator in graph.operators for index in operator.outputs}
    constants -= set(graph.inputs)
    tensors = [
        _filled(tensor) if index in constants and tensor.data is None else tensor
        for index, tensor in enumerate(graph.tensors)
    ]
    return planned(replace(graph, tensors=tuple(tensors)))


def _filled(tensor: Tensor) -> Tensor:
    zeros = np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)  # of no size in memory
    return replace(tensor, quantization=Quantization((1.0,), (0,)), data=zeros)
