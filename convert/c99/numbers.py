"""The integers of each step: multipliers, biases and tables, from the rules of `firmware_ref`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.fixedpoint import quantize_multiplier
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.ops import prepare
from firmware_ref.ops.accumulate import bias_of, largest_sum, staircase
from firmware_ref.ops.add import LEFT_SHIFT
from firmware_ref.ops.elementwise import INT8_CODES, scaled_codes
from firmware_ref.ops.node import Affine, Node

# The kernels double what they multiply, in 32 bits, and add the zero point before the last shift.
DOUBLED_LIMIT = 2**30
# Doubled and shifted weights are 16 bits.
LARGEST_SHIFT = 6
# The multiplier and shift of one: what goes in comes out.
ONE = (2**30, 1)
# Codes in the order of a table in C, which is read at code + 128.
CODES = np.arange(-128, 128).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Channels:
    """``ts_channels``: bias, multiplier and shift of each channel, zero point and clamp.

    ``weights`` int8 (C, K) are the taps of each output channel in order.
    """

    weights: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    zero_point: int
    low: int


@dataclass(frozen=True)
class Rescale:
    """``ts_rescale``."""

    multiplier: int
    shift: int
    zero_point: int
    low: int


@dataclass(frozen=True)
class Operand:
    """``ts_operand``: how a code comes to the common scale of a sum."""

    zero_point: int
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Sum:
    """``ts_sum``, of ADD or SUB."""

    first: Operand
    second: Operand
    out: Rescale


@dataclass(frozen=True)
class Product:
    """``ts_product``, of MUL."""

    first_zero_point: int
    second_zero_point: int
    out: Rescale


def channels(graph: Graph, operator: Operator) -> Channels:
    """Weights and requantisation of a convolution; refuses sums that the kernels cannot hold.

    A channel that gives one code whatever its input, as one does whose weights have died, becomes
    a bias alone, which no scale of it can bring out of range.
    """
    node = Node(operator, graph)
    axis = 0 if operator.kind == "CONV_2D" else 3
    weights = weight_rows(graph, operator)
    _, source = node.activation(0)
    bias = bias_of(node, len(weights))
    found = staircase(node, source, weights, bias, axis)
    reach = largest_sum(source, weights)
    multiplier, shift = (
        np.broadcast_to(part, reach.shape) for part in (found.multiplier, found.shift)
    )
    code = found(-reach)
    # Shifting left wraps, so that a channel's ends say nothing of what lies between.
    constant = (code == found(reach)) & (shift <= 0)
    weights = np.where(constant[:, None], 0, weights).astype(np.int8)
    bias = np.where(constant, code.astype(np.int64) - found.zero_point, bias)
    multiplier, shift = np.where(constant, np.array(ONE)[:, None], (multiplier, shift))
    largest = np.where(constant, 0, reach) + np.abs(bias)
    _check_range(node, largest, shift, found.zero_point, found.high)
    return Channels(weights, bias, multiplier, shift, found.zero_point, found.low)


def _check_range(
    node: Node, largest: np.ndarray, shift: np.ndarray, zero_point: int, high: int
) -> None:
    """Refuse what ``ts_stepped`` would compute in more than 32 bits, or clamp otherwise."""
    doubled = largest.astype(np.float64) * 2.0 ** np.maximum(shift, 0)
    added = (abs(zero_point) + 0.5) * 2.0 ** np.maximum(-shift, 0)
    if (doubled >= DOUBLED_LIMIT).any() or (doubled + added >= 2**31).any():
        raise node.error(
            "its sums and scales need more than 32 bits in the generated C; train again with "
            "less extreme ranges"
        )
    if shift.max() > LARGEST_SHIFT:
        raise node.error("its scales multiply by 64 or more; train again with less extreme ranges")
    if high != 127:
        raise node.error("only NONE and RELU are generated as fused activations")


def on_codes(found: Channels, graph: Graph, operator: Operator) -> Channels:
    """The same for sums of codes as they are: the input's zero point goes into the bias."""
    zero_point = Node(operator, graph).activation(0)[1].zero_point
    sums = found.weights.astype(np.int64).sum(axis=1)
    return replace(found, bias=found.bias - zero_point * sums)


def weight_rows(graph: Graph, operator: Operator) -> np.ndarray:
    """Weights int8 (C, K) of a convolution, the taps of an output channel in order."""
    weights = Node(operator, graph).constant(1)
    if operator.kind == "CONV_2D":
        return weights.reshape(len(weights), -1)
    return weights.reshape(-1, weights.shape[3]).T


