"""What is left to look at, least bound first: groups, configurations, problems."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.solve.balance import kinds_bound
from autopar.solve.price import problem_bound
from autopar.solve.problem import Candidate, Group, Problem


@dataclass(frozen=True)
class Entry:
    """A problem to be solved next; ``number`` tells its configuration from all others."""

    number: int
    problem: Problem


Item = Group | Candidate | Entry
# Problems that are tried before the next group is listed while there is no plan yet.
PATIENCE = 4


class Queue:
    """Two heaps by lower bound; of each thing only what its bound calls for is made.

    A group is listed when no other bound is lower, a configuration likewise built, and its
    problem, whose own bound is sharper, goes back into the queue. Configurations without room for
    their layers are ``crowded``: they are not built.
    """

    def __init__(self, items: Sequence[Candidate | Group]) -> None:
        self._groups: list[tuple[float, int, Item]] = []
        self._listed: list[tuple[float, int, Item]] = []
        self._pushed = 0
        self._numbers = 0
        self._tries = PATIENCE
        self.considered = 0
        self.crowded: list[Candidate] = []
        for item in items:
            self._add(item)

    def __len__(self) -> int:
        return len(self._groups) + len(self._listed)

    @property
    def bound(self) -> float:
        """No plan of anything that is left costs less, in seconds."""
        return min(heap[0][0] for heap in (self._groups, self._listed) if heap)

    def _add(self, item: Candidate | Group) -> None:
        self.considered += item.size if isinstance(item, Group) else 1
        self._push(item.lower_bound, item)

    def _push(self, bound: float, item: Item) -> None:
        heap = self._groups if isinstance(item, Group) else self._listed
        heapq.heappush(heap, (bound, self._pushed, item))
        self._pushed += 1

    def pop(self, *, hurry: bool = False) -> Entry | None:
        """Takes the first thing and makes the next of it; a problem where it is its turn.

        In a ``hurry``, for want of any plan, a few problems are tried before each further group.
        """
        heap = self._first(hurry)
        bound, _, item = heapq.heappop(heap)
        if isinstance(item, Entry):
            self._tries += 1
            return item
        if isinstance(item, Group):
            self._tries = 0
            self.considered -= item.size
            for candidate in item.expand():
                self._add(candidate)
            return None
        if not item.has_room():
            self.crowded.append(item)
            return None
        problem = item.build()
        own = (kinds_bound if problem.kinds else problem_bound)(problem)
        self._push(max(bound, own), Entry(self._numbers, problem))
        self._numbers += 1
        return None

    def _first(self, hurry: bool) -> list[tuple[float, int, Item]]:
        if not (self._groups and self._listed):
            return self._groups or self._listed
        if hurry and self._tries < PATIENCE:
            return self._listed
        return min(self._groups, self._listed, key=lambda heap: heap[0][:2])

    def listed(self) -> Iterator[Problem]:
        """Takes what has been listed but not built, least bound first; groups stay closed."""
        while self._listed:
            item = heapq.heappop(self._listed)[2]
            if isinstance(item, Candidate) and item.has_room():
                yield item.build()

    def built(self) -> list[Entry]:
        """The problems that are in the queue, least bound first."""
        return [item for _, _, item in sorted(self._listed, key=lambda entry: entry[:2])
                if isinstance(item, Entry)]  # fmt: skip
