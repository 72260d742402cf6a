"""Pipeline schedules as lists of actions, and what follows from the lists alone.

The lists are those that ``torch.distributed.pipelining`` executes (torch 2.11 to 2.13):
``_step_microbatches`` of ``ScheduleGPipe`` and ``Schedule1F1B``, not the ones that they draw, and
the ``pipeline_order`` of ``ScheduleInterleaved1F1B`` and ``ScheduleInterleavedZeroBubble``.

With v virtual stages per rank the model is cut into pp * v stages, and rank p holds stages
p, p + pp, p + 2 pp and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopar.errors import UsageError


@dataclass(frozen=True)
class Action:
    """What a rank does with one micro-batch on one (virtual) stage.

    "F" is the forward pass and "B" the whole backward pass; "I" is the part of backward that
    makes the gradient of the stage's input, "W" the part that makes those of its parameters.
    """

    kind: Literal["F", "B", "I", "W"]
    stage: int
    microbatch: int


Actions = tuple[Action, ...]


def _gpipe(pp: int, rank: int, microbatches: int, v: int) -> Iterator[Action]:
    """All forwards, then all backwards in the same order."""
    yield from (Action("F", rank, i) for i in range(microbatches))
    yield from (Action("B", rank, i) for i in range(microbatches))


def _one_forward_one_backward(pp: int, rank: int, microbatches: int, v: int) -> Iterator[Action]:
    """Warm-up forwards, then a backward and a forward in turn, then the other backwards."""
    ahead = min(microbatches, pp - rank)
    yield from (Action("F", rank, i) for i in range(ahead))
    for i in range(microbatches):
        yield Action("B", rank, i)
        if i + ahead < microbatches:
            yield Action("F", rank, i + ahead)


def _interleaved(pp: int, rank: int, microbatches: int, v: int) -> Iterator[Action]:
    """As 1f1b over the chunks of a rank, each for a round of micro-batches (Narayanan et al. 2021).

    A forward comes before the backward that it is paired with, unlike in torch's 1f1b.
    """
    chunks = _Chunks(pp, rank, microbatches, v)
    total, ahead = v * microbatches, chunks.warm_up(hops=2)
    for step in range(total + ahead):
        if step < total:
            yield chunks.forward(step)
        if step >= ahead:
            yield Action("B", *chunks.backward(step - ahead))


def _zero_bubble(pp: int, rank: int, microbatches: int, v: int) -> Iterator[Action]:
    """ZB-H1 of Qi et al. 2023: gradients of parameters are made later, by rank p p passes later."""
    chunks = _Chunks(pp, rank, microbatches, v)
    total, ahead = v * microbatches, chunks.warm_up(hops=1)
    for step in range(total + ahead):
        if step < total:
            yield chunks.forward(step)
        if step >= ahead:
            yield Action("I", *chunks.backward(step - ahead))
            if step - ahead >= rank:
                yield Action("W", *chunks.backward(step - ahead - rank))
    yield from (Action("W", *chunks.backward(k)) for k in range(max(0, total - rank), total))


@dataclass(frozen=True)
class _Chunks:
    """Whose turn it is on a rank with ``v`` chunks.

    Chunks take turns in rounds of as many micro-batches as there are ranks, first to last in
    forward and last to first in backward.
    """

    pp: int
    rank: int
    microbatches: int
    v: int

    @property
    def round(self) -> int:
        """Micro-batches of one round."""
        return self.microbatches // max(1, self.microbatches // self.pp)

    def warm_up(self, hops: int) -> int:
        """Forwards before the first backward: ``hops`` more per rank from the end."""
        ahead = (self.v - 1) * self.round + hops * (self.pp - 1 - self.rank)
        return min(ahead, self.v * self.microbatches)

    def forward(self, step: int) -> Action:
        """The forward pass number ``step`` of this rank."""
        chunk, microbatch = self._turn(step)
        return Action("F", chunk * self.pp + self.rank, microbatch)

    def backward(self, step: int) -> tuple[int, int]:
        """Stage and micro-batch of the backward pass number ``step`` of this rank."""
        chunk, microbatch = self._turn(step)
        return (self.v - 1 - chunk) * self.pp + self.rank, microbatch

    def passed(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Passes of each chunk among the first ``steps`` [n] of the rank; [n, v].

        First to last; in backward the columns are those of the last chunk to the first.
        """
        turns, rest = np.divmod(steps, self.round * self.v)
        begun = rest[:, None] - self.round * np.arange(self.v)
        return np.asarray(turns[:, None] * self.round + np.clip(begun, 0, self.round))

    def _turn(self, step: int) -> tuple[int, int]:
        turn, within = divmod(step, self.round)
        number, chunk = divmod(turn, self.v)
        return chunk, number * self.round + within


