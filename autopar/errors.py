"""The errors that autopar raises for a user's mistake.

Every message has the same four parts, so that it can be acted on without a traceback:
what was found, what was expected, where, and what to try.
"""

from __future__ import annotations


class AutoparError(Exception):
    """Base of every error that a user can cause.

    Args:
        found: what autopar met, with the offending value.
        expected: what would have been accepted.
        where: the argument, module path, file or rank concerned.
        hint: what to try.
    """

    def __init__(self, found: str, *, expected: str = "", where: str = "", hint: str = "") -> None:
        self.found, self.expected, self.where, self.hint = found, expected, where, hint
        parts = [found]
        parts += [f"  expected: {expected}"] if expected else []
        parts += [f"  where:    {where}"] if where else []
        parts += [f"  try:      {hint}"] if hint else []
        super().__init__("\n".join(parts))


class TraceError(AutoparError):
    """The model cannot be captured as one graph."""


class CostModelError(AutoparError):
    """A cost model is unknown, unreadable, incomplete or holds impossible figures."""


class InfeasiblePlanError(AutoparError):
    """No plan satisfies the memory, the divisibility rules and the pins together."""


class PlanFormatError(AutoparError):
    """A plan file is unreadable, altered, of a newer schema, or made for another model."""


class UsageError(AutoparError):
    """An argument has a value that no plan could honour."""


class RunError(AutoparError):
    """A rank failed while a plan was run, or the run did not end in time."""
