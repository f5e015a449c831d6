"""Parameters and multiply-accumulates (MACs), per layer and in total, under named conventions.

``plain`` is the convention that the limits apply to.

*Of a network, as trained:* every weight and bias of every convolution and every normalisation's
scale and shift, batch norm apart from its convolution. Running statistics are not parameters.
MACs: convolutions only, weights times output positions. Biases, normalisations, pooling, means,
additions and activations cost 0.

*Of a flatbuffer, as deployed:* for CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED the elements of
the constant weights and bias, zeros included; for any other operator the elements of constant
inputs that hold real numbers (quantised or floating) and more than one element: the scale and
shift of a normalisation that could not be folded, for instance. One-element constants (ResNorm's
lambda and epsilon) are given, not learned, and integers without quantisation (axes, shapes,
paddings) are no parameters. A constant read by two operators is counted at each, so that a row
never depends on another, and as the challenge's counter does: ResNorm's means share constants, so
the shipped model has 120,216 weights here and 119,767 in its manifest, which counts each buffer of
the file once. MACs: output elements times weights per output element of the three operators above;
all other known operators 0; an operator not known here is reported by name.

``torchinfo`` (networks) is what torchinfo 1.8 prints, and so the challenge's count of a torch
model: convolution weights *and biases* times output positions, normalisation scale and shift
once, everything else 0. Parameters as in ``plain``.

``nessi_tflite`` (flatbuffers) is the challenge's count of a ``.tflite`` file, from the source of
NeSsi (github.com/AlbertoAncilotto/NeSsi, tflite_tools/tflite_model.py): "parameters" are the
*bytes* of all constant inputs of all operators, axes and shapes among them, once for each use.
MACs: convolutions as in ``plain``; FULLY_CONNECTED output elements times the *last* input
dimension (too few where a map is flattened on the way in); pools output elements times window;
MEAN input elements; ADD output elements; MUL, SUB, RSQRT and all others 0.

A network's count holds that of its device graph (`budgets.deployed`) as ``deployed``: the limits
apply to both, so that no network is trained which cannot be deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from budgets import cost, rules
from budgets.arena import Arena, arena, not_planned, refuse_bad_plan
from budgets.deployed import deployed_graph
from budgets.memory import live_activations, tensor_bytes
from budgets.names import layer_names
from budgets.receptive import Field, receptive_fields, sound_milliseconds
from firmware_ref.arch import Network, layers
from firmware_ref.graph import Graph, Operator, Tensor

CONVENTIONS: Mapping[str, str] = {
    "plain": "weights and biases; MACs of convolutions and fully connected layers only",
    "torchinfo": "MACs: convolution weights and biases x output positions, norm parameters once",
    "nessi_tflite": "parameters: bytes of all constant inputs; MACs with pools, MEAN and ADD",
}


@dataclass(frozen=True)
class LayerCount:
    """One row: a layer's name, operation, output shape, and what it costs in ``plain``.

    Shapes are (C, F, T) for a network and (N, F, T, C) for a flatbuffer, whose rows alone have the
    rest: the ``tensor`` that it writes, as the file names it; bytes of its constants by role;
    ``elementwise`` elements computed and ``reductions`` elements read; bytes of its outputs and of
    all activations alive while it runs; the receptive field in bands, frames and, on our features,
    milliseconds (`budgets.receptive`); an estimate of its ``instructions`` by core
    (`budgets.cost`), where the operator's cost is known.
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    tensor: str = ""
    weight_bytes: int = 0
    bias_bytes: int = 0
    other_bytes: int = 0
    elementwise: int = 0
    reductions: int = 0
    activation_bytes: int = 0
    live_bytes: int = 0
    receptive_bands: int = 0
    receptive_frames: int = 0
    receptive_ms: float | None = None
    instructions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """Totals under one of `CONVENTIONS`."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Count:
    """What one subject costs; ``kind`` is ``network``, ``preset``, ``checkpoint`` or ``tflite``.

    ``sizes`` gives bytes of a flatbuffer's constants at each use, and of the ``file`` where there
    is one, by part in ``parts``; ``sha256`` is the file's. No two of its ``layers`` share a name.
    ``peak_bytes`` are the activations alive at once, at most, in ``peak_layer``; ``arena`` is
    TFLM's. ``instructions`` sums the layers' estimates by core; ``not_costed`` names the kinds of
    operators left out, ``not_planned`` why there is no arena.
    ``not_int8`` and ``not_counted`` name tensors and operators that break the rules of
    `budgets.check.check`. A network has none of these itself, its ``deployed`` graph has.
    """

    name: str
    kind: str
    layers: tuple[LayerCount, ...]
    conventions: Mapping[str, Total]
    sizes: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    sha256: str | None = None
    peak_bytes: int = 0
    peak_layer: str = ""
    arena: Arena | None = None
    instructions: Mapping[str, int] = field(default_factory=dict)
    not_costed: tuple[str, ...] = ()
    not_planned: tuple[str, ...] = ()
    not_int8: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()
    deployed: Count | None = None

    @property
    def parameters(self) -> int:
        """Parameters in the plain convention."""
        return self.conventions["plain"].parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates in the plain convention."""
        return self.conventions["plain"].macs

    @property
    def hears_features(self) -> bool:
        """Whether a device graph reads our features, so that its fields are milliseconds too."""
        return any(row.receptive_ms is not None for row in self.layers)

    @property
    def on_device(self) -> Count:
        """The count of the device graph: a flatbuffer's own, or a network's once deployed."""
        return self if self.deployed is None else self.deployed


