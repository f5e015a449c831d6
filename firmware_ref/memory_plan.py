"""Where a model's activations lie in TFLite Micro's arena, as metadata that its planner obeys.

``OfflineMemoryAllocation`` is a buffer of int32: version 0, a subgraph, the number of tensors, and
for each tensor its offset in bytes, or -1 where TFLM places it itself, or nothing has to be placed.
TFLM reads none of the first two words, and the rest on trust (``GetOfflinePlannedOffsets``,
tensorflow/lite/micro/micro_allocation_info.cc); this reader looks at all but those two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firmware_ref.errors import InputError
from firmware_ref.graph import Graph

PLAN_NAME = "OfflineMemoryAllocation"
HEADER = 3
ALIGNMENT_BYTES = 16
ONLINE = -1


def encode_offsets(offsets: Sequence[int]) -> bytes:
    """The metadata of a plan: an offset for each tensor of the graph, or `ONLINE`."""
    return np.array([0, 0, len(offsets), *offsets], "<i4").tobytes()


def planned_offsets(graph: Graph) -> tuple[int, ...] | None:
    """An offset in bytes, or `ONLINE`, for each tensor; None where the model has no plan.

    Raises `InputError` for another number of tensors, too few bytes, and an offset that is neither
    -1 nor a multiple of 16, as TFLM's own are.
    """
    data = graph.metadata.get(PLAN_NAME)
    if data is None:
        return None
    count = len(graph.tensors)
    words = np.frombuffer(data, "<i4", len(data) // 4)
    if len(words) < HEADER + count or words[HEADER - 1] != count:
        told = int(words[HEADER - 1]) if len(words) >= HEADER else 0
        raise InputError(
            f"model metadata {PLAN_NAME!r}: {len(data)} bytes for {told} tensors; "
            f"{4 * (HEADER + count)} are needed for the graph's {count}; convert the model again"
        )
    offsets = words[HEADER : HEADER + count]
    wrong = offsets[(offsets != ONLINE) & ((offsets < 0) | (offsets % ALIGNMENT_BYTES != 0))]
    if wrong.size:
        raise InputError(
            f"model metadata {PLAN_NAME!r} has the offset {wrong[0]}; allowed are -1 and multiples "
            f"of {ALIGNMENT_BYTES}; convert the model again"
        )
    return tuple(offsets.tolist())
