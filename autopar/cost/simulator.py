"""An event simulator that plays the action lists of ``autopar.cost.schedule``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.cost.schedule import Action, Actions, actions
from autopar.errors import UsageError
from autopar.plan import Passes

Transfers = float | Sequence[float]  # seconds of every boundary, or of each


@dataclass(frozen=True)
class Event:
    """An action with its start and end, in seconds since the step began."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What ``simulate`` returns.

    ``events[p]`` are those of rank p in order, ``idle_seconds[p]`` the part of the
    ``makespan`` (seconds) during which rank p computes nothing.
    """

    makespan: float
    events: tuple[tuple[Event, ...], ...]
    idle_seconds: tuple[float, ...]


def simulate(
    schedule: str, forward_seconds: Sequence[float], backward_seconds: Sequence[float],
    p2p_forward_seconds: Transfers, p2p_backward_seconds: Transfers, num_microbatches: int,
    *, virtual_stages: int = 1, weight_seconds: Sequence[float] = (),
) -> Timeline:  # fmt: skip
    """Plays a schedule with each stage's own times.

    An action starts when its rank has finished the previous one and its input has arrived:
    the activations of the stage before, or the gradient of the stage after, ``p2p`` seconds
    after they were computed. Transfers do not occupy the ranks. With equal stages of F + B seconds
    and no transfers, gpipe and 1f1b take (m + pp - 1) (F + B) and interleaved_1f1b takes
    (m v + pp - 1) (F + B).

    Args:
        schedule: a name of ``autopar.cost.schedule.SCHEDULES``.
        forward_seconds: of one micro-batch on each (virtual) stage.
        backward_seconds: of one micro-batch on each stage, the whole backward pass.
        p2p_forward_seconds: from each stage to the next, or one figure for all.
        p2p_backward_seconds: to each stage from the next, or one figure for all.
        num_microbatches: of one step.
        virtual_stages: stages per rank.
        weight_seconds: the part of ``backward_seconds`` that makes gradients of parameters; needed
            for zero_bubble. torch does both parts of the first stage in its W.

    Raises:
        UsageError: see ``check_schedule``; or the numbers of times do not agree.
    """
    stages = len(forward_seconds)
    split = list(weight_seconds) if schedule == "zero_bubble" else [0.0] * stages
    if not len(backward_seconds) == len(split) == stages or stages % virtual_stages:
        raise UsageError(
            f"{stages} forward, {len(backward_seconds)} backward, {len(split)} weight times for"
            f" {virtual_stages} stages per rank",
            expected="one of each per stage", where="simulate",
        )  # fmt: skip
    lists = actions(schedule, stages // virtual_stages, num_microbatches, virtual_stages)
    seconds = {
        "F": forward_seconds, "B": backward_seconds,
        "I": [0.0, *(b - w for b, w in zip(backward_seconds[1:], split[1:], strict=True))],
        "W": [backward_seconds[0], *split[1:]],
    }  # fmt: skip
    return play(lists, seconds, p2p_forward_seconds, p2p_backward_seconds)


def simulate_passes(
    schedule: str, stages: Sequence[Passes], num_microbatches: int, virtual_stages: int = 1
) -> Timeline:
    """Plays a schedule with the figures of a plan's stages, in order.

    Half of a boundary's transfer seconds are taken in either direction.

    Raises:
        UsageError: see ``simulate``.
    """
    half = [stage.transfer_seconds / 2 for stage in stages]
    return simulate(
        schedule,
        [stage.forward_seconds for stage in stages],
        [stage.backward_seconds for stage in stages],
        half,
        half,
        num_microbatches,
        virtual_stages=virtual_stages,
        weight_seconds=[stage.weight_seconds for stage in stages],
    )


def play(
    ranks: Sequence[Actions], seconds: Mapping[str, Sequence[float]],
    p2p_forward_seconds: Transfers, p2p_backward_seconds: Transfers,
) -> Timeline:  # fmt: skip
    """Plays action lists; ``seconds`` has for each kind of action the time on every stage."""
    stages = 1 + max(action.stage for rank in ranks for action in rank)
    transfer = {
        kind: [given] * stages if isinstance(given, float | int) else given
        for kind, given in (("F", p2p_forward_seconds), ("B", p2p_backward_seconds))
    }
    events = _Player(seconds, transfer, stages).play(ranks)
    makespan = max(rank[-1].end for rank in events)
    busy = [sum(e.end - e.start for e in rank) for rank in events]
    return Timeline(makespan, events, tuple(makespan - b for b in busy))


class _Player:
    """Runs whatever is ready, rank by rank, until every list is done."""

    def __init__(
        self, seconds: Mapping[str, Sequence[float]], transfer: Mapping[str, Sequence[float]],
        stages: int,
    ) -> None:  # fmt: skip
        self.seconds, self.transfer, self.stages = seconds, transfer, stages
        self.ended: dict[tuple[str, int, int], float] = {}

    def play(self, ranks: Sequence[Actions]) -> tuple[tuple[Event, ...], ...]:
        """Start and end of every action."""
        events: list[list[Event]] = [[] for _ in ranks]
        remaining = sum(len(rank) for rank in ranks)
        while remaining:
            before = remaining
            for rank, done in zip(ranks, events, strict=True):
                remaining -= self._advance(rank, done)
            assert remaining < before, "the schedule waits for itself"
        return tuple(tuple(rank) for rank in events)

    def _advance(self, rank: Actions, done: list[Event]) -> int:
        """Plays the actions of a rank whose inputs are known; returns how many."""
        begun = len(done)
        for action in rank[begun:]:
            ready = self._ready(action)
            if ready is None:
                break
            start = max(ready, done[-1].end if done else 0.0)
            end = start + self.seconds[action.kind][action.stage]
            self.ended[_NEEDED[action.kind], action.stage, action.microbatch] = end
            done.append(Event(action, start, end))
        return len(done) - begun

    def _ready(self, action: Action) -> float | None:
        """When the input of an action is there; None while that is not known."""
        if action.kind == "W":  # behind the I of the same rank
            return 0.0
        kind, stage = _NEEDED[action.kind], action.stage
        source = stage + (-1 if kind == "F" else 1)
        if source < 0:
            return 0.0
        if source == self.stages:  # its own loss
            return self.ended.get(("F", stage, action.microbatch))
        sent = self.ended.get((kind, source, action.microbatch))
        return None if sent is None else sent + self.transfer[kind][min(source, stage)]


# Under which name the end of an action is known to those that wait for it.
_NEEDED = {"F": "F", "B": "B", "I": "B", "W": "W"}
