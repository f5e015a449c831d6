"""What every form of the report says in the same words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from budgets import cost
from budgets.baseline import Change
from budgets.check import GROWTH, Violation
from budgets.count import CONVENTIONS, Count, LayerCount
from budgets.figures import INSTRUCTIONS, model_figures
from budgets.limits import Limits
from budgets.names import shortened
from budgets.verdict import Verdict
from firmware_ref.errors import without_commands

NAME_CHARACTERS = 100
# Why the weights are more than those of the bundle's manifest, which counts what the file holds.
SIZES_NOTE = "a constant counts at each use; a file stores it once"
# The core whose column a table has room for.
FIRST_CORE = "cortex-m4"
LABELS = {
    "parameters": "parameters",
    "multiply_accumulates": "MACs",
    "weight_bytes": "bytes of weights",
    "flatbuffer_bytes": "bytes of flatbuffer",
    "peak_activation_bytes": "bytes of activations at once",
    "arena_bytes": "bytes of TFLM arena",
}


@dataclass(frozen=True)
class Share:
    """How much of one numeric limit a subject uses."""

    figure: str
    value: int
    allowed: int

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.allowed

    @property
    def percent(self) -> float:
        """Value as a percentage of the limit."""
        return 100 * self.value / self.allowed

    @property
    def line(self) -> str:
        """For instance ``125,330 of 128,000 parameters, 97.9 %``."""
        over = "" if self.holds else f", over by {self.value - self.allowed:,}"
        return (
            f"{self.value:,} of {self.allowed:,} {label(self.figure)}, {self.percent:.1f} %{over}"
        )


@dataclass(frozen=True)
class Row:
    """One layer of a report: as trained, as deployed, or both; None where it is not there."""

    trained: LayerCount | None
    deployed: LayerCount | None

    @property
    def shown(self) -> LayerCount:
        """The layer whose name, operation and shape a report shows."""
        found = self.deployed or self.trained
        assert found is not None
        return found


def shares(count: Count, limits: Limits) -> tuple[Share, ...]:
    """The use of each numeric limit that there is a figure for."""
    values = model_figures(count)
    return tuple(
        Share(name, values[name], most) for name, most in limits.model.items() if name in values
    )


def label(figure: str) -> str:
    """A figure's name in a sentence."""
    prefix, _, core = figure.partition(".")
    return f"instructions on {core}, estimated" if prefix == INSTRUCTIONS else LABELS[figure]


def rows(count: Count) -> list[Row]:
    """Layers in order of execution; one that is both trained and deployed once.

    What is trained only, such as a batch norm, is folded away by deployment.
    """
    if count.deployed is None:
        return [Row(None, row) for row in count.layers]
    device = list(count.deployed.layers)
    places = {row.name: place for place, row in enumerate(device)}
    found, done = [], 0
    for trained in count.layers:
        place = places.get(trained.name, -1)
        if place < done:
            found.append(Row(trained, None))
            continue
        found += [Row(None, row) for row in device[done:place]]
        found.append(Row(trained, device[place]))
        done = place + 1
    return found + [Row(None, row) for row in device[done:]]


def printable(text: str) -> str:
    """``text`` without control or non-ASCII characters, shortened: safe for a terminal or log."""
    if not (text.isascii() and text.isprintable()):
        text = ascii(text)[1:-1]
    return shortened(without_commands(text), NAME_CHARACTERS)


def shape_text(shape: Iterable[int]) -> str:
    """For instance ``40 x 64 x 22``."""
    return " x ".join(str(size) for size in shape)


def total_lines(count: Count, clock_mhz: float) -> list[str]:
    """Lines of memory, instructions and conventions, for below a table of layers."""
    device = count.on_device
    lines = [
        f"{name}: {total.parameters:,} parameters, {total.macs:,} MACs ({CONVENTIONS[name]})"
        for name, total in count.conventions.items()
    ]
    if count.deployed is not None:
        lines += [
            f"deployed, {name}: {total.parameters:,} parameters, {total.macs:,} MACs"
            for name, total in device.conventions.items()
        ]
    sizes = ", ".join(f"{what} {size:,}" for what, size in device.sizes.items())
    lines.append(f"bytes: {sizes} ({SIZES_NOTE})")
    if device.parts:
        parts = ", ".join(f"{what} {size:,}" for what, size in device.parts.items())
        lines.append(f"bytes of the file by part: {parts}")
    if device.layers:
        lines.append(
            f"activations at once: at most {device.peak_bytes:,} bytes, in "
            f"{printable(device.peak_layer)}"
        )
    return lines + _arena_lines(device) + _cost_lines(device, clock_mhz)


