"""Where a model's activations lie in TFLite Micro's arena, as metadata that its planner obeys.

``OfflineMemoryAllocation`` is a buffer of int32: version 1, subgraph 0, the number of tensors, and
for each tensor its offset in bytes, or -1 where TFLM places it itself, or nothing has to be placed
(``GetOfflinePlannedOffsets``, tensorflow/lite/micro/micro_allocation_info.cc). TFLM takes what it
finds there on trust; this reader does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph

PLAN_NAME = "OfflineMemoryAllocation"
VERSION = 1
HEADER = 3
ONLINE = -1


def encode_offsets(offsets: Sequence[int]) -> bytes:
    """The metadata of a plan: an offset for each tensor of the graph, or `ONLINE`."""
    return np.array([VERSION, 0, len(offsets), *offsets], "<i4").tobytes()


def planned_offsets(graph: Graph) -> tuple[int, ...] | None:
    """An offset in bytes, or `ONLINE`, for each tensor; None where the model has no plan.

    Raises `InputError` for metadata of another form or length, and for an offset below -1.
    """
    data = graph.metadata.get(PLAN_NAME)
    if data is None:
        return None
    count = len(graph.tensors)
    if len(data) != 4 * (HEADER + count):
        raise InputError(
            f"model metadata {PLAN_NAME!r} has {len(data)} bytes; {4 * (HEADER + count)} are "
            f"allowed, for {count} tensors; convert the model again"
        )
    header, offsets = np.split(np.frombuffer(data, "<i4"), [HEADER])
    if header.tolist() != [VERSION, 0, count]:
        raise InputError(
            f"model metadata {PLAN_NAME!r} begins with {header.tolist()}; allowed is "
            f"{[VERSION, 0, count]} (version, subgraph, tensors); convert the model again"
        )
    if offsets.min(initial=ONLINE) < ONLINE:
        raise InputError(
            f"model metadata {PLAN_NAME!r} has the offset {offsets.min()}; allowed is -1 or more; "
            "convert the model again"
        )
    return tuple(offsets.tolist())
