"""The limits as data: what ``limits.toml``, or a user's own file, allows."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from budgets.figures import INSTRUCTIONS, LAYER_FIGURES, MODEL_FIGURES, instruction_figures
from budgets.names import shortened
from firmware_ref.errors import InputError
from firmware_ref.toml import read_toml

DEFAULT_FILE = Path(__file__).with_name("limits.toml")
LARGEST_LIMIT = 10**12
LARGEST_GROWTH_PERCENT = 1000.0
LONGEST_PATTERN = 200
MOST_PATTERNS = 200
REASON_CHARACTERS = 200


@dataclass(frozen=True)
class LayerLimit:
    """What each layer whose name matches ``pattern`` (``*``, ``?``, ``[...]``) may have at most."""

    pattern: str
    most: Mapping[str, int]

    def applies_to(self, *names: str) -> bool:
        """Whether one of a layer's names matches, upper and lower case apart."""
        return any(fnmatchcase(name, self.pattern) for name in names)


@dataclass(frozen=True)
class Limits:
    """The most that is allowed of each figure of `budgets.figures`; without an entry, anything.

    ``growth_percent`` is how much a figure may grow over a baseline's.
    """

    model: Mapping[str, int]
    layers: tuple[LayerLimit, ...] = ()
    growth_percent: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": dict(self.model),
            "layers": [{"pattern": item.pattern, **item.most} for item in self.layers],
            "growth_percent": dict(self.growth_percent),
        }


def load_limits(path: str | Path | None = None) -> Limits:
    """The limits of a TOML file, by default `DEFAULT_FILE`; refused with unknown keys or none."""
    path = DEFAULT_FILE if path is None else Path(path)
    try:
        tables = read_toml(path, "limits file")
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not TOML (which is said where), nested too deep, or a number too long to print.
        where = isinstance(error, tomllib.TOMLDecodeError)
        reason = f": {shortened(str(error), REASON_CHARACTERS)}" if where else ""
        raise InputError(
            f"limits file {str(path)!r} is not readable TOML{reason}; {DEFAULT_FILE.name} of the "
            "package shows the form"
        ) from None
    try:
        return parse_limits(tables)
    except InputError as error:
        raise InputError(f"limits file {str(path)!r}: {error}") from None


def parse_limits(tables: Mapping[str, Any]) -> Limits:
    """Limits given as nested mappings, checked."""
    _refuse_unknown("table", tables, ("model", "layers", "growth_percent"))
    model = _flat(_table("model", tables.get("model", {})), MODEL_FIGURES)
    growth = _flat(_table("growth_percent", tables.get("growth_percent", {})), MODEL_FIGURES)
    layers = tables.get("layers", [])
    if not isinstance(layers, list) or len(layers) > MOST_PATTERNS:
        raise InputError(
            f"layers must be at most {MOST_PATTERNS} tables, each written [[layers]] with a pattern"
        )
    if not (model or layers or growth):
        raise InputError("nothing is limited; give for instance [model] with parameters = 128_000")
    return Limits(
        {name: _whole(name, value) for name, value in model.items()},
        tuple(_layer_limit(_table("layers", item)) for item in layers),
        {name: _percent(name, value) for name, value in growth.items()},
    )


def _layer_limit(table: Mapping[str, Any]) -> LayerLimit:
    values = dict(table)
    pattern = values.pop("pattern", None)
    if not (isinstance(pattern, str) and 0 < len(pattern) <= LONGEST_PATTERN):
        raise InputError(
            f"layers pattern={pattern!r:.60}; it must be a text of 1 to {LONGEST_PATTERN} "
            'characters, for instance pattern = "stage1.*"'
        )
    most = _flat(values, LAYER_FIGURES)
    if not most:
        raise InputError(f"layers {pattern!r} limits nothing; give {', '.join(LAYER_FIGURES)}")
    return LayerLimit(pattern, {name: _whole(name, value) for name, value in most.items()})


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a table, written [{name}]")
    return value


def _flat(table: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """A table with its sub-table of instructions by core spread out."""
    values = dict(table)
    cores = _table(INSTRUCTIONS, values.pop(INSTRUCTIONS, {}))
    _refuse_unknown("key", values, (*known, INSTRUCTIONS))
    spread = {f"{INSTRUCTIONS}.{core}": value for core, value in cores.items()}
    _refuse_unknown("key", spread, instruction_figures())
    return values | spread


def _refuse_unknown(what: str, found: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    if unknown := sorted(set(found) - set(allowed)):
        raise InputError(f"unknown {what} {unknown[0]!r:.60}; allowed: {', '.join(allowed)}")


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST_LIMIT:
        raise InputError(
            f"limit {name}={value!r:.60}; allowed is a whole number from 1 to {LARGEST_LIMIT:,}"
        )
    return value


def _percent(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= LARGEST_GROWTH_PERCENT):
        raise InputError(
            f"growth_percent {name}={value!r:.60}; allowed is a number from 0 to "
            f"{LARGEST_GROWTH_PERCENT:g}"
        )
    return float(value)