_ORDER: dict[str, Callable[[int, int, int, int], Iterator[Action]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved_1f1b": _interleaved,
    "zero_bubble": _zero_bubble,
}
SCHEDULES = tuple(_ORDER)
SINGLE = ("gpipe", "1f1b")  # one stage per rank
# Rounds of micro-batches behind which multi-stage schedules repeat themselves.
ROUNDS = 4


def check_schedule(schedule: str, pp: int, num_microbatches: int, virtual_stages: int = 1) -> None:
    """Refuses what torch's schedule classes, or the formulas of this package, do not cover.

    torch runs ``interleaved_1f1b`` and ``zero_bubble`` also with some numbers of micro-batches
    that pp does not divide; they then take longer than the closed form says.

    Raises:
        UsageError: an unknown schedule, numbers below 1, or a combination that cannot run.
    """
    if schedule not in _ORDER:
        raise UsageError(
            f"schedule {schedule!r}", expected=" or ".join(SCHEDULES), where="schedule",
            hint="leave the schedule to the solver",
        )  # fmt: skip
    if min(pp, num_microbatches, virtual_stages) < 1:
        raise UsageError(
            f"pp={pp}, num_microbatches={num_microbatches}, virtual_stages={virtual_stages}",
            expected="1 or more of each",
            where="schedule", hint="a global batch of at least one sample per dp rank",
        )  # fmt: skip
    if virtual_stages > 1 and (schedule in SINGLE or pp == 1):
        raise UsageError(
            f"{virtual_stages} virtual stages with schedule={schedule} and pp={pp}", expected="1",
            where="schedule", hint="interleaved_1f1b or zero_bubble with pp of 2 or more",
        )  # fmt: skip
    if schedule not in SINGLE and num_microbatches % pp:
        raise UsageError(
            f"{num_microbatches} micro-batches with schedule={schedule} and pp={pp}",
            expected=f"a multiple of {pp}", where="schedule",
            hint="another microbatch_size or global batch",
        )  # fmt: skip


def actions(
    schedule: str, pp: int, num_microbatches: int, virtual_stages: int = 1
) -> tuple[Actions, ...]:
    """What every rank does, in order.

    With one rank this is gradient accumulation under any name: forward and backward of each
    micro-batch in turn.

    Raises:
        UsageError: see ``check_schedule``.
    """
    each = (rank_actions(schedule, pp, r, num_microbatches, virtual_stages) for r in range(pp))
    return tuple(each)


def rank_actions(
    schedule: str, pp: int, rank: int, num_microbatches: int, virtual_stages: int = 1
) -> Actions:
    """What one rank does, in order; raises as ``actions`` does."""
    check_schedule(schedule, pp, num_microbatches, virtual_stages)
    order = _one_forward_one_backward if pp == 1 else _ORDER[schedule]
    return tuple(order(pp, rank, num_microbatches, virtual_stages))


@dataclass(frozen=True)
class Depth:
    """What a stage holds at most, in micro-batches.

    ``forwarded`` are between F and the end of backward, of which ``waiting`` are between I and W.
    """

    forwarded: int
    waiting: int


def depths(ranks: Sequence[Actions]) -> tuple[Depth, ...]:
    """The depth of every stage, each at its own worst moment."""
    stages = {a.stage for rank in ranks for a in rank}
    held = {stage: [0, 0] for stage in stages}
    most = {stage: [0, 0] for stage in stages}
    for action in (a for rank in ranks for a in rank):
        for k, change in enumerate(held_change(action)):
            held[action.stage][k] += change
            most[action.stage][k] = max(most[action.stage][k], held[action.stage][k])
    return tuple(Depth(*most[stage]) for stage in sorted(stages))


def held_change(action: Action) -> tuple[int, int]:
    """By how much an action changes the micro-batches that its stage has forwarded, and waiting.

    The first stage makes all its gradients in W.
    """
    return (_HELD_FIRST if action.stage == 0 else _HELD)[action.kind]


_HELD = {"F": (1, 0), "B": (-1, 0), "I": (0, 1), "W": (-1, -1)}
_HELD_FIRST = {**_HELD, "I": (0, 0), "W": (-1, 0)}


def schedule_depths(
    schedule: str, pp: int, num_microbatches: int, virtual_stages: int = 1
) -> tuple[Depth, ...]:
    """``depths`` of a schedule; beyond a few rounds of micro-batches only gpipe holds more.

    With one stage per rank gpipe holds all micro-batches, 1f1b those of its warm-up.
    """
    check_schedule(schedule, pp, num_microbatches, virtual_stages)
    if schedule in SINGLE:
        most = num_microbatches if schedule == "gpipe" and pp > 1 else 0
        return _single_depths(pp, min(num_microbatches, pp), most)
    return _multi_depths(schedule, pp, min(num_microbatches, ROUNDS * pp), virtual_stages)


@lru_cache(maxsize=4096)
def _single_depths(pp: int, warm_up: int, whole: int) -> tuple[Depth, ...]:
    """With one stage per rank; ``whole`` is what each holds if it is not its ``warm_up``."""
    return tuple(Depth(whole or min(warm_up, pp - rank), 0) for rank in range(pp))


@lru_cache(maxsize=4096)
def _multi_depths(schedule: str, pp: int, few: int, v: int) -> tuple[Depth, ...]:
    """With v stages per rank and a ``few`` micro-batches, which more do not exceed."""
    each = [_rank_depths(schedule, _Chunks(pp, r, few, v)) for r in range(pp)]
    return tuple(rank[chunk] for chunk in range(v) for rank in each)


def _rank_depths(schedule: str, chunks: _Chunks) -> list[Depth]:
    """``depths`` of the chunks of a rank by arithmetic: what has run before each of its passes."""
    split, total = schedule == "zero_bubble", chunks.v * chunks.microbatches
    ahead = chunks.warm_up(hops=1 if split else 2)
    late = chunks.rank if split else 0  # passes by which W is behind I
    step = np.arange(total + ahead)
    forward = chunks.passed(np.minimum(step + 1, total))
    inner = chunks.passed(np.clip(step + 1 - ahead, 0, None))[:, ::-1]
    done = chunks.passed(np.clip(step - ahead - late, 0, None))[:, ::-1]
    waiting = (inner - done).max(axis=0) * split
    if chunks.rank == 0:
        waiting[0] = 0  # the first stage makes all its gradients in W
    most = (forward - done).max(axis=0)
    return [Depth(int(f), int(w)) for f, w in zip(most, waiting, strict=True)]


Stages = frozenset[int]


def gather_events(rank: Actions, most: int = 3) -> tuple[tuple[Stages, Stages], ...]:
    """Before each action of a rank: the stages whose parameters are gathered, and those freed.

    torch's multi-stage classes keep the parameters of the next ``most`` stages that a rank works
    on (``_add_unshard_reshard``), whatever ``fully_shard`` itself frees behind a forward.
    """
    found = []
    active: Stages = frozenset()
    for ahead in _upcoming(rank, most):
        found.append((ahead - active, active - ahead))
        active = ahead
    return tuple(found)


def _upcoming(rank: Actions, most: int) -> list[Stages]:
    """At each action the next ``most`` different stages, its own among them."""
    order: list[int] = []
    found = []
    for action in reversed(rank):
        order = [action.stage, *(stage for stage in order if stage != action.stage)]
        found.append(frozenset(order[:most]))
    return found[::-1]
