"""How a rank's time divides into computing and communication, from what the profiler recorded.

On a GPU kernels count: NCCL's are communication, all others computing. On a CPU computing is the
operators of the thread that does most of them, and communication is gloo's, which its own
threads carry out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.autograd.profiler_util import FunctionEvent

Span = tuple[float, float]
_MICRO = 1e-6


@dataclass(frozen=True)
class Split:
    """Seconds of some steps on one rank.

    ``communicating`` is what of the communication no computing hid, waiting for the others
    that take part included; ``rest`` is neither: bubbles, the host's own work, wake-ups.
    """

    computing: float
    communicating: float
    rest: float


def split(events: Iterable[FunctionEvent], seconds: float) -> Split:
    """Divides ``seconds`` of wall time by the events that were recorded in them."""
    computing, communication = _spans(events)
    busy = total(union(computing))
    exposed = total(union([*computing, *communication])) - busy
    return Split(busy * _MICRO, exposed * _MICRO, max(0.0, seconds - (busy + exposed) * _MICRO))


def union(spans: Iterable[Span]) -> list[Span]:
    """Disjoint spans that cover the same time."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def total(spans: Iterable[Span]) -> float:
    """Length of disjoint spans."""
    return sum(end - start for start, end in spans)


def _spans(events: Iterable[FunctionEvent]) -> tuple[list[Span], list[Span]]:
    """What computes and what communicates, in microseconds."""
    kernels: dict[bool, list[Span]] = {False: [], True: []}
    operators: defaultdict[int, list[Span]] = defaultdict(list)
    gloo: list[Span] = []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if event.device_type.name == "CUDA":
            kernels["nccl" in event.name.lower()].append(span)
        elif event.name.startswith("gloo:"):
            gloo.append(span)
        elif event.name.startswith("aten::"):
            operators[event.thread].append(span)
    if kernels[False]:
        return kernels[False], kernels[True]
    return _longest(list(operators.values())), gloo


def _longest(threads: Sequence[list[Span]]) -> list[Span]:
    return max(threads, key=lambda spans: total(union(spans)), default=[])
