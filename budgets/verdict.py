"""A count with everything that is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from budgets.baseline import Change
from budgets.check import Violation
from budgets.count import Count


@dataclass(frozen=True)
class Verdict:
    """One subject's count, the limits it breaks, those that cannot be held, and what changed.

    ``baseline`` is the name of what it was compared with; None where it was not.
    """

    count: Count
    violations: tuple[Violation, ...]
    unchecked: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    baseline: str | None = None
