"""Every stage pattern that can still matter, by reduced costs.

With a price per byte taken from the relaxation, an option's reduced cost is what one layer
loses at least by taking it. A pattern whose reduced costs add up to more than the distance
between the relaxation and the cap is above the cap, so only the few others are listed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from autopar.solve.chain import Bools, Chain, Depths, Floats, Ints
from autopar.solve.columns import Level, climb, ladder, levels, rounded_pattern, weights

SHARES = (1 / 64, 1 / 8, 1.0)
RIVALS = 64
MOST_CELLS = 16_000_000
TIE = 1e-9


class OutOfTimeError(Exception):
    """The deadline passed; the caller answers with what it has."""


@dataclass(frozen=True)
class Request:
    """Which patterns are wanted.

    Those of fewer than ``cap_seconds``, without transfers; step seconds below ``quiet_step``
    make no difference, because another stage has as many, and above ``most_step`` none is wanted.
    At most ``budget`` rows are tried, and none after ``deadline`` in ``time.monotonic`` seconds.
    Where the lead is a figure of its own a pattern is also wanted for that.
    """

    chain: Chain
    depths: Depths
    content: int
    cap_seconds: float
    quiet_step: float
    budget: int
    deadline: float = math.inf
    most_step: float = math.inf

    @property
    def counts(self) -> Ints:
        """Layers per class."""
        row: Ints = self.chain.counts[self.content]
        return row

    @property
    def option_bytes(self) -> Floats:
        """Bytes of one layer with each option at these depths."""
        return self.chain.held_bytes(self.depths)


@dataclass(frozen=True)
class Pattern:
    """One way to fill a rank: layers per option, seconds per micro-batch and step, and lead."""

    taken: tuple[int, ...]
    seconds: float
    step_seconds: float
    lead_seconds: float = 0.0


@dataclass(frozen=True)
class Listing:
    """The patterns that no other beats.

    One left out takes ``beyond_seconds`` at least, or as many as the cap of the request.
    """

    patterns: tuple[Pattern, ...]
    beyond_seconds: float


@dataclass(frozen=True)
class _Prices:
    """Reduced costs [options] at one level, infinite where not allowed; ``lower`` is their zero."""

    level: Level
    reduced: Floats
    lower: float


def list_patterns(request: Request) -> Listing:
    """Lists the patterns of one interval that no other pattern beats.

    Raises:
        OutOfTimeError: the deadline has passed.
    """
    rows = [_rounded(request)]
    cap, beyond = _finite_cap(request), np.inf
    for prices in _levels(request):
        if prices.lower >= cap:
            continue
        listed, reached = _list_level(request, prices, cap)
        rows.append(listed)
        quiet = _quiet_seconds(request, listed)
        if reached < min(cap, quiet):
            beyond = min(beyond, reached)
        cap = min(cap, quiet)
    return Listing(_best(request, np.concatenate(rows)), float(beyond))


def _finite_cap(request: Request) -> float:
    """The cap, or where there is none what no pattern exceeds."""
    chain = request.chain
    worst = [chain.seconds[chain.owner == c].max() for c in range(len(chain.menus))]
    return min(request.cap_seconds, float(request.counts @ np.array(worst)) * (1 + TIE) + TIE)


def _rounded(request: Request) -> Ints:
    """The patterns that the relaxation was rounded to."""
    number = len(weights(request.chain))
    rows = [
        rounded_pattern(request.chain, request.depths, request.content, k) for k in range(number)
    ]
    return _fitting(request, np.stack(rows))


def _levels(request: Request) -> list[_Prices]:
    """Reduced costs of each level with a feasible relaxation, least bound first."""
    priced = [_price(request, level) for level in levels(request.chain)]
    return sorted((p for p in priced if p is not None), key=lambda p: p.lower)


def _price(request: Request, level: Level) -> _Prices | None:
    """Prices bytes by the step of the ladder at which the relaxation stops.

    Among equal seconds the fewer step seconds come first, by a weight too small to matter.
    """
    chain, option_bytes = request.chain, request.option_bytes
    quiet_weight = TIE * chain.seconds.max() / max(chain.step_seconds.max(), TIE)
    cost = chain.seconds + quiet_weight * chain.step_seconds
    steps = ladder(chain, option_bytes, cost, level)
    counts, room = request.counts, request.chain.room_bytes - level.low
    filled = climb(steps, counts[None], option_bytes, cost, room)
    if not filled.feasible[0]:
        return None
    stopped = np.flatnonzero(filled.units[0] < counts[steps.owner])
    price = steps.gain[stopped[0]] / steps.extra_bytes[stopped[0]] if len(stopped) else 0.0
    paid = np.where(chain.transient_bytes <= level.high, cost + price * option_bytes, np.inf)
    least = np.array([paid[chain.owner == c].min() for c in range(len(counts))])
    present = np.flatnonzero(counts)
    lower = counts[present] @ least[present] - price * room
    slack = quiet_weight * float(counts.sum()) * chain.step_seconds.max()
    with np.errstate(invalid="ignore"):
        return _Prices(level, paid - least[chain.owner], float(lower - slack))


def _list_level(request: Request, prices: _Prices, cap: float) -> tuple[Ints, float]:
    """Patterns of one level, and the seconds below which none of them is missing."""
    kept = np.zeros((0, len(request.chain.options)), dtype=np.int64)
    reached = prices.lower
    for share in SHARES:
        loss = share * (cap - prices.lower)
        rows = _expand(request, prices, loss)
        if rows is None:
            break
        kept, reached = rows, cap if share == 1.0 else prices.lower + loss
        if _quiet_seconds(request, kept) <= reached:
            break
    return kept, float(reached)


def _expand(request: Request, prices: _Prices, loss: float) -> Ints | None:
    """All fitting patterns whose reduced costs sum to ``loss`` at most; None if over budget."""
    chain, counts = request.chain, request.counts
    taken = np.zeros((1, len(chain.options)), dtype=np.int64)
    spent = np.zeros(1)
    most_rows = min(request.budget, MOST_CELLS // len(chain.options))
    for c in np.flatnonzero(counts):
        if time.monotonic() > request.deadline:
            raise OutOfTimeError
        options = np.flatnonzero((chain.owner == c) & np.isfinite(prices.reduced))
        options = options[np.argsort(-prices.reduced[options], kind="stable")]
        left = np.full(len(taken), counts[c])
        for o in options[:-1]:
            most = _most(left, loss * (1 + TIE) - spent, float(prices.reduced[o]))
            if (most + 1).sum() > most_rows:
                return None
            rows = np.repeat(np.arange(len(taken)), most + 1)
            number = np.arange(len(rows)) - np.repeat(np.cumsum(most + 1) - most - 1, most + 1)
            taken, left, spent = taken[rows], left[rows] - number, spent[rows]
            taken[:, o] = number
            spent = spent + number * prices.reduced[o]
        taken[:, options[-1]] = left
        kept = _may_fit(request, taken, int(c))
        taken, spent = taken[kept], spent[kept]
        kept = _unbeaten(request, taken)
        taken, spent = taken[kept], spent[kept]
    return _fitting(request, taken)


def _most(left: Ints, loss: Floats, reduced: float) -> Ints:
    """How many layers may take an option before its reduced cost exceeds the loss."""
    if reduced <= 0:
        return left
    affordable = np.floor(np.clip(loss / reduced, 0, left.max(initial=0)))
    return np.minimum(left, affordable.astype(np.int64))


def _may_fit(request: Request, taken: Ints, done: int) -> Bools:
    """Rows that still fit when every class after ``done`` takes its leanest options."""
    chain, option_bytes = request.chain, request.option_bytes
    rest = sum(
        float(request.counts[c] * option_bytes[chain.owner == c].min())
        for c in range(done + 1, len(request.counts))
        if request.counts[c]
    )
    fits = _peak_bytes(request, taken) + rest <= request.chain.room_bytes
    return np.asarray(fits)


def _unbeaten(request: Request, taken: Ints) -> Bools:
    """Rows that none of a few others beats in seconds, lead, step seconds, bytes and transient.

    All rows fill the same layers, so what completes the worse one completes the better one.
    The few are the fastest of equal shares of the rows by bytes: most of what can be beaten is.
    """
    if len(taken) < 4 * RIVALS:
        return np.ones(len(taken), dtype=bool)
    figures = _figures(request, taken)
    shares = np.array_split(np.argsort(figures[:, 3], kind="stable"), RIVALS)
    rivals = figures[[share[figures[share, 0].argmin()] for share in shares]]
    beaten = np.zeros(len(taken), dtype=bool)
    for rival in rivals:
        beaten |= (figures >= rival).all(axis=1) & (figures > rival).any(axis=1)
    return np.asarray(~beaten)


def _figures(request: Request, taken: Ints) -> Floats:
    """Seconds, lead, step seconds, held bytes and transient bytes of each row; [rows, 5]."""
    chain = request.chain
    each = [chain.seconds, chain.lead_seconds, chain.step_seconds, request.option_bytes]
    transient = np.where(taken > 0, chain.transient_bytes, 0.0).max(axis=1, initial=0.0)
    return np.column_stack([taken @ np.stack(each, axis=1), transient])


def _peak_bytes(request: Request, taken: Ints) -> Floats:
    """Bytes of each row: what its layers hold, and the largest transient among them."""
    transient = np.where(taken > 0, request.chain.transient_bytes, 0.0).max(axis=1, initial=0.0)
    return np.asarray(taken @ request.option_bytes + transient)


def _fitting(request: Request, taken: Ints) -> Ints:
    """Rows with the right number of layers of each class, within the memory."""
    classes = np.arange(len(request.counts))
    members = taken @ (request.chain.owner[:, None] == classes)
    right = (members == request.counts).all(axis=1)
    fits = _peak_bytes(request, taken) <= request.chain.room_bytes
    fitting: Ints = taken[right & fits]
    return fitting


def _quiet_seconds(request: Request, taken: Ints) -> float:
    """Seconds of the fastest pattern whose step seconds make no difference; inf if none.

    A slower one is of no use, unless it is wanted for something else.
    """
    if request.chain.splits_backward:
        return np.inf
    quiet = taken @ request.chain.step_seconds <= request.quiet_step
    return float((taken[quiet] @ request.chain.seconds).min(initial=np.inf))


def _best(request: Request, taken: Ints) -> tuple[Pattern, ...]:
    """The patterns that no other matches in every figure that matters, fastest first."""
    figures = _figures(request, taken)
    heard = np.maximum(figures[:, 2], request.quiet_step)
    matters = [heard, figures[:, 1]] if request.chain.splits_backward else [heard]
    order = np.lexsort((figures[:, 2], *matters[::-1], figures[:, 0]))
    kept = pareto(np.column_stack(matters)[order])
    rows = order[kept]
    return tuple(
        Pattern(tuple(taken[row].tolist()), figures[row, 0], figures[row, 2], figures[row, 1])
        for row in rows
    )


def pareto(figures: Floats) -> list[int]:
    """Rows that no earlier row matches or beats everywhere."""
    kept: list[int] = []
    front = np.zeros((0, figures.shape[1]))
    for number, row in enumerate(figures):
        if not (front <= row).all(axis=1).any():
            kept.append(number)
            front = np.vstack([front, row])
    return kept