def count_network(network: Network, name: str | None = None, kind: str = "network") -> Count:
    """Count a network as trained and as deployed; ``name`` defaults to the network's own."""
    name = network.name if name is None else name
    deployed = count_graph(deployed_graph(network), f"{name}, deployed")
    table = layers(network)
    rows = tuple(
        LayerCount(
            name=layer.name,
            op=layer.kind,
            output_shape=layer.output_shape,
            parameters=layer.parameters,
            macs=layer.multiply_accumulates,
        )
        for layer in table
    )
    plain = _plain(rows)
    return Count(
        name=name,
        kind=kind,
        layers=rows,
        conventions={
            "plain": plain,
            "torchinfo": Total(plain.parameters, sum(map(rules.torchinfo_macs, table))),
        },
        deployed=deployed,
    )


def count_graph(graph: Graph, name: str, file_bytes: int | None = None) -> Count:
    """Count a device graph, that of a flatbuffer of ``file_bytes`` bytes where there is one.

    Raises `InputError` where an operator lacks the inputs that its cost is computed from, and for
    a plan of memory that cannot be.
    """
    for operator in graph.operators:
        rules.refuse_incomplete(graph, operator)
    refuse_bad_plan(graph)
    live = live_activations(graph)
    fields = receptive_fields(graph)
    names = layer_names(graph)
    rows = tuple(
        _row(graph, operator, names[place], live.bytes_by_operator[place], fields[place])
        for place, operator in enumerate(graph.operators)
    )
    nessi = Total(
        sum(row.weight_bytes + row.bias_bytes + row.other_bytes for row in rows),
        sum(rules.nessi_macs(graph, operator) for operator in graph.operators),
    )
    sizes = {
        "weights": sum(row.weight_bytes for row in rows),
        "biases": sum(row.bias_bytes for row in rows),
        "other": sum(row.other_bytes for row in rows),
    }
    return Count(
        name=name,
        kind="tflite",
        layers=rows,
        conventions={"plain": _plain(rows), "nessi_tflite": nessi},
        sizes=sizes if file_bytes is None else {**sizes, "file": file_bytes},
        parts={} if file_bytes is None else bytes_by_part(graph, file_bytes),
        peak_bytes=live.peak_bytes,
        peak_layer=live.peak_layer,
        arena=arena(graph),
        instructions={
            core: sum(row.instructions.get(core, 0) for row in rows) for core in cost.cores()
        },
        not_costed=tuple(sorted({row.op for row in rows if not row.instructions})),
        not_planned=not_planned(graph),
        not_int8=tuple(
            f"{tensor.name.strip() or f'tensor {index}'}: {tensor.dtype}"
            for index, tensor in enumerate(graph.tensors)
            if not _is_int8(tensor)
        ),
        not_counted=tuple(
            f"{row.name}: {row.op}"
            for row in rows
            if row.op not in rules.WEIGHTED and row.op not in rules.FREE
        ),
    )


def bytes_by_part(graph: Graph, file_bytes: int) -> dict[str, int]:
    """Where the bytes of a compact flatbuffer go; equal vectors of scales are stored once.

    A buffer that several tensors share counts once. ``weights`` are int8 constants, ``integers``
    int32 ones (biases, shapes), ``quantization`` the scales (4 bytes each) and zero points (8),
    ``graph`` all the rest: tables, names, alignment.
    """
    held = [tensor.data for tensor in graph.tensors if tensor.data is not None]
    # Data are views of the file: those of one buffer begin at one address.
    constants = {data.ctypes.data: data for data in held}.values()
    grids = [t.quantization for t in graph.tensors if t.quantization]
    parts = {
        "weights": sum(data.nbytes for data in constants if data.dtype == "int8"),
        "integers": sum(data.nbytes for data in constants if data.dtype == "int32"),
        "quantization": 4 * sum(map(len, {grid.scale for grid in grids}))
        + 8 * sum(map(len, {grid.zero_point for grid in grids})),
        "metadata": sum(map(len, graph.metadata.values())),
    }
    return {**parts, "graph": file_bytes - sum(parts.values())}


def _plain(rows: tuple[LayerCount, ...]) -> Total:
    return Total(sum(row.parameters for row in rows), sum(row.macs for row in rows))


def _row(graph: Graph, operator: Operator, name: str, live_bytes: int, seen: Field) -> LayerCount:
    macs = rules.plain_macs(graph, operator)
    output = graph.tensors[operator.outputs[0]]
    learned = list(rules.learned(graph, operator))
    weights = sum(data.nbytes for role, data in learned if role == "weights")
    biases = sum(data.nbytes for role, data in learned if role == "biases")
    return LayerCount(
        name=name,
        op=operator.kind,
        output_shape=output.shape,
        parameters=sum(data.size for _, data in learned),
        macs=macs,
        tensor=graph.name(operator),
        weight_bytes=weights,
        bias_bytes=biases,
        other_bytes=rules.constant_bytes(graph, operator) - weights - biases,
        elementwise=rules.elementwise_work(graph, operator),
        reductions=rules.reduction_work(graph, operator),
        activation_bytes=sum(tensor_bytes(graph.tensors[index]) for index in operator.outputs),
        live_bytes=live_bytes,
        receptive_bands=seen.bands,
        receptive_frames=seen.frames,
        receptive_ms=sound_milliseconds(seen, graph.tensors[graph.inputs[0]].shape),
        instructions=cost.instructions(graph, operator, macs) or {},
    )


def _is_int8(tensor: Tensor) -> bool:
    """Activations must be int8, constants int8 or int32 (biases) unless they are axes or shapes."""
    if tensor.data is None:
        return tensor.dtype == "int8"
    return tensor.dtype in ("int8", "int32") or not rules.holds_reals(tensor)