def one_channel(graph: Graph, operator: Operator) -> tuple[int, Rescale]:
    """The one weight of a mean, and its requantisation."""
    found = channels(graph, operator)
    rescale = Rescale(int(found.multiplier[0]), int(found.shift[0]), found.zero_point, found.low)
    return int(found.weights[0, 0]), rescale


def addition(graph: Graph, operator: Operator) -> Sum:
    """ADD or SUB: TFLite ``add.cc``, as `firmware_ref.ops.add` prepares it."""
    prepare(operator, graph)  # refuses what the kernels do
    node = Node(operator, graph)
    first, second, out = (node.affine(t) for t in (node.tensor(0), node.tensor(1), node.output))
    twice_larger = 2.0 * max(first.scale, second.scale)
    rescale = _rescale(
        node, quantize_multiplier(twice_larger / (2**LEFT_SHIFT * out.scale)), 2 * 255 * 2**19
    )
    return Sum(_operand(first, twice_larger), _operand(second, twice_larger), rescale)


def _operand(affine: Affine, twice_larger: float) -> Operand:
    return Operand(affine.zero_point, *_in_range(quantize_multiplier(affine.scale / twice_larger)))


def operand_codes(graph: Graph, operator: Operator, place: int) -> np.ndarray:
    """One operand of ADD or SUB, scaled, int32 (256,) in the order of `CODES`."""
    node = Node(operator, graph)
    affines = [node.affine(node.tensor(i)) for i in (0, 1)]
    twice_larger = 2.0 * max(affine.scale for affine in affines)
    table = scaled_codes(affines[place], LEFT_SHIFT, affines[place].scale / twice_larger)
    return table[CODES.view(np.uint8)]


def product(graph: Graph, operator: Operator) -> Product:
    """MUL: TFLite ``mul.cc``."""
    prepare(operator, graph)
    node = Node(operator, graph)
    first, second, out = (node.affine(t) for t in (node.tensor(0), node.tensor(1), node.output))
    rescale = _rescale(node, node.multiplier(first.scale * second.scale / out.scale), 255 * 255)
    return Product(first.zero_point, second.zero_point, rescale)


def _rescale(node: Node, multiplier: tuple[int, int], largest: int) -> Rescale:
    """The last step of an element-wise operator, for values up to ``largest`` in magnitude."""
    multiplier = _in_range(multiplier)
    out = node.affine(node.output)
    low, high = node.clamp()
    _check_range(node, np.array([largest]), np.array([multiplier[1]]), out.zero_point, high)
    return Rescale(*multiplier, out.zero_point, low)


def _in_range(multiplier: tuple[int, int]) -> tuple[int, int]:
    """Zero for one that leaves nothing of values below `DOUBLED_LIMIT`: no kernel shifts by 31."""
    return multiplier if multiplier[1] > -31 else (0, 0)


def table(graph: Graph, operators: Sequence[Operator]) -> np.ndarray:
    """What a chain of operators makes of each code, int8 (256,) in the order of `CODES`.

    Every activation that the chain reads and does not compute is the one code; constants have one
    element.
    """
    values: dict[int, np.ndarray] = {}
    for operator in operators:
        alone = _on_row_of_codes(graph, operator)
        activations = [
            values.get(index, CODES.reshape(1, 1, 1, -1))
            for index in operator.inputs
            if graph.tensors[index].data is None
        ]
        values[operator.outputs[0]] = prepare(operator, alone)(*activations)
    return values[operators[-1].outputs[0]].reshape(-1)


def rsqrt_table(graph: Graph, operator: Operator) -> np.ndarray:
    """RSQRT of each code; refused where a code lies below the zero point, a negative variance."""
    if Node(operator, graph).activation(0)[1].zero_point != -128:
        raise InputError(
            f"RSQRT {graph.name(operator)!r}: the variance needs a zero point of -128; train again"
        )
    return table(graph, [operator])


def _on_row_of_codes(graph: Graph, operator: Operator) -> Graph:
    """The graph with this operator's activations as rows of 256 codes."""
    tensors: list[Tensor] = list(graph.tensors)
    for index in (*operator.inputs, *operator.outputs):
        if tensors[index].data is None:
            tensors[index] = replace(tensors[index], shape=(1, 1, 1, len(INT8_CODES)))
    return replace(graph, tensors=tuple(tensors))
