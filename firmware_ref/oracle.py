"""The interpreters that decide what is right: which package, which version, which kernels.

Goldens come from these, never from `firmware_ref`. Both run in this process: the two wheels keep
their symbols to themselves, whichever is imported first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from firmware_ref import schema
from firmware_ref.errors import InputError
from firmware_ref.flatbuffer import Source
from firmware_ref.graph import Graph, parse
from firmware_ref.memory_plan import planned_offsets

Session = Callable[[np.ndarray], dict[int, np.ndarray]]
"""One example int8 (1, ...) in; every operator's output by its index in `Graph.tensors` out."""


@dataclass(frozen=True)
class Oracle:
    """An interpreter: its package on PyPI, the one version that counts, and its kernels."""

    name: str
    version: str
    module: str
    kernels: str
    open: Callable[[ModuleType, bytes, Graph], Session]


def session(oracle: Oracle, data: bytes, graph: Graph) -> Session:
    """Load ``data``, the bytes that ``graph`` was read from, into the oracle's interpreter.

    Raises `InputError` when the package is missing, has another version than the pinned one, or
    refuses the model; so does the session when the interpreter refuses the values.
    """
    module = loaded(oracle)
    with refusals(oracle):
        run = oracle.open(module, data, graph)

    def guarded(example: np.ndarray) -> dict[int, np.ndarray]:
        with refusals(oracle):
            return run(example)

    return guarded


def loaded(oracle: Oracle) -> ModuleType:
    """The oracle's module; an `InputError` where it is missing or of another version."""
    try:
        version = importlib.metadata.version(oracle.name)
        module = importlib.import_module(oracle.module)
    except ImportError:
        raise InputError(
            f"oracle {oracle.name} is not installed; run: pip install 'tinyscene[convert]'"
        ) from None
    if version != oracle.version:
        raise InputError(
            f"oracle {oracle.name} has version={version}; bit-exactness is defined by "
            f"{oracle.version}: pip install '{oracle.name}=={oracle.version}'"
        )
    return module


@contextlib.contextmanager
def refusals(oracle: Oracle) -> Iterator[None]:
    """The wheels raise RuntimeError or ValueError for what they refuse, or stumble over it."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, struct.error) as error:
        raise InputError(f"oracle {oracle.name} {oracle.version} refuses this: {error}") from None


def _outputs(graph: Graph) -> list[int]:
    """Indices of the tensors that operators write, in order of execution."""
    return [index for operator in graph.operators for index in operator.outputs]


def with_all_outputs(data: bytes, graph: Graph) -> bytes:
    """The model with every operator's output as an output of the graph.

    tflite-runtime 2.14 computes ADD, MUL and others in the place of their input when nothing reads
    that again, even with ``experimental_preserve_all_tensors``: the input then reads back as the
    output. It never does so to an output of the graph.
    """
    (subgraph,) = Source(data).root(schema.IDENTIFIER).tables(schema.MODEL_SUBGRAPHS)
    position = subgraph.offset_position(schema.SUBGRAPH_OUTPUTS)
    assert position is not None, "a graph has outputs"
    return _with_vector(data, position, _outputs(graph), "outputs")


def without_metadata(data: bytes) -> bytes:
    """The model without metadata, so that TFLM plans its memory and lets no tensors overlap."""
    position = Source(data).root(schema.IDENTIFIER).offset_position(schema.MODEL_METADATA)
    return data if position is None else _with_vector(data, position, [], "metadata")


def _with_vector(data: bytes, position: int, numbers: list[int], what: str) -> bytes:
    """The model with other numbers for ``what``, whose offset is stored at ``position``.

    The new vector goes to the end of the file, and the offset of the old one is turned to it. In a
    file whose tables overlap that changes more, unchecked; so the result is read and compared.
    """
    patched = bytearray(data + bytes(-len(data) % 4))
    struct.pack_into("<I", patched, position, len(patched) - position)
    result = bytes(patched + struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers))
    if _all_but(what, result) != _all_but(what, data):
        raise InputError("the model's tables overlap; convert it again")
    return result


def _all_but(what: str, data: bytes) -> dict[str, object]:
    """All that a model holds but one thing, to be compared."""
    found = parse(data)
    held = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    held["tensors"] = [
        (t.name, t.shape, t.dtype, t.quantization, None if t.data is None else t.data.tobytes())
        for t in found.tensors
    ]
    del held[what]
    return held


def _open_tflite_runtime(module: ModuleType, data: bytes, graph: Graph) -> Session:
    interpreter = module.Interpreter(
        model_content=with_all_outputs(data, graph),
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    indices = _outputs(graph)

    def run(example: np.ndarray) -> dict[int, np.ndarray]:
        interpreter.set_tensor(graph.inputs[0], example)
        interpreter.invoke()
        return {index: interpreter.get_tensor(index) for index in indices}

    return run


def _open_tflite_micro(module: ModuleType, data: bytes, graph: Graph) -> Session:
    """Every tensor of a model without its plan of memory, and the outputs of the model as it is."""
    indices = _outputs(graph)
    # Every tensor kept, int32 scratch for the means, and room for the interpreter's own records.
    kept = sum(math.prod(graph.tensors[index].shape) for index in indices)
    arena_bytes = 8 * kept + len(data) + 2**20
    interpreter = module.Interpreter.from_bytes(
        without_metadata(data),
        arena_size=arena_bytes,
        intrepreter_config=module.InterpreterConfig.kPreserveAllTensors,
    )
    deployed = None
    if planned_offsets(graph) is not None:
        deployed = module.Interpreter.from_bytes(data, arena_size=arena_bytes)

    def run(example: np.ndarray) -> dict[int, np.ndarray]:
        interpreter.set_input(example, 0)
        interpreter.invoke()
        found = {index: interpreter.GetTensor(index, 0)["tensor_data"] for index in indices}
        if deployed is not None:
            deployed.set_input(example, 0)
            deployed.invoke()
            outputs = {index: deployed.get_output(n) for n, index in enumerate(graph.outputs)}
            found.update((index, outputs[index]) for index in outputs if index in found)
        return found

    return run


ORACLES: Mapping[str, Oracle] = {
    oracle.name: oracle
    for oracle in (
        Oracle(
            name="tflite-runtime",
            version="2.14.0",
            module="tflite_runtime.interpreter",
            kernels="BUILTIN_REF",
            open=_open_tflite_runtime,
        ),
        Oracle(
            name="tflite-micro",
            version="0.dev20261023182759",
            module="tflite_micro.python.tflite_micro.runtime",
            kernels="TFLM reference kernels",
            open=_open_tflite_micro,
        ),
    )
}


def oracle(name: str) -> Oracle:
    """The oracle of that name."""
    if name not in ORACLES:
        raise InputError(f"unknown oracle {name!r}; known: {', '.join(ORACLES)}")
    return ORACLES[name]
