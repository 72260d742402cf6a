"""Pipelines over two kinds of device: where they are cut, priced, and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.cluster import Cluster
from autopar.errors import InfeasiblePlanError
from autopar.solve.assemble import assemble
from autopar.solve.balance import kinds_bound
from autopar.solve.heterogeneous import HeterogeneousPricer, assemble_kinds, heterogeneous_pricer
from autopar.solve.menus import Pricer
from autopar.solve.problem import Candidate, Configuration, Problem, Solution
from autopar.solve.search import solve
from autopar.solve.shardings import Shardings
from tests.zoo import reduced

BLOCKS = 6
FAST = Cluster.load("a100-80g")
SLOW = FAST.varied(name="slow", rates={"products": 0.3, "memory": 0.3, "network": 0.5})
# Without a reserve, which is many times what the model takes.
BARE = tuple(
    replace(kind, curves={name: c for name, c in kind.curves.items() if name != "reserve"})
    for kind in (FAST, SLOW)
)
GRAPH, CLASSES = reduced("gpt", BLOCKS)
NAMES = tuple(f"layer.{k}" for k in range(len(CLASSES.members)))
LIMIT = 80 * 10**9


def pricer_on(
    *kinds: Cluster, devices=(1, 1), limits=(LIMIT, LIMIT), **pins
) -> HeterogeneousPricer:
    each = (
        Pricer(Shardings(GRAPH, CLASSES, kind), "bf16", "adamw", {}, limit, NAMES)
        for kind, limit in zip(kinds, limits, strict=True)
    )
    return heterogeneous_pricer(each, devices).with_pins(pins)


def pipeline(schedule="1f1b", pp=2, **more) -> Configuration:
    return Configuration(pp, 1, 1, 256, 4 * pp, schedule, **more)


def solved(problem: Problem) -> Solution:
    return solve([Candidate(problem.configuration, 0.0, lambda: problem)], gap=1e-6)


def cut_at(problem: Problem, *starts: int) -> Problem:
    cuts = ((0,), *((start,) for start in starts))
    kinds = tuple(replace(own, cuts=cuts) for own in problem.kinds)
    return replace(problem, cuts=cuts, kinds=kinds)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
@pytest.mark.parametrize("kinds", [(FAST, SLOW), (SLOW, FAST)], ids=["fast first", "slow first"])
def test_no_other_division_of_the_layers_is_faster(schedule, kinds):
    own = pricer_on(*kinds)
    problem = own.problem(pipeline(schedule))
    free = solved(problem)
    every = [solved(cut_at(problem, k)) for k in range(1, len(NAMES))]
    assert free.objective_seconds == pytest.approx(min(s.objective_seconds for s in every))
    seconds = [assemble(own, NAMES, s)[2].step_seconds for s in every]
    assert assemble(own, NAMES, free)[2].step_seconds <= min(seconds) * (1 + 1e-6)
    layers = [free.boundaries[1], len(NAMES) - free.boundaries[1]]
    assert layers[kinds.index(FAST)] > layers[kinds.index(SLOW)]


def test_equal_kinds_are_one():
    config = pipeline()
    one = Pricer(Shardings(GRAPH, CLASSES, FAST), "bf16", "adamw", {}, LIMIT, NAMES)
    two = pricer_on(FAST, FAST)
    alone, both = solved(one.problem(config)), solved(two.problem(config))
    apart = two.p2p_seconds(config, 0) - one.p2p_seconds(config, 0)
    assert both.objective_seconds == pytest.approx(alone.objective_seconds + (2 + 7) * apart)
    assert both.boundaries == alone.boundaries
    assert two.candidate(config).lower_bound <= both.objective_seconds


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
def test_no_plan_undercuts_the_bounds(schedule):
    own = pricer_on(SLOW, FAST, devices=(2, 1))
    candidate = own.candidate(pipeline(schedule, pp=3))
    problem = candidate.build()
    best = solved(problem).objective_seconds
    assert 0.5 * best < candidate.lower_bound <= kinds_bound(problem) * (1 + 1e-12)
    assert kinds_bound(problem) <= best * (1 + 1e-9)


def test_a_stage_has_the_prices_of_its_kind():
    own, config = pricer_on(FAST, SLOW, devices=(2, 2)), pipeline(pp=4)
    stages, _, prediction = assemble(own, NAMES, solved(cut_at(own.problem(config), 1, 3, 5)))
    assert [len(s.layers) for s in stages] == [1, 2, 2, 3]
    fast, slow = (stages[k].prediction.forward_seconds for k in (1, 2))
    assert slow > 2 * fast
    near, far = (
        pricer_on(k, k, devices=(2, 2)).kinds[0].p2p_seconds(config, 0) for k in (FAST, SLOW)
    )
    between = own.p2p_seconds(config, 0)
    assert between >= max(near, far)
    sent = [s.prediction.p2p_seconds for s in stages]
    assert sent == pytest.approx([near, near + between, between + far, far])
    peak = 2 * (FAST.peak_flops("bf16") + SLOW.peak_flops("bf16"))
    whole = 3 * sum(own.cost(m, config).flops for m in CLASSES.members) * config.num_microbatches
    assert prediction.mfu == pytest.approx(whole / (peak * prediction.step_seconds))


def test_each_kind_keeps_to_its_own_memory():
    config = pipeline()
    found, _, _, _ = assembled(pricer_on(FAST, FAST), config)
    held = found[1].prediction.memory
    limits = (LIMIT, held.reserve + int(0.8 * held.live))
    stages, _, _, tight = assembled(pricer_on(FAST, FAST, limits=limits), config)
    assert [kind.memory_limit_bytes for kind in tight] == list(limits)
    assert all(kind.memory_bytes <= kind.memory_limit_bytes for kind in tight)
    assert [kind.stages for kind in tight] == [(0,), (1,)]
    assert [kind.memory_bytes for kind in tight] == [s.prediction.memory.total for s in stages]


def assembled(own: HeterogeneousPricer, config: Configuration):
    return assemble_kinds(own, NAMES, solved(own.problem(config)))


def test_says_which_kind_is_short_of_memory():
    own = pricer_on(FAST, SLOW, limits=(LIMIT, 10**6))
    with pytest.raises(InfeasiblePlanError) as caught:
        solved(own.problem(pipeline()))
    message = str(caught.value)
    assert "on every slow device" in message
    assert "stage 1 (rank 1 on slow, layers " in message
    assert "more per slow device" in message
    assert "memory_limit" not in message


def test_says_which_replicas_are_short_of_memory():
    """The slow ones have fewer samples but still less memory; figures are those of their device."""
    own = pricer_on(*BARE, limits=(LIMIT, 10**6))
    config = Configuration(1, 2, 1, 24, 1, "1f1b", shares=(24, 8))
    with pytest.raises(InfeasiblePlanError) as caught:
        solved(own.problem(config))
    message = str(caught.value)
    assert "on every slow device" in message
    assert "stage 0 (those of ranks 0-1 on slow, layers 0-7)" in message
    _, _, _, (_, slow) = assembled(pricer_on(*BARE, zero=0), config)
    needed = float(message.partition("needs ")[2].partition(" MiB")[0]) * 2**20
    assert 0.3 * slow.memory_bytes < needed < 1.05 * slow.memory_bytes


def test_even_stages_are_even_on_every_kind():
    own = replace(pricer_on(FAST, SLOW), equal_stages=True)
    assert solved(own.problem(pipeline())).boundaries == (0, 4)
