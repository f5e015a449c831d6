"""What GitHub Actions shows: annotations of a run, and the summary of a step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from budgets.lines import violation_line
from budgets.verdict import Verdict
from firmware_ref.errors import InputError

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


def workflow_commands(verdicts: Sequence[Verdict]) -> str:
    """A workflow command for each broken limit, one a line; a notice where there is none.

    Commands as in GitHub's "Workflow commands" reference, data and properties escaped.
    """
    lines = [
        f"::error title={_property(f'Budget: {violation.limit}')}::"
        f"{_data(violation_line(violation))}"
        for verdict in verdicts
        for violation in verdict.violations
    ]
    return "".join(f"{line}\n" for line in lines) or notice(f"{len(verdicts)} within every limit")


def notice(text: str) -> str:
    """A workflow command that says a printable ``text``."""
    return f"::notice title=Budget::{_data(text)}\n"


def append_summary(markdown: str) -> None:
    """Add to the summary of the step, the file that GitHub names in the environment."""
    path = os.environ.get(SUMMARY_VARIABLE)
    if not path:
        raise InputError(
            f"--github: {SUMMARY_VARIABLE} is not set; GitHub Actions sets it, elsewhere leave "
            "--github out"
        )
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(markdown)
    except OSError as error:
        raise InputError(f"--github: {path!r} cannot be written: {error.strerror}") from None


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
