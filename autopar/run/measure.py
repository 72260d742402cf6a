"""What a run measured, set against what its plan predicted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autopar.errors import RunError

# The first step allocates, connects and warms caches up; it says nothing about the others.
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class RunResult:
    """What a run measured.

    Attributes:
        step_seconds: of each step, on rank 0.
        losses: mean over the global batch, of each step.
        peak_memory_bytes: of each rank; on the CPU what the process grew by.
        predicted_step_seconds, predicted_memory_bytes: from the plan.
    """

    step_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    predicted_step_seconds: float
    predicted_memory_bytes: int

    @property
    def steady_seconds(self) -> tuple[float, ...]:
        """The steps behind the warm-up, or all if there are no others."""
        return self.step_seconds[WARM_UP_STEPS:] or self.step_seconds

    @property
    def median_seconds(self) -> float:
        """Median of the steady steps."""
        return median(self.steady_seconds)

    @property
    def tenth_percentile_seconds(self) -> float:
        """A tenth of the steady steps are faster; on a shared host this drifts least."""
        ordered = sorted(self.steady_seconds)
        return ordered[(len(ordered) - 1) // 10]

    @property
    def step_error(self) -> float:
        """Prediction over measured median, less one: 0.1 is predicted 10 % too slow."""
        return self.predicted_step_seconds / self.median_seconds - 1

    @property
    def memory_error(self) -> float:
        """The same for the fullest rank."""
        return self.predicted_memory_bytes / max(self.peak_memory_bytes) - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the fields and the figures derived from them."""
        derived = ("median_seconds", "tenth_percentile_seconds", "step_error", "memory_error")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def read_result(path: Path) -> RunResult:
    """What a program wrote with ``--json``.

    Raises:
        RunError: it wrote nothing.
    """
    if not path.exists():
        raise RunError(
            "the program ended without writing what it measured",
            expected="at least one step behind the checkpoint's",
            where="--steps",
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return RunResult(
        step_seconds=tuple(found["step_seconds"]),
        losses=tuple(found["losses"]),
        peak_memory_bytes=tuple(found["peak_memory_bytes"]),
        predicted_step_seconds=found["predicted_step_seconds"],
        predicted_memory_bytes=found["predicted_memory_bytes"],
    )
