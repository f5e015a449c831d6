"""REPORT.md and REPORT.html: what the bundle costs, what it equals, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convert.bundle.facts import Facts
from convert.bundle.parts import Amount, File, Parts
from convert.bundle.render import rendered
from firmware_ref.frontend import probabilities
from train.report import printable
from train.tables import Table, table_markdown

MARKDOWN_FILE, PAGE_FILE = "REPORT.md", "REPORT.html"
SAYS = {MARKDOWN_FILE: "this report", PAGE_FILE: "the same as a page"}
TITLE = "A network for firmware"


@dataclass(frozen=True)
class Section:
    """A heading with a table, words, or numbered steps. Words are ours; names stand in tables.

    What stands between backticks is code.
    """

    title: str
    table: Table | None = None
    words: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


def report_files(facts: Facts, parts: Parts, manifest_file: File) -> list[File]:
    """The report as Markdown and as a self-contained page; the same facts, the same bytes."""
    listed = [*parts.files, manifest_file]
    found = sections(facts, parts, [*((f.path, f.says) for f in listed), *SAYS.items()])
    page = rendered("report.html.j2", {"title": TITLE, "sections": found, "printable": printable})
    texts = {MARKDOWN_FILE: as_markdown(found), PAGE_FILE: page}
    return [File(name, text.encode(), SAYS[name]) for name, text in texts.items()]


def sections(facts: Facts, parts: Parts, listed: Sequence[tuple[str, str]]) -> list[Section]:
    """The whole report."""
    return [
        Section("What it is", _identity(facts, parts.target)),
        Section("What it costs", _costs(facts, parts), _cost_notes(parts)),
        Section("What it equals, bit for bit", _equal(facts, parts), UNEQUAL),
        Section("What it scores", words=_accuracy(facts)),
        Section("Into your firmware", steps=parts.steps),
        Section("The windows of the self-test", _windows(facts)),
        Section("The labels", _labels(facts)),
        Section("The files", Table("", ("file", "what it is for"), tuple(listed), left=2)),
    ]


def as_markdown(found: Sequence[Section]) -> str:
    """GitHub's Markdown; every name is escaped."""
    lines = [f"# {TITLE}"]
    for section in found:
        lines += ["", f"## {section.title}", ""]
        if section.table is not None:
            lines += [table_markdown(section.table), ""]
        lines += [line for words in section.words for line in (words, "")]
        lines += [f"{number}. {step}" for number, step in enumerate(section.steps, 1)]
        while lines[-1] == "":
            lines.pop()
    return "\n".join([*lines, ""])


def _identity(facts: Facts, target: str) -> Table:
    metadata = facts.metadata
    rows = [
        ("target", target),
        ("network", facts.conversion.checkpoint.network.name),
        ("input", _port(facts.input.shape, facts.input.scale, facts.input.zero_point)),
        ("output", _port(facts.output.shape, facts.output.scale, facts.output.zero_point)),
        ("operators", ", ".join(facts.operators)),
        ("trained on", metadata.dataset or "not known"),
        ("fold not heard", "not known" if metadata.test_fold is None else str(metadata.test_fold)),
        ("model.tflite", f"{len(facts.model):,} bytes, CRC-32 {facts.crc32:08x}"),
        ("SHA-256", facts.sha256),
        ("tinyscene", facts.version),
        ("licence", "of the code Apache-2.0; of the weights, what who trained them says"),
    ]
    return Table("", ("", ""), tuple(rows), left=2)


def _port(shape: tuple[int, ...], scale: float, zero_point: int) -> str:
    return f"INT8 {' x '.join(map(str, shape[1:]))}, scale {scale:g}, zero point {zero_point}"


def _costs(facts: Facts, parts: Parts) -> Table:
    count = facts.conversion.count
    rows = [
        ("parameters", f"{count.parameters:,}"),
        ("multiply-accumulates, one second", f"{count.macs:,}"),
        *_amounts("RAM", parts.ram),
        *_amounts("flash", parts.flash),
        ("flash of the self-test, only while it is linked", f"{facts.golden_bytes:,}"),
    ]
    return Table("", ("", "parameters, MACs, bytes"), tuple(rows))


def _amounts(kind: str, amounts: Sequence[Amount]) -> list[tuple[str, str]]:
    rows = [(f"{kind}: {amount.what}", f"{amount.bytes:,}") for amount in amounts]
    return [*rows, (f"{kind}, together", f"{sum(a.bytes for a in amounts):,}")]


def _cost_notes(parts: Parts) -> tuple[str, ...]:
    return (
        f"To the flash comes {parts.code}; to the RAM the stack, below 2 KiB for network and front "
        "end in C, and a hop of samples.",
        "Layer by layer: `python -m budgets model.tflite`. Instructions, RAM and stack of the C99 "
        "target on emulated Cortex-M4, M7, M33 and M55: `./scripts/emulate`.",
    )


UNEQUAL = (
    "Not equal: the optimised kernels of desktop interpreters (XNNPACK, the default) round "
    "otherwise, and the features of training are computed in floating point, from which the front "
    "end in integers differs by a step of the input here and there.",
)


def _equal(facts: Facts, parts: Parts) -> Table:
    verified = facts.verified
    rows = [
        (
            "model.tflite in firmware_ref",
            f"{result.name} {result.version}, {result.kernels}",
            f"at conversion: {verified.inputs} window{'s'[: verified.inputs - 1]}, "
            f"{result.tensors} tensors, "
            f"{result.values:,} values, {result.mismatches} differ",
        )
        for result in verified.oracles
    ]
    head = ("this", "equals", "shown by")
    return Table("", head, (*rows, *parts.equal), left=3)


def _accuracy(facts: Facts) -> tuple[str, ...]:
    """The manifest of a checkpoint names its data and holds no figures."""
    fold = facts.metadata.test_fold
    words = [
        "Not known here: a checkpoint holds no figures. Measure it on recordings that it has not "
        "heard, in the arithmetic of the device: `python -m train evaluate --model model.tflite "
        f"--data DIR{'' if fold is None else f' --fold {fold}'}`."
    ]
    if facts.metadata.selected_on_test:
        words.append(
            "Its epoch was chosen on the very recordings of that fold: figures on them flatter it."
        )
    return tuple(words)


def _windows(facts: Facts) -> Table:
    quantization = facts.conversion.graph.tensors[facts.conversion.graph.outputs[0]].quantization
    assert quantization is not None
    rows = []
    for golden in facts.goldens:
        shares = probabilities(golden.logits[None], quantization)[0]
        best = int(shares.argmax())
        heard = f"{facts.labels[best]}, {shares[best]:.0%}"
        rows.append((golden.name, f"{golden.input_crc32:08x}", heard))
    return Table("", ("window", "CRC-32 of the input", "heard as"), tuple(rows), left=3)


def _labels(facts: Facts) -> Table:
    rows = [(str(number), label) for number, label in enumerate(facts.labels)]
    return Table("", ("logit", "label"), tuple(rows), left=2)
