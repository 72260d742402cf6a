"""Pipeline schedules as lists of actions, and an event simulator that plays them.

The lists are those that ``torch.distributed.pipelining`` executes (``_step_microbatches`` of
``ScheduleGPipe`` and ``Schedule1F1B``, torch 2.11 to 2.13), not the ones it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autopar.errors import UsageError


@dataclass(frozen=True)
class Action:
    """The forward ("F") or backward ("B") pass of one micro-batch on one stage."""

    kind: Literal["F", "B"]
    stage: int
    microbatch: int


Actions = tuple[Action, ...]


@dataclass(frozen=True)
class Event:
    """An action with its start and end, in seconds since the step began."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What ``simulate`` returns.

    ``events[p]`` are those of stage p in order, ``idle_seconds[p]`` the part of the
    ``makespan`` (seconds) during which stage p computes nothing.
    """

    makespan: float
    events: tuple[tuple[Event, ...], ...]
    idle_seconds: tuple[float, ...]


def _gpipe(pp: int, stage: int, microbatches: int) -> Actions:
    """All forwards, then all backwards in the same order."""
    passes = [(kind, i) for kind in ("F", "B") for i in range(microbatches)]
    return tuple(Action("F" if kind == "F" else "B", stage, i) for kind, i in passes)


def _one_forward_one_backward(pp: int, stage: int, microbatches: int) -> Actions:
    """Warm-up forwards, then a backward and a forward in turn, then the other backwards."""
    ahead = min(microbatches, pp - stage)
    actions = [Action("F", stage, i) for i in range(ahead)]
    for i in range(microbatches):
        actions.append(Action("B", stage, i))
        if i + ahead < microbatches:
            actions.append(Action("F", stage, i + ahead))
    return tuple(actions)


_ORDER: dict[str, Callable[[int, int, int], Actions]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
}
SCHEDULES = tuple(_ORDER)


def actions(schedule: str, pp: int, num_microbatches: int) -> tuple[Actions, ...]:
    """What every stage does, in order.

    With one stage this is gradient accumulation under either name: forward and backward
    of each micro-batch in turn.

    Raises:
        UsageError: an unknown schedule, or fewer than one stage or micro-batch.
    """
    if schedule not in _ORDER:
        raise UsageError(
            f"schedule {schedule!r}", expected=" or ".join(SCHEDULES), where="schedule",
            hint="leave the schedule to the solver",
        )  # fmt: skip
    if pp < 1 or num_microbatches < 1:
        raise UsageError(
            f"pp={pp}, num_microbatches={num_microbatches}", expected="1 or more of each",
            where="schedule", hint="a global batch of at least one sample per dp rank",
        )  # fmt: skip
    order = _one_forward_one_backward if pp == 1 else _ORDER[schedule]
    return tuple(order(pp, stage, num_microbatches) for stage in range(pp))


def max_in_flight(stages: Sequence[Actions]) -> tuple[int, ...]:
    """The most micro-batches whose activations each stage holds at once."""
    return tuple(_peak(stage) for stage in stages)


def _peak(stage: Actions) -> int:
    held = peak = 0
    for action in stage:
        held += 1 if action.kind == "F" else -1
        peak = max(peak, held)
    return peak


def simulate(
    schedule: str, forward_seconds: Sequence[float], backward_seconds: Sequence[float],
    p2p_forward_seconds: float, p2p_backward_seconds: float, num_microbatches: int,
) -> Timeline:  # fmt: skip
    """Plays a schedule with each stage's own times.

    An action starts when its stage has finished the previous one and its input has arrived:
    the activations of the stage before, or the gradient of the stage after, ``p2p`` seconds
    after they were computed. Transfers do not occupy the stages. For equal stages and no
    transfers both schedules take (m + pp - 1) * (forward + backward) seconds.

    Args:
        schedule: "gpipe" or "1f1b".
        forward_seconds: of one micro-batch on each stage.
        backward_seconds: of one micro-batch on each stage.
        p2p_forward_seconds: from a stage to the next.
        p2p_backward_seconds: from a stage to the one before.
        num_microbatches: of one step.

    Raises:
        UsageError: see ``actions``; or as many forward as backward times are not given.
    """
    pp = len(forward_seconds)
    if len(backward_seconds) != pp:
        raise UsageError(
            f"{pp} forward and {len(backward_seconds)} backward times",
            expected="one of each per stage", where="simulate",
        )  # fmt: skip
    seconds = {"F": forward_seconds, "B": backward_seconds}
    player = _Player(seconds, {"F": p2p_forward_seconds, "B": p2p_backward_seconds}, pp)
    events = player.play(actions(schedule, pp, num_microbatches))
    makespan = max(stage[-1].end for stage in events)
    busy = [sum(e.end - e.start for e in stage) for stage in events]
    return Timeline(makespan, events, tuple(makespan - b for b in busy))


class _Player:
    """Runs whatever is ready, stage by stage, until every list is done."""

    def __init__(
        self, seconds: dict[str, Sequence[float]], transfer: dict[str, float], pp: int
    ) -> None:
        self.seconds, self.transfer, self.pp = seconds, transfer, pp
        self.ended: dict[tuple[str, int, int], float] = {}

    def play(self, stages: Sequence[Actions]) -> tuple[tuple[Event, ...], ...]:
        """Start and end of every action."""
        events: list[list[Event]] = [[] for _ in stages]
        remaining = sum(len(stage) for stage in stages)
        while remaining:
            before = remaining
            for stage, done in zip(stages, events, strict=True):
                remaining -= self._advance(stage, done)
            assert remaining < before, "the schedule waits for itself"
        return tuple(tuple(stage) for stage in events)

    def _advance(self, stage: Actions, done: list[Event]) -> int:
        """Plays the actions of a stage whose inputs are known; returns how many."""
        begun = len(done)
        for action in stage[begun:]:
            ready = self._ready(action)
            if ready is None:
                break
            start = max(ready, done[-1].end if done else 0.0)
            end = start + self.seconds[action.kind][action.stage]
            self.ended[action.kind, action.stage, action.microbatch] = end
            done.append(Event(action, start, end))
        return len(done) - begun

    def _ready(self, action: Action) -> float | None:
        """When the input of an action is there; None while that is not known."""
        source = action.stage + (-1 if action.kind == "F" else 1)
        if action.kind == "F" and source < 0:
            return 0.0
        if action.kind == "B" and source == self.pp:  # its own loss
            return self.ended.get(("F", action.stage, action.microbatch))
        sent = self.ended.get((action.kind, source, action.microbatch))
        return None if sent is None else sent + self.transfer[action.kind]