def _arena_lines(device: Count) -> list[str]:
    if device.arena is None:
        reasons = ", ".join(printable(reason) for reason in device.not_planned)
        return [f"TFLM arena: not planned for {reasons}"] if reasons else []
    arena = device.arena
    lost = f", {arena.gap_bytes:,} lost in gaps" if arena.gap_bytes else ""
    lines = [
        f"TFLM arena, planned for TFLM's own kernels: {arena.total_bytes:,} bytes, "
        f"{arena.head_bytes:,} of them scratch (activations, buffers of kernels{lost}), "
        f"{arena.tail_bytes:,} persistent"
    ]
    if "file" in device.sizes and device.hears_features:
        whole = cost.bundle_bytes()
        lines.append(
            f"whole bundle on TFLM: flash about {whole.flash(device.sizes['file']):,} bytes "
            f"with {whole.runtime_flash_bytes:,} of code and {whole.frontend_flash_bytes:,} of the "
            f"front end, RAM about {whole.ram(arena.total_bytes):,} with "
            f"{whole.arena_margin_bytes:,} more of arena, for other kernels than TFLM's own, and "
            f"{whole.frontend_ram_bytes:,} of the front end, without the stack"
        )
    return lines


def _cost_lines(device: Count, clock_mhz: float) -> list[str]:
    """Estimates by core; none where no operator's cost is known."""
    if not any(device.instructions.values()):
        return []
    lines = [f"estimated for TFLM with CMSIS-NN{_without(device)}; time at {clock_mhz:g} MHz:"]
    for name, core in cost.cores().items():
        count = device.instructions[name]
        error = error_text(core, " off on the network they are fitted to")
        lines.append(
            f"  {name:<11} {count / 1e6:6.1f} M instructions ({error}), about "
            f"{core.milliseconds(count, clock_mhz):,.0f} ms if one takes "
            f"{core.cycles_per_instruction:g} cycles"
        )
    return lines


def error_text(core: cost.Core, of: str = "") -> str:
    """How far the estimate of a core's instructions may be off, ``of`` what, where it was measured.

    For instance ``up to 2 %`` and ``not measured, as cortex-m4``.
    """
    if core.error_percent is None:
        return f"not measured, as {core.same_as}"
    return f"up to {core.error_percent:g} %{of}"


def _without(device: Count) -> str:
    kinds = ", ".join(printable(kind) for kind in device.not_costed)
    return f", without {kinds}" if kinds else ""


def violation_line(violation: Violation) -> str:
    """The violation's message with the subject and every name made printable."""
    return dataclasses.replace(
        violation,
        subject=printable(violation.subject),
        layer=printable(violation.layer),
        names=tuple(map(printable, violation.names)),
    ).message


def other_lines(verdict: Verdict, limits: Limits) -> list[str]:
    """Lines for the violations that no `Share` shows, and for limits that could not be held."""
    shown = {(s.figure, s.value) for s in shares(verdict.count, limits)}
    return [
        violation_line(v) for v in verdict.violations if v.layer or (v.limit, v.value) not in shown
    ]


def unchecked_lines(verdict: Verdict) -> list[str]:
    """Lines that name the limits without a figure here, and those of growth without a baseline."""
    names = verdict.unchecked
    growth = [n for n in names if verdict.baseline is None and n.startswith(GROWTH)]
    unknown = [n for n in names if n not in growth]
    reasons = {f"not known of a {verdict.count.kind}": unknown, "without a baseline": growth}
    return [f"not checked, {why}: {', '.join(found)}" for why, found in reasons.items() if found]


def changes_heading(verdict: Verdict, named: Callable[[str], str] = printable) -> str:
    """For instance ``changed since the baseline``; empty where there is none to compare with.

    A baseline of another name is given, as ``named`` writes it.
    """
    if verdict.baseline is None:
        return ""
    other = "" if verdict.baseline == verdict.count.name else f" of {named(verdict.baseline)}"
    return f"{'changed' if verdict.changes else 'nothing changed'} since the baseline{other}"


def change_line(change: Change) -> str:
    """For instance ``stem.conv: parameters 3,040 -> 3,200 (+160, +5.3 %)``."""
    where = f"{printable(change.layer)}: " if change.layer else ""
    before, after = ("none" if v is None else f"{v:,}" for v in (change.before, change.after))
    line = f"{where}{printable(change.figure)} {before} -> {after}"
    if change.before is None or change.after is None:
        return line
    difference = change.after - change.before
    percent = f", {100 * difference / change.before:+.1f} %" if change.before else ""
    return f"{line} ({difference:+,}{percent})"
