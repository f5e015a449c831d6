"""The receptive field: how many bands and frames of the input one value of a layer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from budgets.rules import CONVOLUTIONS, POOLS, weights_shape
from firmware_ref.features import DELTA_REACH_FRAMES, FeatureDefinition
from firmware_ref.graph import Graph, Operator

BANDS, FRAMES = 1, 2  # axes of an (N, F, T, C) map
# What takes a part of a map: one value of it is one value of the input.
SELECTIONS = ("GATHER", "SLICE", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "UNPACK")


@dataclass(frozen=True)
class Field:
    """Extent in bands and frames of the graph's input; ``stride``: from one value to the next."""

    bands: int
    frames: int
    stride: tuple[int, int] = (1, 1)

    @property
    def extent(self) -> tuple[int, int]:
        """Bands and frames."""
        return self.bands, self.frames


def receptive_fields(graph: Graph) -> list[Field]:
    """The field of every operator's first output, in order of execution; at most the input.

    Along each axis it is that of the operands that extend along it. What is the same for all
    frames or bands, such as the statistics of a normalisation or a mean over frequency, comes from
    the whole axis, and would hide what the convolutions see. Operators that move axes are taken to
    leave them in place, and after one that enlarges a map the fields are upper bounds. Raises
    `InputError` for a convolution without weights.
    """
    whole = _sizes(graph.tensors[graph.inputs[0]].shape) if graph.inputs else (1, 1)
    fields = [Field(1, 1)] * len(graph.tensors)
    found = []
    for operator in graph.operators:
        field = _field(graph, operator, fields, whole)
        for index in operator.outputs:
            fields[index] = field
        found.append(field)
    return found


def sound_milliseconds(field: Field, input_shape: Sequence[int]) -> float | None:
    """How much sound the frames of a field are made of, deltas included; at most the clip.

    None where the graph's input is not the features' (1, mel_bands, frames, C), C being 3 with
    deltas or 1 without.
    """
    definition = FeatureDefinition()
    features = (1, definition.mel_bands, definition.frames)
    if tuple(input_shape) not in ((*features, 1), (*features, 3)):
        return None
    frames = field.frames + (4 * DELTA_REACH_FRAMES if input_shape[3:] == (3,) else 0)
    samples = (frames - 1) * definition.hop_samples + definition.window_samples
    return 1000 * min(samples, definition.clip_samples) / definition.sample_rate_hz


def _sizes(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[BANDS], shape[FRAMES]) if len(shape) == 4 else (1, 1)


def _field(
    graph: Graph, operator: Operator, fields: Sequence[Field], whole: tuple[int, int]
) -> Field:
    output = _sizes(graph.tensors[operator.outputs[0]].shape)
    read = dict.fromkeys(operator.inputs)  # each once
    computed = [i for i in read if i >= 0 and graph.tensors[i].data is None]
    extents, strides = [], []
    for axis, (size, most) in enumerate(zip(output, whole, strict=True)):
        sizes = [_sizes(graph.tensors[i].shape)[axis] for i in computed]
        along = [i for i, s in zip(computed, sizes, strict=True) if s == size] or computed
        extent = max((fields[i].extent[axis] for i in along), default=1)
        stride = max((fields[i].stride[axis] for i in along), default=1)
        taps, step = _window(graph, operator, axis)
        if operator.kind == "RESIZE_NEAREST_NEIGHBOR":
            step = -(-max(sizes, default=1) // size)
        if size == 1 and operator.kind not in (*CONVOLUTIONS, *POOLS, *SELECTIONS):
            taps = max(sizes, default=1)  # one value of the whole axis
        extent += (taps - 1) * stride
        extents.append(max(1, min(extent, most)))
        strides.append(max(1, min(stride * step, most)))
    return Field(extents[0], extents[1], (strides[0], strides[1]))


def _window(graph: Graph, operator: Operator, axis: int) -> tuple[int, int]:
    """Taps, with dilation, and step of a convolution or pooling along an axis; else 1 and 1."""
    letter = "hw"[axis]
    name = {"h": "height", "w": "width"}[letter]
    step = operator.options.get(f"stride_{letter}", 1)
    if (taps := operator.options.get(f"filter_{name}")) is not None:
        return taps, step
    if operator.kind in CONVOLUTIONS:
        taps = weights_shape(graph, operator, rank=4)[1 + axis]
        return (taps - 1) * operator.options.get(f"dilation_{letter}_factor", 1) + 1, step
    return 1, 1
