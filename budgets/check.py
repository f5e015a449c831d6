"""The one place where a count is held against the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from budgets.count import Count, LayerCount, count_network
from budgets.figures import layer_figures, model_figures
from budgets.limits import Limits, load_limits
from firmware_ref.arch import Network
from firmware_ref.errors import CheckFailedError, InputError

NAMES_SHOWN = 5


@dataclass(frozen=True)
class Violation:
    """One broken limit: its name, the value found and the value allowed.

    ``layer`` is where a limit on layers is broken; ``names`` lists the offending tensors (limit
    ``int8``) or operators (limit ``operators``); ``before`` is the baseline's value of a growth.
    """

    subject: str
    limit: str
    value: int
    allowed: int
    layer: str = ""
    names: tuple[str, ...] = ()
    before: int | None = None

    @property
    def message(self) -> str:
        """One line: subject, layer, limit=value, what is allowed, what to do."""
        where = f"{self.subject}: {self.layer}: " if self.layer else f"{self.subject}: "
        found = f"{where}{self.limit}={self.value:,}"
        if self.limit == "int8":
            return f"{found} tensors are not INT8; allowed are 0; quantise them: {self._named()}"
        if self.limit == "operators":
            return (
                f"{found} that TFLM may not run in INT8, or of unknown cost; allowed are 0; "
                f"replace them: {self._named()}"
            )
        if self.before is not None:
            return (
                f"{found}; allowed over the baseline's {self.before:,} are {self.allowed:,}; save "
                f"{self.value - self.allowed:,}, or accept it with a new baseline"
            )
        return (
            f"{found}; allowed are {self.allowed:,}; "
            f"save {self.value - self.allowed:,} with fewer or narrower layers"
        )

    def _named(self) -> str:
        more = len(self.names) - NAMES_SHOWN
        return ", ".join(self.names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def check(count: Count, limits: Limits) -> list[Violation]:
    """Every limit that ``count`` breaks; none if the list is empty. On a limit is within it.

    Besides the numbers of ``limits``, a flatbuffer must be INT8 throughout (int32 biases), and
    must hold only operators whose cost `budgets.count` knows: no custom ones. A network must hold
    its limits as trained and as deployed.
    """
    found = list(_over(count, limits))
    if count.deployed is not None:
        broken = {violation.limit for violation in found}
        found += [v for v in _over(count.deployed, limits) if v.limit not in broken]
    device = count.on_device
    found += [v for row in device.layers for v in _layer(device.name, row, limits)]
    for limit, names in (("int8", device.not_int8), ("operators", device.not_counted)):
        if names:
            found.append(Violation(device.name, limit, len(names), 0, names=names))
    return found


def unchecked(count: Count, limits: Limits) -> list[str]:
    """Limits that ``count`` has no figure for, such as the file size of a preset."""
    known = model_figures(count)
    return [name for name in limits.model if name not in known]


def refuse_unused(limits: Limits, counts: Sequence[Count]) -> None:
    """A pattern that no layer of any subject matches is a mistake: an `InputError`."""
    names = {row.name for count in counts for row in count.on_device.layers}
    for item in limits.layers:
        if not any(item.applies_to(name) for name in names):
            raise InputError(
                f"limit for layers {item.pattern!r} matches no layer; mend the pattern, or leave "
                "the limit out"
            )


def enforce(count: Count, limits: Limits) -> None:
    """Raise `CheckFailedError` naming every limit that ``count`` breaks."""
    if violations := check(count, limits):
        raise CheckFailedError("; ".join(violation.message for violation in violations))


def enforce_network(network: Network, limits: Limits | None = None) -> Count:
    """Count ``network`` and `enforce` ``limits``, by default the shipped ones."""
    count = count_network(network)
    enforce(count, load_limits() if limits is None else limits)
    return count


def _over(count: Count, limits: Limits) -> Iterator[Violation]:
    values = model_figures(count)
    for name, most in limits.model.items():
        if values.get(name, 0) > most:
            yield Violation(count.name, name, values[name], most)


def _layer(subject: str, row: LayerCount, limits: Limits) -> Iterator[Violation]:
    values = layer_figures(row)
    for item in limits.layers:
        if item.applies_to(row.name):
            for name, most in item.most.items():
                if values.get(name, 0) > most:
                    yield Violation(subject, name, values[name], most, layer=row.name)
