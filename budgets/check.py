"""The one place where a count is held against the limits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from budgets.count import Count, LayerCount, count_network
from budgets.figures import instruction_figures, layer_figures, model_figures
from budgets.limits import Limits, load_limits
from firmware_ref.arch import Network
from firmware_ref.errors import CheckFailedError, InputError

NAMES_SHOWN = 5
GROWTH = "growth of "  # what the name of a limit on a figure's growth begins with
# A hostile file may have five thousand layers, and limits two hundred patterns that match them all.
MOST_LAYER_VIOLATIONS = 2_000


@dataclass(frozen=True)
class Violation:
    """One broken limit: its name, the value found and the value allowed.

    ``layer`` is where a limit on layers is broken; ``names`` lists the offending tensors (limit
    ``int8``), operators (limit ``operators``) or limits that cannot be held (limit ``unknown``);
    ``before`` is the baseline's value of a growth.
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
        if self.limit == "unknown":
            return (
                f"{found} limited figures cannot be told; allowed are 0; replace what is in the "
                f"way, or leave the limits out: {self._named()}"
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
    must hold only operators whose cost `budgets.count` knows: no custom ones. A limit on what
    cannot be told of it, such as the instructions of an operator of unknown cost, is broken too. A
    network must hold its limits as trained and as deployed. Of layers the first
    `MOST_LAYER_VIOLATIONS` are named.
    """
    found = list(_over(count, limits))
    if count.deployed is not None:
        broken = {violation.limit for violation in found}
        found += [v for v in _over(count.deployed, limits) if v.limit not in broken]
    device = count.on_device
    layers = (v for row in device.layers for v in _layer(device.name, row, limits))
    found += itertools.islice(layers, MOST_LAYER_VIOLATIONS)
    for limit, names in (
        ("int8", device.not_int8),
        ("operators", device.not_counted),
        ("unknown", _unknown(device, limits)),
    ):
        if names:
            found.append(Violation(device.name, limit, len(names), 0, names=names))
    return found


def unchecked(count: Count, limits: Limits) -> list[str]:
    """Limits of what ``count`` does not have at all, such as the file of a preset."""
    known = {*model_figures(count), *_in_the_way(count.on_device)}
    return [limit for limit, name in _limited(limits) if name not in known]


def growth_of(figure: str) -> str:
    """The name of the limit on a figure's growth."""
    return f"{GROWTH}{figure}"


def refuse_unused(limits: Limits, counts: Sequence[Count]) -> None:
    """A pattern that no layer of any subject matches is a mistake: an `InputError`."""
    names = {(row.name, row.tensor) for count in counts for row in count.on_device.layers}
    for item in limits.layers:
        if not any(item.applies_to(*both) for both in names):
            raise InputError(
                f"limit for layers {item.pattern!r} matches no layer; mend the pattern, leave the "
                "limit out, or give --allow-unused"
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


def _limited(limits: Limits) -> Iterator[tuple[str, str]]:
    """Limits of the whole model, of its growth too, each with the figure that is limited."""
    yield from ((name, name) for name in limits.model)
    yield from ((growth_of(name), name) for name in limits.growth_percent)


def _in_the_way(device: Count) -> Mapping[str, tuple[str, ...]]:
    """Figures that cannot be told of a device graph, with the operators and types that hide them.

    A limit on one would else hold whatever the network.
    """
    hidden = {"arena_bytes": device.not_planned}
    hidden |= dict.fromkeys(instruction_figures(), device.not_costed)
    return {name: kinds for name, kinds in hidden.items() if kinds}


def _unknown(device: Count, limits: Limits) -> tuple[str, ...]:
    hidden = _in_the_way(device)
    return tuple(
        f"{limit}: {', '.join(hidden[name][:NAMES_SHOWN])}"
        for limit, name in _limited(limits)
        if name in hidden
    )


def _layer(subject: str, row: LayerCount, limits: Limits) -> Iterator[Violation]:
    values = layer_figures(row)
    for item in limits.layers:
        if item.applies_to(row.name, row.tensor):
            for name, most in item.most.items():
                if name not in values:  # its operator is of unknown cost
                    yield Violation(subject, "unknown", 1, 0, row.name, (f"{name}: {row.op}",))
                elif values[name] > most:
                    yield Violation(subject, name, values[name], most, layer=row.name)
