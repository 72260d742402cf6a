"""What a run measured, set against what its plan predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from autopar.errors import RunError
from autopar.plan import Plan

# The first step allocates, connects and warms caches up; it says nothing about the others.
WARM_UP_STEPS = 1


# What a step's time goes to, by the kinds of a plan's breakdown.
KINDS: Mapping[str, tuple[str, ...]] = {
    "computing": ("compute", "optimizer"),
    "communicating": ("tp_comm", "dp_comm", "pp_comm"),
    "rest": ("bubble",),
}


@dataclass(frozen=True)
class Observed:
    """What one rank saw of some further steps, under a profiler.

    Attributes:
        live_bytes: the peak of live tensors; on a GPU the allocator's.
        computing_seconds: per step.
        communicating_seconds: what of communication no computing hid, waiting for peers included.
        rest_seconds: neither: bubbles, the host's own work.
    """

    live_bytes: int
    computing_seconds: float
    communicating_seconds: float
    rest_seconds: float

    def share(self, kind: str) -> float:
        """The part of the step that went to a kind of ``KINDS``."""
        whole = self.computing_seconds + self.communicating_seconds + self.rest_seconds
        return float(getattr(self, f"{kind}_seconds")) / whole


@dataclass(frozen=True)
class RunResult:
    """What a run measured.

    Attributes:
        step_seconds: of each step, on rank 0.
        losses: mean over the global batch, of each step.
        peak_memory_bytes: of each rank; on a GPU ``max_memory_allocated``, on the CPU what the
            process grew by.
        predicted_step_seconds, predicted_memory_bytes: from the plan; the bytes are those of live
            tensors, for no reserve of the device is in what is measured.
        observed: by rank; empty where nobody looked.
        predicted_kinds: seconds of a step by kind, from the plan.
    """

    step_seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    predicted_step_seconds: float
    predicted_memory_bytes: int
    observed: tuple[Observed, ...] = ()
    predicted_kinds: Mapping[str, float] = field(default_factory=dict)

    @property
    def split(self) -> dict[str, dict[str, float]]:
        """Predicted and measured seconds of a step by kind, on the rank that computes most.

        A profiler slows a step down, so its shares are taken of the median step.
        """
        if not self.observed:
            return {}
        busiest = max(self.observed, key=lambda rank: rank.share("computing"))
        return {
            kind: {
                "predicted_seconds": sum(self.predicted_kinds.get(part, 0.0) for part in parts),
                "measured_seconds": busiest.share(kind) * self.median_seconds,
            }
            for kind, parts in KINDS.items()
        }

    @property
    def live_memory_bytes(self) -> int | None:
        """Peak of live tensors on the fullest rank, None where nobody looked."""
        return max((rank.live_bytes for rank in self.observed), default=None)

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
        derived = (
            "median_seconds", "tenth_percentile_seconds", "step_error", "memory_error", "split",
            "live_memory_bytes",
        )  # fmt: skip
        return asdict(self) | {name: getattr(self, name) for name in derived}


def read_result(path: Path, plan: Plan) -> RunResult:
    """What a program wrote with ``--json``, beside its plan's prediction.

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
        predicted_step_seconds=plan.prediction.step_seconds,
        predicted_memory_bytes=plan.live_bytes,
    )


def read_observed(path: Path) -> tuple[Observed, ...]:
    """What ``autopar.run.observe`` wrote."""
    return tuple(Observed(**rank) for rank in json.loads(path.read_text(encoding="utf-8")))
