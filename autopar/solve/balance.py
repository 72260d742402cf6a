"""A bound on pipelines whose ranks are on devices of two kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.solve.problem import Configuration, Option, Problem

SHARES = np.linspace(0.0, 1.0, 17)


@dataclass(frozen=True)
class Least:
    """What the layers take at least on one kind of device, one figure per layer.

    ``seconds`` per micro-batch, ``crossing`` those of ``Configuration.crossing_seconds``; the
    ``ranks`` of the kind transfer for ``transfer_seconds`` together.
    """

    ranks: int
    seconds: Sequence[float]
    crossing: Sequence[float]
    step_seconds: Sequence[float]
    transfer_seconds: float


def balanced_bound(config: Configuration, kinds: Sequence[Least]) -> float:
    """No pipeline over these two kinds takes less, wherever it is cut.

    The largest pace is no less than a mean of all ranks' paces, in which each kind has a share.
    For any shares every layer costs something on either kind, at least the less of the two; the
    highest of these bounds is that of the shares at which both kinds take equally long.
    """
    m, v = config.num_microbatches, config.virtual_stages
    work = m * np.array([kind.seconds for kind in kinds])
    lead = np.array([kind.crossing for kind in kinds]) / v
    moved = np.array([kind.transfer_seconds for kind in kinds])
    best = 0.0
    for share in SHARES:
        weight = np.array([share, 1 - share]) / [kind.ranks for kind in kinds]
        layers = (1 - weight)[:, None] * lead + weight[:, None] * work
        transfers = (1 - weight) * moved / v + weight * m * moved
        best = max(best, float(layers.min(axis=0).sum() + transfers.sum()))
    step = np.array([kind.step_seconds for kind in kinds]).min(axis=0)
    return best + max(float(step.sum()) / config.pp, float(step.max()))


def kinds_bound(problem: Problem) -> float:
    """``balanced_bound`` of a problem over two kinds."""
    config = problem.configuration
    moved = [0.0] * len(problem.kinds)
    for stage in range(config.stages):
        least = (min(seconds[1:], default=0.0) for seconds in problem.sides(stage))
        moved[problem.kind(stage % config.pp)] += sum(least)
    return balanced_bound(config, [
        _least(own, problem.rank_kinds.count(k), moved[k]) for k, own in enumerate(problem.kinds)
    ])  # fmt: skip


def _least(problem: Problem, ranks: int, moved: float) -> Least:
    def least(figure: Callable[[Option], float]) -> list[float]:
        each = [min(map(figure, menu), default=0.0) for menu in problem.menus]
        return [each[c] for c in problem.layers]

    return Least(
        ranks, least(lambda o: o.microbatch_seconds),
        least(problem.configuration.crossing_seconds), least(lambda o: o.step_seconds), moved,
    )  # fmt: skip
