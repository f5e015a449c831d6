"""An earlier report to compare with: what changed, and what grew beyond its limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from budgets.check import Violation, growth_of
from budgets.count import Count
from budgets.figures import (
    LAYER_FIGURES,
    MODEL_FIGURES,
    SCHEMA_VERSION,
    instruction_figures,
    layer_figures,
    model_figures,
)
from budgets.limits import LARGEST_LIMIT, Limits
from firmware_ref.errors import InputError, read_bytes
from firmware_ref.graph import MAX_OPERATORS

BASELINE_BYTES = 4 * 2**20
MAKE = "make it again: python -m budgets SUBJECT... --json --out FILE"


@dataclass(frozen=True)
class Subject:
    """What a baseline says of one subject: its figures, and those of each layer by name.

    ``deployed`` are the figures of a network's device graph; a flatbuffer has none besides its own.
    """

    figures: Mapping[str, int]
    layers: Mapping[str, Mapping[str, int]]
    deployed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A figure that is not what it was; ``layer`` is empty for one of the whole subject.

    None stands where a figure or layer was not there before, or is not there any more.
    """

    layer: str
    figure: str
    before: int | None
    after: int | None


def load_baseline(path: str | Path) -> Mapping[str, Subject]:
    """The subjects of a report by ``--json``, by name; another version's is refused."""
    what = f"baseline {str(path)!r}"
    try:
        data = read_bytes(path, BASELINE_BYTES, "baseline")
    except InputError as error:
        raise InputError(f"{error}; {MAKE}, of some 50 models at most") from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{what} is not JSON; {MAKE}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or type(version) is not int:
        raise InputError(
            f"{what}: schema_version={version!r:.40}; allowed is {SCHEMA_VERSION}; {MAKE}"
        )
    try:
        return {_name(entry): _subject(entry) for entry in _list(document, "subjects")}
    except InputError as error:
        raise InputError(f"{what}: {error}; {MAKE}") from None


def subject_of(
    baseline: Mapping[str, Subject], count: Count, path: str, only: bool
) -> tuple[str, Subject]:
    """What the baseline at ``path`` says of ``count``, and under which name.

    Paths are compared normalised. An ``only`` subject of a run is compared with the only one of the
    baseline whatever their names; an `InputError` where nothing is found.
    """
    names = {os.path.normpath(name): name for name in baseline}
    if only and len(baseline) == 1:
        (name,) = baseline
    elif os.path.normpath(count.name) in names:
        name = names[os.path.normpath(count.name)]
    else:
        known = ", ".join(repr(name)[:80] for name in list(baseline)[:5]) or "none"
        raise InputError(
            f"baseline {path!r} has no subject {count.name!r:.80}, only {known}; {MAKE}"
        )
    return name, baseline[name]


def changes(count: Count, before: Subject) -> list[Change]:
    """Every figure of the subject and of its layers that differs, in the order of today's."""
    found = _changes("", before.figures, model_figures(count))
    now = {row.name: layer_figures(row) for row in count.on_device.layers}
    for name in [*now, *(name for name in before.layers if name not in now)]:
        found += _changes(name, before.layers.get(name, {}), now.get(name, {}))
    return found


def grown(count: Count, before: Subject, limits: Limits) -> list[Violation]:
    """Every figure that grew by more than its ``growth_percent``, of a network deployed too."""
    found = list(_grown(count, before.figures, limits))
    if count.deployed is not None:
        broken = {violation.limit for violation in found}
        deployed = _grown(count.deployed, before.deployed, limits)
        found += [violation for violation in deployed if violation.limit not in broken]
    return found


def _grown(count: Count, before: Mapping[str, int], limits: Limits) -> Iterator[Violation]:
    now = model_figures(count)
    for name, percent in limits.growth_percent.items():
        if name not in now:
            continue  # `check.check` or `check.unchecked` says so
        if name not in before:
            raise InputError(
                f"baseline says nothing of {name} of {count.name!r:.80}, whose growth is limited; "
                f"{MAKE}"
            )
        # As written in decimals: 0.1 % of 100,000,000 is 100,000 and no less.
        most = int(before[name] * (100 + Fraction(repr(percent))) // 100)
        if now[name] > most:
            yield Violation(count.name, growth_of(name), now[name], most, before=before[name])


def _changes(layer: str, before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    names = [*after, *(name for name in before if name not in after)]
    return [
        Change(layer, name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _subject(entry: Mapping[str, Any]) -> Subject:
    device = entry.get("deployed") or entry
    if not isinstance(device, dict):
        raise InputError("deployed is not a table")
    rows = _list(device, "layers")
    if len(rows) > MAX_OPERATORS:
        raise InputError(f"it has {len(rows):,} layers; at most {MAX_OPERATORS:,} are counted")
    layers = {_name(row): _figures(row.get("figures")) for row in rows}
    deployed = {} if device is entry else _figures(device.get("figures", {}))
    return Subject(_figures(entry.get("figures")), layers, deployed)


def _list(table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = table.get(key)
    if not (isinstance(found, list) and all(isinstance(item, dict) for item in found)):
        raise InputError(f"{key} is not a list of tables")
    return found


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise InputError(f"name={name!r:.40} is not a text")
    return name


def _figures(values: Any) -> dict[str, int]:
    """Figures of today's names; those of other versions are checked and left out."""
    known = {*MODEL_FIGURES, *LAYER_FIGURES, *instruction_figures()}
    if not isinstance(values, dict):
        raise InputError("figures is not a table")
    for name, value in values.items():
        if type(value) is not int or not 0 <= value <= LARGEST_LIMIT:
            raise InputError(
                f"{name!r:.60}={value!r:.40} is not a whole number from 0 to {LARGEST_LIMIT:,}"
            )
    return {name: value for name, value in values.items() if name in known}
