"""The figures of a count, under the names that limits, baselines and JSON know them by."""

from __future__ import annotations

from budgets import cost
from budgets.count import Count, LayerCount

# What a `[model]` limit, a growth limit and a baseline may name; the same of one layer.
MODEL_FIGURES = (
    *("parameters", "multiply_accumulates", "weight_bytes", "flatbuffer_bytes"),
    *("peak_activation_bytes", "arena_bytes"),
)
LAYER_FIGURES = (
    *("parameters", "multiply_accumulates", "weight_bytes", "activation_bytes", "live_bytes"),
)
INSTRUCTIONS = "instructions"
# Of the JSON report (`budgets.document`): changes when a key changes its meaning or goes away.
SCHEMA_VERSION = 2


def instruction_figures() -> tuple[str, ...]:
    """One for each core, for instance ``instructions.cortex-m4``."""
    return tuple(f"{INSTRUCTIONS}.{core}" for core in cost.cores())


def model_figures(count: Count) -> dict[str, int]:
    """What is known of a subject: parameters and MACs as counted, the rest of its device graph."""
    device = count.on_device
    known: dict[str, int | None] = {
        "parameters": count.parameters,
        "multiply_accumulates": count.macs,
        "weight_bytes": device.sizes.get("weights"),
        "flatbuffer_bytes": device.sizes.get("file"),
        "peak_activation_bytes": device.peak_bytes if device.layers else None,
        "arena_bytes": None if device.arena is None else device.arena.total_bytes,
    }
    if not device.not_costed:
        known |= {f"{INSTRUCTIONS}.{core}": n for core, n in device.instructions.items()}
    return {name: value for name, value in known.items() if value is not None}


def layer_figures(row: LayerCount) -> dict[str, int]:
    """What is known of one layer; of one as trained, parameters and MACs."""
    counted = {"parameters": row.parameters, "multiply_accumulates": row.macs}
    if not row.activation_bytes:
        return counted
    return counted | {
        "weight_bytes": row.weight_bytes,
        "activation_bytes": row.activation_bytes,
        "live_bytes": row.live_bytes,
        **{f"{INSTRUCTIONS}.{core}": n for core, n in row.instructions.items()},
    }
