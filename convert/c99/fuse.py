"""From the operators of a flatbuffer to the steps of the generated C.

The steps are those of the network family: what `firmware_ref.lowering` writes, found again by kind
and wiring, not by name. Any other graph is refused: it runs by TFLite Micro, not by this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from convert.c99.steps import (
    Convolution,
    FrequencyConvolution,
    MaxPool,
    MeanPool,
    Normalization,
    Residual,
    Step,
    TemporalConvolution,
)
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator

# ResNorm's operators in order; each input by the place of the operator that computes it, -1 for
# the map that comes in, None for a constant.
NORMALIZATION: tuple[tuple[str, tuple[int | None, ...]], ...] = (
    ("CONV_2D", (-1, None, None)),
    ("CONV_2D", (0, None, None)),
    ("MUL", (-1, -1)),
    ("CONV_2D", (2, None, None)),
    ("CONV_2D", (3, None, None)),
    ("MUL", (1, 1)),
    ("SUB", (4, 5)),
    ("RSQRT", (6,)),
    ("ADD", (7, None)),
    ("MUL", (1, 7)),
    ("MUL", (-1, 8)),
    ("SUB", (10, 9)),
)
TEMPORAL = (
    ("DEPTHWISE_CONV_2D", (-1, None, None)),
    ("LOGISTIC", (0,)),
    ("MUL", (0, 1)),
)


def fuse(graph: Graph) -> list[Step]:
    """Steps in order of execution of a graph that `firmware_ref.run.Interpreter` accepts.

    Raises `InputError` naming the first layer that fits none.
    """
    return _Fuser(graph).steps()


class _Fuser:
    """Walks the operators with a map (and, within a block, a row) in hand."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.operators = graph.operators
        self.at = 0

    def steps(self) -> list[Step]:
        found: list[Step] = []
        current = self.graph.inputs[0]
        while self.at < len(self.operators):
            new, current = self.next(current)
            found += new
        if not found:
            raise self.error("the graph has no layer")
        if current != self.graph.outputs[0]:
            raise self.error("the last operator does not give the graph's output")
        if math.prod(self.shape(current)) != self.shape(current)[-1]:
            raise self.error("an output of logits alone is expected", self.operators[-1])
        return found

    def next(self, current: int) -> tuple[list[Step], int]:
        """The steps that begin here, and the tensor that they leave."""
        operator = self.here()
        if operator.inputs[:1] != (current,):
            raise self.error("it does not read what the step before it leaves")
        if run := self.run(NORMALIZATION, current):
            self.check_normalization(run)
            return [Normalization(*run)], run[-1].outputs[0]
        if self.is_frequency_convolution():
            return self.block(current)
        self.at += 1
        output = operator.outputs[0]
        if operator.kind == "CONV_2D":
            self.check_convolution(operator)
            return [Convolution(operator)], output
        if operator.kind == "MAX_POOL_2D":
            self.check_window(operator, (2, 2))
            return [MaxPool(operator)], output
        if operator.kind == "AVERAGE_POOL_2D":
            self.check_window(operator, self.shape(current)[1:3])
            return [MeanPool(operator)], output
        if operator.kind == "RESHAPE" and self.at == len(self.operators):
            return [], output  # the same bytes
        self.at -= 1
        raise self.error("it is in no place where the network family has it")

    def run(
        self, pattern: Sequence[tuple[str, tuple[int | None, ...]]], current: int
    ) -> list[Operator] | None:
        """The next operators, where their kinds and wiring are those of ``pattern``."""
        found = list(self.operators[self.at : self.at + len(pattern)])
        if [operator.kind for operator in found] != [kind for kind, _ in pattern]:
            return None
        for operator, (_, sources) in zip(found, pattern, strict=True):
            for place, source in enumerate(sources):
                index = operator.inputs[place] if place < len(operator.inputs) else -1
                constant = index >= 0 and self.graph.tensors[index].data is not None
                if source is None:
                    fits = constant
                else:
                    fits = index == (current if source < 0 else found[source].outputs[0])
                if not fits:
                    return None
        self.at += len(pattern)
        return found

    def is_frequency_convolution(self) -> bool:
        """Whether a block begins: a 3x1 depthwise convolution, or the padding before its bands."""
        operator = self.here()
        if operator.kind == "PAD":
            return True
        return operator.kind == "DEPTHWISE_CONV_2D" and self.kernel(operator) == (3, 1)

    def block(self, current: int) -> tuple[list[Step], int]:
        """A block from its frequency convolution to its sum."""
        bands, whole = self.bands(current)
        mean = self.take("AVERAGE_POOL_2D", whole.outputs[0])
        self.check_window(mean, (self.shape(current)[1], 1))
        identity = difference = None
        if self.here().kind == "AVERAGE_POOL_2D":
            identity = self.take("AVERAGE_POOL_2D", current)
            self.check_window(identity, (self.shape(current)[1], 1))
            difference = self.take("SUB", mean.outputs[0], identity.outputs[0])
        row = (difference or mean).outputs[0]
        temporal = self.run(TEMPORAL, row)
        if temporal is None:
            raise self.error("a 1x3 convolution and SiLU are expected after the mean")
        self.check_depthwise(temporal[0], (1, 3), "SAME")
        project = self.take("CONV_2D", temporal[2].outputs[0])
        self.check_convolution(project)
        if self.shape(project.outputs[0]) != (1, 1, *self.shape(current)[2:]):
            raise self.error("a row as wide as the block's map is expected", project)
        total = self.here()
        inputs = {whole.outputs[0], project.outputs[0]}
        if total.kind != "ADD" or set(total.inputs) != inputs:
            raise self.error("the sum of the block's map and row is expected")
        self.at += 1
        steps: list[Step] = [
            FrequencyConvolution(bands, whole, mean, identity, difference),
            TemporalConvolution(*temporal),
            Convolution(project),
            Residual(total, total.inputs[0] == whole.outputs[0]),
        ]
        return steps, total.outputs[0]

    def bands(self, current: int) -> tuple[tuple[Operator, ...], Operator]:
        """The convolution itself; or padding, slices, convolutions and their concatenation."""
        if self.here().kind == "DEPTHWISE_CONV_2D":
            convolution = self.take("DEPTHWISE_CONV_2D", current)
            self.check_depthwise(convolution, (3, 1), "SAME")
            return (convolution,), convolution
        padded = self.take("PAD", current)
        if self.integers(padded, 1) != [0, 0, 1, 1, 0, 0, 0, 0]:
            raise self.error("one row of padding on either side is expected", padded)
        found: list[Operator] = []
        while self.here().kind == "SLICE":
            part = self.take("SLICE", padded.outputs[0])
            convolution = self.take("DEPTHWISE_CONV_2D", part.outputs[0])
            self.check_depthwise(convolution, (3, 1), "VALID")
            if self.integers(part, 1) != [
                0,
                len(found) * self.shape(convolution.outputs[0])[1],
                0,
                0,
            ]:
                raise self.error("bands of equal size, one after another, are expected", part)
            found.append(convolution)
        whole = self.take("CONCATENATION", *(part.outputs[0] for part in found))
        self.check_bands(found, whole, current)
        return tuple(found), whole

    def here(self) -> Operator:
        """The operator that comes next; an `InputError` where the graph has ended."""
        if self.at == len(self.operators):
            raise self.error("the graph ends within a block", self.operators[-1])
        return self.operators[self.at]

    def take(self, kind: str, *inputs: int) -> Operator:
        """The next operator, of this kind and on these activations."""
        operator = self.here()
        if operator.kind != kind:
            raise self.error(f"{kind} is expected here")
        if operator.inputs[: len(inputs)] != inputs:
            raise self.error(f"{kind} is expected on other inputs")
        self.at += 1
        return operator

    def check_bands(self, found: Sequence[Operator], whole: Operator, current: int) -> None:
        """They are all of the map, whole rows, in equal parts with one clamp."""
        _, rows, frames, channels = self.shape(current)
        expected = {(1, rows // max(len(found), 1), frames, channels)}
        if (
            len(whole.inputs) != len(found)
            or self.shape(whole.outputs[0]) != self.shape(current)
            or {self.shape(band.outputs[0]) for band in found} != expected
        ):
            raise self.error("bands that make up the whole map are expected", whole)
        if len({band.options["fused_activation"] for band in found}) != 1:
            raise self.error("bands with the same fused activation are expected", whole)

    def check_normalization(self, run: Sequence[Operator]) -> None:
        """The means are of whole rows, by weights that are all the same, without a bias."""
        _, rows, frames, channels = self.shape(run[0].inputs[0])
        over_channels = (1, 1, 1, channels), (1, rows, frames, 1)
        over_frames = (1, 1, frames, 1), (1, rows, 1, 1)
        for place, (shape, mean) in (
            (0, over_channels),
            (1, over_frames),
            (3, over_channels),
            (4, over_frames),
        ):
            operator = run[place]
            self.check_convolution(operator)
            weights, bias = (self.graph.tensors[i].data for i in operator.inputs[1:])
            assert weights is not None and bias is not None
            equal = (weights == weights.reshape(-1)[0]).all()
            fits = weights.shape == shape and self.shape(operator.outputs[0]) == mean
            if not fits or not equal or bias.any():
                raise self.error("equal weights over a whole row are expected", operator)
        if math.prod(self.shape(run[8].inputs[1])) != 1:
            raise self.error("a constant of one element is expected", run[8])

    def check_window(self, operator: Operator, window: tuple[int, ...]) -> None:
        options = operator.options
        found = (options["filter_height"], options["filter_width"])
        strides = (options["stride_h"], options["stride_w"])
        size = self.shape(operator.inputs[0])[1:3]
        # A window as large as the map has no next one to stride to.
        beside = all(
            stride == taps or taps == extent
            for stride, taps, extent in zip(strides, found, size, strict=True)
        )
        if found != tuple(window) or not beside or options["padding"] != "VALID":
            raise self.error(f"windows of {window} side by side are expected", operator)
        if options["fused_activation"] != "NONE":
            raise self.error("no fused activation is expected", operator)

    def check_convolution(self, operator: Operator) -> None:
        if self.dilations(operator) != (1, 1):
            raise self.error("a convolution without dilation is expected", operator)

    def check_depthwise(self, operator: Operator, kernel: tuple[int, int], padding: str) -> None:
        options = operator.options
        if (
            self.kernel(operator) != kernel
            or options["padding"] != padding
            or (options["stride_h"], options["stride_w"]) != (1, 1)
            or self.dilations(operator) != (1, 1)
            or options["depth_multiplier"] != 1
        ):
            rows, frames = kernel
            raise self.error(
                f"a {rows}x{frames} convolution with padding {padding} is expected", operator
            )

    def dilations(self, operator: Operator) -> tuple[int, int]:
        return operator.options["dilation_h_factor"], operator.options["dilation_w_factor"]

    def kernel(self, operator: Operator) -> tuple[int, ...]:
        return self.shape(operator.inputs[1])[1:3]

    def shape(self, index: int) -> tuple[int, ...]:
        return self.graph.tensors[index].shape

    def integers(self, operator: Operator, place: int) -> list[int]:
        data = self.graph.tensors[operator.inputs[place]].data
        assert data is not None
        return [int(value) for value in data.ravel()]

    def error(self, text: str, operator: Operator | None = None) -> InputError:
        if operator is None and self.at < len(self.operators):
            operator = self.operators[self.at]
        where = f"{operator.kind} {self.graph.name(operator)!r}: " if operator else ""
        return InputError(
            f"{where}{text}; C is generated for the network family alone, other graphs run by "
            "TFLite Micro"
        )
