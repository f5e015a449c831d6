"""The interpreter: a whole INT8 flatbuffer in NumPy, bit for bit as the reference kernels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Operator, Tensor
from firmware_ref.ops import prepare
from firmware_ref.ops.node import Kernel

# Examples computed together, and elements of a map computed in one call: enough to spread the cost
# of a call, few enough to stay in cache.
BATCH = 16
CHUNK_ELEMENTS = 1 << 16
# Elements that a call may take of its inputs, or inside: of eight bytes each at the most.
WORKING_ELEMENTS = 1 << 23
# Elements that all operators together may read and write, each counted at every use: one constant
# that thousands of operators share would make hours of preparation of a small file.
MAX_USED_ELEMENTS = 1 << 25
# Of the input and the output, whose reals are float32.
LARGEST_SCALE = 1e30


class Interpreter:
    """Runs a graph with one int8 input and one int8 output, for any number of examples.

    Everything is checked and precomputed here; an operator that cannot be run is an `InputError`
    before anything runs.
    """

    def __init__(self, graph: Graph) -> None:
        if not graph.operators:
            raise InputError("graph has no operators: there is nothing to run; give another model")
        self.graph = graph
        self.input = _only(graph, graph.inputs, "input")
        self.output = _only(graph, graph.outputs, "output")
        if self.output.data is not None:
            raise InputError(f"graph output {self.output.name!r} is a constant")
        _check_size(graph)
        self._steps = [self._step(operator) for operator in graph.operators]
        self._last_use = self._last_uses()

    def run(self, inputs: np.ndarray, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Outputs int8 (N, ...) for inputs int8 (N, ...), in the shapes of the file but for N.

        ``progress`` is called with the number of examples done after every `BATCH` of them.
        """
        self.check(inputs)
        outputs = np.empty((len(inputs), *self.output.shape[1:]), np.int8)
        for start in range(0, len(inputs), BATCH):
            values = {self.graph.inputs[0]: inputs[start : start + BATCH]}
            for step, (index, value) in enumerate(self._evaluate(values)):
                values[index] = value
                for dead in self._last_use[step]:
                    del values[dead]
            outputs[start : start + BATCH] = values[self.graph.outputs[0]]
            if progress:
                progress(min(start + BATCH, len(inputs)))
        return outputs

    def run_all(self, inputs: np.ndarray) -> dict[int, np.ndarray]:
        """Every activation, int8 (N, ...), by its index in `Graph.tensors`, in order."""
        self.check(inputs)
        values = {self.graph.inputs[0]: inputs}
        for index, value in self._evaluate(values):
            values[index] = value
        return values

    def check(self, inputs: np.ndarray) -> None:
        """Refuse inputs of another dtype or shape, or none at all."""
        wanted = self.input.shape[1:]
        if inputs.dtype != np.int8 or inputs.shape[1:] != wanted or len(inputs) < 1:
            sizes = ", ".join(str(size) for size in wanted)
            raise InputError(
                f"inputs have dtype={inputs.dtype} and shape={inputs.shape}; the model takes "
                f"int8 (N, {sizes}) with N at least 1"
            )

    def _step(self, operator: Operator) -> tuple[Kernel, list[int], int]:
        """An operator's kernel, the activations that it takes, and its output."""
        tensors, output = self.graph.tensors, operator.outputs[0]
        inputs = [i for i in operator.inputs if i != -1 and tensors[i].data is None]
        kernel = prepare(operator, self.graph)
        return _in_chunks(kernel, [tensors[i] for i in inputs], tensors[output]), inputs, output

    def _evaluate(self, values: dict[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Each operator's output in turn; the caller keeps it in ``values``."""
        for kernel, inputs, output in self._steps:
            yield output, kernel(*(values[index] for index in inputs))

    def _last_uses(self) -> list[list[int]]:
        """For each step, the tensors that no later step and no output reads."""
        uses = Counter(index for _, inputs, _ in self._steps for index in inputs)
        uses.update(self.graph.outputs)
        dead: list[list[int]] = []
        for _, inputs, output in self._steps:
            uses.subtract(inputs)
            dead.append([i for i in {*inputs, output} if uses[i] == 0])
        return dead


def _check_size(graph: Graph) -> None:
    uses = (i for o in graph.operators for i in (*o.inputs, *o.outputs) if i != -1)
    elements = sum(math.prod(graph.tensors[index].shape) for index in uses)
    if elements > MAX_USED_ELEMENTS:
        raise InputError(
            f"the graph's operators read and write {elements:,} elements in all; at most "
            f"{MAX_USED_ELEMENTS:,} can be run; give a smaller model"
        )


def _in_chunks(kernel: Kernel, inputs: Sequence[Tensor], output: Tensor) -> Kernel:
    """The kernel on a few examples after another, where together they would leave the cache.

    Those of large inputs, and of kernels that take much memory themselves, are fewer still.
    """
    taken = [getattr(kernel, "working", 1), *(math.prod(tensor.shape) for tensor in inputs)]
    sizes = CHUNK_ELEMENTS // math.prod(output.shape), WORKING_ELEMENTS // max(taken)
    size = max(min(sizes), 1)

    def run(*activations: np.ndarray) -> np.ndarray:
        count = len(activations[0])
        if count <= size:
            return kernel(*activations)
        starts = range(0, count, size)
        return np.concatenate([kernel(*(x[i : i + size] for x in activations)) for i in starts])

    return run


def _only(graph: Graph, indices: tuple[int, ...], what: str) -> Tensor:
    """The one input or output of a graph, checked to be int8 with a batch of 1."""
    if len(indices) != 1:
        raise InputError(f"graph {what}s={len(indices)}; exactly 1 can be run")
    tensor = graph.tensors[indices[0]]
    if tensor.dtype != "int8" or tensor.quantization is None:
        raise InputError(
            f"graph {what} {tensor.name!r} has dtype={tensor.dtype}; only full INT8 models can be "
            "run; convert with `python -m convert --target tflite-micro`"
        )
    if not tensor.quantization.scale[0] < LARGEST_SCALE:
        raise InputError(
            f"graph {what} {tensor.name!r} has scale={tensor.quantization.scale[0]}; allowed is "
            f"less than {LARGEST_SCALE:g}, so that a float32 holds every value; retrain"
        )
    if len(tensor.shape) < 2 or tensor.shape[0] != 1:
        raise InputError(f"graph {what} {tensor.name!r} has shape={tensor.shape}; batch must be 1")
    return tensor
