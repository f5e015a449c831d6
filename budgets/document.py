"""The report as JSON, for machines and as a baseline of later ones.

One object; ``schema_version`` changes when a key changes its meaning or goes away:

- ``ok``: whether every subject is within every limit; ``limits``: what was allowed; ``version`` of
  this package, null where it is not installed
- ``costs``: by core, how far the estimate of instructions may be off (``error_percent``; null where
  it was not measured, the instructions being those of the core ``same_as``), and cycles an
  instruction
- ``subjects``: in the order given, each with ``name``, ``kind`` (``preset``, ``checkpoint``,
  ``tflite``), ``sha256`` (of a flatbuffer's file, else null), ``figures`` (every figure that a
  limit may name, where it is known), ``violations``, ``unchecked`` (limits without a figure here,
  or of growth without a baseline), ``baseline`` (the name there of what this was compared with, or
  null), ``changes`` (against that), and

  - ``conventions``: parameters and MACs by convention; ``bytes`` of constants by role and of the
    file; ``parts`` of the file; ``peak_activation`` with its layer; ``arena`` of TFLM by part;
    ``instructions`` by core, estimated, without operators of unknown cost; all empty or null but
    the first for a network as trained
  - ``layers``: each with a ``name`` of its own, ``op``, ``output_shape``, ``figures``, and what
    only a device graph has: bytes by role, ``elementwise`` and ``reductions`` elements,
    ``receptive_field``
  - ``deployed``: the same of a network's device graph, with ``figures`` of its own, else null

A violation has ``subject`` (named as deployed, where that breaks the limit), ``limit``, ``value``,
``allowed``, ``message``, and, empty or null where they say nothing, ``layer``, ``names`` (tensors,
operators, limits) and ``before`` (of a growth). A change has ``layer`` (empty: the whole),
``figure``, ``before`` and ``after`` (null: not there).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from budgets import cost
from budgets.count import CONVENTIONS, Count, LayerCount
from budgets.figures import SCHEMA_VERSION, layer_figures, model_figures
from budgets.limits import Limits
from budgets.verdict import Verdict

PACKAGE = "tinyscene"


def as_json(verdicts: Sequence[Verdict], limits: Limits) -> str:
    """The document, indented, each layer and change in its own line; with a newline at its end."""
    document = {
        "ok": not any(verdict.violations for verdict in verdicts),
        "schema_version": SCHEMA_VERSION,
        "version": _version(),
        "limits": limits.to_dict(),
        "costs": {name: dataclasses.asdict(core) for name, core in cost.cores().items()},
        "subjects": [_subject(verdict) for verdict in verdicts],
    }
    # The same to a reader of JSON, and no command to the runner of GitHub Actions.
    return _indented(document, "").replace("##[", "\\u0023#[") + "\n"


def _version() -> str | None:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # run from a checkout
        return None


def _indented(value: Any, margin: str) -> str:
    """JSON with a line for each entry of a table but of layers and changes, and of their lists."""
    inner = f"{margin}  "
    if isinstance(value, dict) and value and not value.keys() & {"op", "figure"}:
        left, right = "{}"
        items = [f"{json.dumps(key)}: {_indented(item, inner)}" for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        left, right = "[]"
        items = [_indented(item, inner) for item in value]
    else:
        return json.dumps(value)
    return f"{left}\n{inner}" + f",\n{inner}".join(items) + f"\n{margin}{right}"


def _subject(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.count.name,
        "kind": verdict.count.kind,
        "sha256": verdict.count.sha256,
        "figures": model_figures(verdict.count),
        "violations": [
            {**dataclasses.asdict(violation), "message": violation.message}
            for violation in verdict.violations
        ],
        "unchecked": list(verdict.unchecked),
        "baseline": verdict.baseline,
        "changes": [dataclasses.asdict(change) for change in verdict.changes],
        **_count(verdict.count),
    }


def _count(count: Count) -> dict[str, Any]:
    return {
        "conventions": {
            name: {"definition": CONVENTIONS[name], **dataclasses.asdict(total)}
            for name, total in count.conventions.items()
        },
        "bytes": dict(count.sizes),
        "parts": dict(count.parts),
        "peak_activation": {"bytes": count.peak_bytes, "layer": count.peak_layer},
        "arena": None if count.arena is None else dataclasses.asdict(count.arena),
        "instructions": dict(count.instructions),
        "layers": [_layer(row) for row in count.layers],
        "deployed": None if count.deployed is None else _deployed(count.deployed),
    }


def _deployed(count: Count) -> dict[str, Any]:
    return {"figures": model_figures(count), **_count(count)}


def _layer(row: LayerCount) -> dict[str, Any]:
    found = {
        "name": row.name,
        "op": row.op,
        "output_shape": list(row.output_shape),
        "figures": layer_figures(row),
    }
    if not row.activation_bytes:  # a layer as trained
        return found
    return found | {
        "bytes": {"weights": row.weight_bytes, "biases": row.bias_bytes, "other": row.other_bytes},
        "elementwise": row.elementwise,
        "reductions": row.reductions,
        "receptive_field": {
            "bands": row.receptive_bands,
            "frames": row.receptive_frames,
            "milliseconds": row.receptive_ms,
        },
    }
