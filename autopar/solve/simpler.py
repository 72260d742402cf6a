"""Of plans that are equally fast as far as the search looked, the one with the shorter program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from autopar.solve.price import objective_seconds, violations
from autopar.solve.problem import Option, Problem


def simpler(
    problem: Problem, boundaries: Sequence[int], options: Sequence[Option], limit: float
) -> tuple[Option, ...]:
    """The options with fewer different ones per class, in a plan of ``limit`` seconds at most.

    A program has one class of code per sharding of a block, and mixtures within the precision of
    the search tell the reader nothing.
    """
    kept = tuple(options)
    while True:
        shorter = next(
            (
                trial
                for trial in _merged(problem, kept)
                if objective_seconds(problem, boundaries, trial) <= limit
                and not violations(problem, boundaries, trial)
            ),
            None,
        )
        if shorter is None:
            return kept
        kept = shorter


def _merged(problem: Problem, options: Sequence[Option]) -> Iterator[tuple[Option, ...]]:
    """Each option of a class replaced by another one of it: the rarest first, by the commonest."""
    pairs = list(zip(problem.layers, options, strict=True))
    for member in dict.fromkeys(problem.layers):
        used = [o for o, _ in Counter(o for c, o in pairs if c == member).most_common()]
        for rare in reversed(used):
            for common in (option for option in used if option is not rare):
                yield tuple(common if pair == (member, rare) else pair[1] for pair in pairs)
