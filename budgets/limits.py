"""The limits, and the one place where a count is held against them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

from budgets.count import Count, count_network
from firmware_ref.arch import Network
from firmware_ref.errors import CheckFailedError, InputError, read_bytes

DEFAULT_FILE = Path(__file__).with_name("limits.toml")
LIMIT_FILE_BYTES = 64 * 1024
LARGEST_LIMIT = 10**12
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Limits:
    """The most that is allowed; counts are in the ``plain`` convention of `budgets.count`."""

    parameters: int
    multiply_accumulates: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int or not 1 <= value <= LARGEST_LIMIT:
                raise InputError(
                    f"limit {name}={value!r}; allowed is a whole number from 1 to {LARGEST_LIMIT:,}"
                )


@dataclass(frozen=True)
class Violation:
    """One broken limit: its name, the value found and the value allowed.

    ``names`` lists the offending tensors (limit ``int8``) or operators (limit ``operators``).
    """

    subject: str
    limit: str
    value: int
    allowed: int
    names: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """One line: subject, limit=value, what is allowed, what to do."""
        found = f"{self.subject}: {self.limit}={self.value:,}"
        if self.limit == "int8":
            return f"{found} tensors are not INT8; allowed are 0; quantise them: {self._named()}"
        if self.limit == "operators":
            return f"{found} of unknown cost; allowed are 0; replace them: {self._named()}"
        return (
            f"{found}; allowed are {self.allowed:,}; "
            f"save {self.value - self.allowed:,} with fewer or narrower layers"
        )

    def _named(self) -> str:
        more = len(self.names) - NAMES_SHOWN
        return ", ".join(self.names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def load_limits(path: str | Path | None = None) -> Limits:
    """The limits of a TOML file, by default `DEFAULT_FILE`; unknown or missing keys are refused."""
    path = DEFAULT_FILE if path is None else Path(path)
    data = read_bytes(path, LIMIT_FILE_BYTES, "limits file")
    try:
        return _parse(data.decode("utf-8"))
    except InputError as error:
        raise InputError(f"limits file {str(path)!r}: {error}") from None
    except (ValueError, RecursionError):
        # Not UTF-8, not TOML, nested too deep, or a number too long to print.
        raise InputError(
            f"limits file {str(path)!r} is not readable TOML; {DEFAULT_FILE.name} of the package "
            "shows the form"
        ) from None


def _parse(text: str) -> Limits:
    tables = tomllib.loads(text)
    _refuse_other_keys("table", set(tables), {"model"})
    model = tables["model"]
    if not isinstance(model, dict):
        raise InputError("model must be a table, written [model]")
    _refuse_other_keys("key", set(model), {item.name for item in dataclasses.fields(Limits)})
    return Limits(**model)


def _refuse_other_keys(what: str, found: set[str], allowed: set[str]) -> None:
    names = ", ".join(sorted(allowed))
    if unknown := sorted(found - allowed):
        raise InputError(f"unknown {what} {unknown[0]!r}; allowed: {names}")
    if missing := sorted(allowed - found):
        raise InputError(f"{what} {missing[0]!r} is missing; give {names}")


def check(count: Count, limits: Limits) -> list[Violation]:
    """Every limit that ``count`` breaks; none if the list is empty. On a limit is within it.

    Besides the numbers of ``limits``, a flatbuffer must be INT8 throughout (int32 biases), and
    must hold only operators whose cost `budgets.count` knows: no custom ones.
    """
    found = [
        ("parameters", count.parameters, limits.parameters, ()),
        ("multiply_accumulates", count.macs, limits.multiply_accumulates, ()),
        ("int8", len(count.not_int8), 0, count.not_int8),
        ("operators", len(count.not_counted), 0, count.not_counted),
    ]
    return [
        Violation(count.name, limit, value, allowed, names)
        for limit, value, allowed, names in found
        if value > allowed
    ]


def enforce_network(network: Network, limits: Limits | None = None) -> Count:
    """Count ``network``; raise `CheckFailedError` naming every limit it breaks.

    ``limits`` defaults to `load_limits`'s own.
    """
    count = count_network(network)
    violations = check(count, load_limits() if limits is None else limits)
    if violations:
        raise CheckFailedError("; ".join(violation.message for violation in violations))
    return count
