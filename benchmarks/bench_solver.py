"""How long the model-level search takes on synthetic transformers.

    python benchmarks/bench_solver.py            # every size
    python benchmarks/bench_solver.py 96/1024    # one of them

Costs are those of a plain GPT block on an 80 GB device with 500 Tflop/s, made up but of the
right proportions; what is measured is the search, not the plan.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autopar.solve import search
from autopar.solve.problem import Candidate, Configuration, Option, Problem

FLOPS, LINK, WIRE = 5e14, 3e11, 4e10
VOCABULARY = 51_200


@dataclass(frozen=True)
class Size:
    """A model, a batch of sequences and a number of devices."""

    layers: int
    width: int
    length: int
    batch: int
    devices: int
    limit_bytes: float
    gap: float = 0.01
    stages: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


SIZES = {
    "14/8": Size(12, 768, 1024, 64, 8, 80e9),
    "32/8": Size(32, 4096, 2048, 64, 8, 80e9),
    "48/64": Size(48, 8192, 4096, 512, 64, 40e9),
    "96/1024": Size(96, 12288, 2048, 1536, 1024, 80e9),
    "96/1024 gap 1e-4": Size(96, 12288, 2048, 1536, 1024, 80e9, 1e-4),
    "96/1024 pp 32": Size(96, 12288, 2048, 1536, 1024, 30e9, 1e-4, (32,)),
    "128/1024 tight": Size(128, 18432, 2048, 2048, 1024, 40e9),
}


def layer_options(
    size: Size, c: Configuration, flops: float, parameters: float, saved: float
) -> tuple[Option, ...]:
    """Every zero and recompute mode of a layer; ``flops`` and ``saved`` are per sample."""
    return tuple(
        _option(size, c, flops, parameters, saved, zero, recompute)
        for zero in (0, 2, 3)
        for recompute in ("none", "full")
    )


def _option(
    size: Size, c: Configuration, flops: float, parameters: float, saved: float,
    zero: int, recompute: str,
) -> Option:  # fmt: skip
    forward = flops * c.microbatch_size / c.tp / FLOPS
    boundary = 2 * size.width * size.length * c.microbatch_size
    comm = 2 * boundary * (c.tp > 1) / LINK
    gather = 2 * parameters / c.tp / (WIRE * 8 if c.dp * c.tp <= 8 else WIRE) * (c.dp > 1)
    held = parameters / c.tp * {0: 18, 2: 4 + 14 / c.dp, 3: 18 / c.dp}[zero]
    kept = saved * c.microbatch_size / c.tp
    full = recompute == "full"
    return Option(
        key=f"{zero}/{recompute}", tp_option=0, zero=zero, recompute=recompute,
        forward_seconds=forward + comm + 2e-5 + (zero == 3) * gather * 0.3,
        backward_seconds=(2 + full) * forward + (1 + full) * comm + (zero == 3) * gather * 0.3,
        step_seconds=gather * 0.5 + held / 2e12,
        state_bytes=int(held),
        activation_bytes=int(boundary / c.tp if full else kept),
        transient_bytes=int((kept if full else 0.2 * kept) + 2 * parameters / c.tp * (zero == 3)),
    )  # fmt: skip


def build(size: Size, c: Configuration) -> Problem:
    """Embedding, blocks and head with the embedding tied to the head."""
    h, s = size.width, size.length
    block = layer_options(size, c, s * (24 * h * h + 4 * s * h), 12 * h * h, 34 * s * h)
    embedding = layer_options(size, c, s * 1e4, VOCABULARY * h, 2 * s * h)
    head = layer_options(size, c, 2 * s * h * VOCABULARY, 2.0 * h, 6 * s * VOCABULARY)
    layers = (0, *[1] * size.layers, 2)
    return Problem(
        c, layers, (embedding, block, head), int(size.limit_bytes * 0.95),
        cut_seconds=((c.pp > 1) * 4 * h * s * c.microbatch_size / c.tp / WIRE,) * len(layers),
        linked=((0, len(layers) - 1),), baseline_bytes=2 * 10**9,
    )  # fmt: skip


def configurations(size: Size) -> Iterator[Configuration]:
    """Powers of two of everything; 1f1b where there are enough micro-batches."""
    powers = [2**k for k in range(11)]
    for pp in (p for p in size.stages if p <= min(size.layers, size.devices)):
        for tp in (t for t in powers if t <= 8 and pp * t <= size.devices):
            dp = size.devices // (pp * tp)
            for micro in (u for u in powers if u <= 16 and size.batch % (dp * u) == 0):
                m = size.batch // (dp * micro)
                schedule = "1f1b" if m >= pp else "gpipe"
                yield Configuration(pp, dp, tp, micro, m, schedule)


def lower_bound(problem: Problem) -> float:
    """Every layer at its fastest, perfectly balanced."""
    c = problem.configuration
    total = sum(min(o.microbatch_seconds for o in problem.menus[k]) for k in problem.layers)
    total += 2 * (c.pp - 1) * problem.cut_seconds[0]
    return total + (c.num_microbatches - 1) * total / c.pp


def candidates(size: Size) -> list[Candidate]:
    """All configurations with their bounds."""

    def later(c: Configuration) -> Callable[[], Problem]:
        return lambda: build(size, c)

    return [Candidate(c, lower_bound(build(size, c)), later(c)) for c in configurations(size)]


def report(name: str, size: Size) -> None:
    """Solves one size and prints what it took."""
    begun = time.perf_counter()
    offered = candidates(size)
    bounded = time.perf_counter()
    found = search.solve(offered, gap=size.gap)
    c = found.problem.configuration
    print(
        f"{name:18} bounds {bounded - begun:5.2f} s  search {found.seconds:6.2f} s  "
        f"{found.status}, gap {found.gap:.2e} of {size.gap:.0e}\n"
        f"{'':18} {found.objective_seconds:.4f} s per step with pp={c.pp} dp={c.dp} tp={c.tp} "
        f"microbatch={c.microbatch_size} x {c.num_microbatches} {c.schedule}  {found.candidates}"
    )


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SIZES:
        report(chosen, SIZES[chosen])
