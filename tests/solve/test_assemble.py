"""From an assignment to the figures of a plan."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from autopar.cluster import Cluster
from autopar.cost.reserve import fixed_bytes
from autopar.solve.assemble import assemble
from autopar.solve.menus import Pricer
from autopar.solve.price import objective_seconds, problem_bound, rank_memory_bytes
from autopar.solve.problem import Configuration, Solution
from autopar.solve.shardings import Shardings
from autopar.strategies.patterns import find_classes, reduce
from autopar.trace import trace
from tests.zoo import reduced, traced

CLUSTER = Cluster.load("h100-80g")
NAMES = tuple(layer.name for layer in traced("gpt").layers)
M = 4


def assembled(config, key="0/none", ends="0/none"):
    """The plan in which all blocks take the first option whose key begins with ``key``."""
    own = pricer_of(config, key, ends)
    problem, parts = own.problem(config), own.classes.parts
    keys = [ends if m in parts else key for m in own.classes.members]
    options = tuple(
        next(o for o in problem.menus[c] if f"{o.key}/".startswith(f"{wanted}/"))
        for c, wanted in zip(problem.layers, keys, strict=True)
    )
    boundaries = (0,) if config.pp == 1 else (0, 2)
    solution = Solution(problem, boundaries, options, 1.0, 1.0, 0.0, "optimal", 0.1, {}, "HiGHS")
    return (*assemble(own, NAMES, solution), options)


def pricer_of(config, key, ends):
    """Prices under pins where nothing but a pin has the zero modes of ``key`` and ``ends``."""
    graph, classes = reduced("gpt")
    blocks = [n for n, m in zip(NAMES, classes.members, strict=True) if m not in classes.parts]
    modes = {**dict.fromkeys(blocks, int(key[0])), "*": int(ends[0])}
    pins = {"zero": modes} if config.pp > 1 and 3 in modes.values() else {}
    shardings = Shardings(graph, classes, CLUSTER)
    return Pricer(shardings, "fp32", "adamw", pins, CLUSTER.memory_bytes, names=NAMES)


def config(pp=1, dp=1, tp=1, layout="replicate"):
    return Configuration(pp, dp, tp, 2, M, "1f1b", layout)


CASES = {
    "alone": (config(), "0/none", "0/none"),
    "recomputed": (config(), "0/full", "0/none"),
    "data": (config(dp=2), "3/none", "2/none"),
    "tensor": (config(tp=2, layout="sequence"), "0/full", "0/none"),
    "all": (config(2, 2, 2, "replicate"), "2/full", "2/none"),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_options(name):
    chosen, key, ends = CASES[name]
    stages, _, prediction, options = assembled(chosen, key, ends)
    groups = [options] if chosen.pp == 1 else [options[:2], options[2:]]
    for number, (stage, group) in enumerate(zip(stages, groups, strict=True)):
        memory = stage.prediction.memory
        state = memory.parameters + memory.gradients + memory.optimizer
        assert state == sum(o.state_bytes for o in group)
        flight = chosen.in_flight(number)
        beside = flight * sum(o.reserve_bytes for o in group)
        assert memory.activations + beside == flight * sum(o.activation_bytes for o in group)
        assert memory.reserve == fixed_bytes(CLUSTER, chosen.communicators) + beside
        assert memory.transient == max(o.transient_bytes for o in group)
    assert prediction.memory_bytes == max(s.prediction.memory.total for s in stages)


def test_a_layer_alone_on_its_stage_fetches_no_other():
    """Blocks are gathered again, ends are not: on two stages each of two blocks is alone."""
    for pp in (1, 2):
        stages, _, _, options = assembled(config(pp, 2), "3/none", "2/none")
        split = [options] if pp == 1 else [options[:2], options[2:]]
        for stage, group in zip(stages, split, strict=True):
            chosen = "transient_bytes" if pp == 1 else "alone_bytes"
            assert stage.prediction.memory.transient == max(getattr(o, chosen) for o in group)
    block = options[1]
    assert block.zero == 3
    assert 0 < block.alone_bytes < block.transient_bytes
    ends = options[0]
    assert ends.alone_bytes == ends.transient_bytes


def test_ends_and_a_block_fetch_each_other():
    stages, _, _, options = assembled(config(2, 2), "3/none", "3/none")
    for stage, group in zip(stages, (options[:2], options[2:]), strict=True):
        assert stage.prediction.memory.transient == max(o.transient_bytes for o in group)


def test_the_search_counts_no_less_than_the_plan():
    for pp, key in ((1, "3/none"), (2, "3/none"), (2, "0/full")):
        ends = "2/none" if key[0] == "3" else "0/none"
        _, _, prediction, options = assembled(config(pp, 2), key, ends)
        own = pricer_of(config(pp, 2), key, ends)
        cuts = (0,) if pp == 1 else (0, 2)
        counted = rank_memory_bytes(own.problem(config(pp, 2)), cuts, options)
        assert prediction.memory_bytes <= max(counted)


@pytest.mark.parametrize("name", CASES)
def test_seconds_are_those_of_the_options(name):
    chosen, key, ends = CASES[name]
    stages, _, prediction, options = assembled(chosen, key, ends)
    found = sum(
        s.prediction.forward_seconds + s.prediction.backward_seconds + s.prediction.tp_comm_seconds
        for s in stages
    )
    # Options are priced for the first stage, which gathers most often.
    assert found <= sum(o.microbatch_seconds for o in options) * (1 + 1e-9)
    assert sum(prediction.breakdown.values()) == pytest.approx(prediction.step_seconds)
    assert min(prediction.breakdown.values()) >= 0
    if chosen.pp == 1:
        exact = M * found + sum(o.step_seconds for o in options)
        assert prediction.step_seconds == pytest.approx(exact)
        assert prediction.breakdown["bubble"] == pytest.approx(0, abs=1e-12)


def test_collectives_of_one_rank():
    """Those of each layer in every micro-batch; those of a recomputed forward come again."""
    chosen, key, ends = CASES["tensor"]
    stages, _, _, _ = assembled(chosen, key, ends)
    expected: Counter[str] = Counter()
    graph, classes = reduced("gpt")
    pricer = Pricer(Shardings(graph, classes, CLUSTER), "fp32", "adamw", {}, CLUSTER.memory_bytes)
    partial = False
    for member in classes.members:
        cost = pricer.cost(member, chosen)
        again = Counter() if member in classes.parts else cost.tp_again
        for kind, number in (cost.tp_forward + cost.tp_backward + again).items():
            expected[kind] += M * number
        partial |= cost.partial_elements > 0
    expected["all_reduce"] += partial + 1  # gradients of partial parameters; the loss
    assert stages[0].prediction.collectives == dict(expected)
    assert assembled(*CASES["alone"])[0][0].prediction.collectives == {}


def test_transfers_and_gradient_reductions():
    stages, _, prediction, _ = assembled(config(2, 2), "0/none", "0/none")
    for stage in stages:
        counts = stage.prediction.collectives
        assert counts["send"] == counts["recv"] == M
        # One per block and end, one for the shared embedding, one for the loss.
        assert counts["all_reduce"] == 2 + 1 + 1
    assert prediction.collectives["send"] == 2 * M


def test_placements_are_named_as_the_layer():
    _, layers, _, _ = assembled(config(tp=2))
    assert [layer.name for layer in layers] == list(NAMES)
    for layer in layers[1:3]:
        assert all(name.startswith(f"{layer.name}.") for name in layer.placements)
    assert layers[1].placements.keys() != layers[2].placements.keys()
    first, second = (
        {name.removeprefix(f"{layer.name}."): placed for name, placed in layer.placements.items()}
        for layer in layers[1:3]
    )
    assert first == second


def test_options_of_layers_are_kept():
    _, layers, _, _ = assembled(*CASES["all"])
    assert [layer.recompute for layer in layers] == ["none", "full", "full", "none"]
    assert {layer.zero for layer in layers} == {2}
    assert [layer.stage for layer in layers] == [0, 0, 1, 1]
    assert dataclasses.fields(layers[0])


def funnel():
    """Layers of different widths: every cut is crossed by other bytes."""
    widths = 2**16, 2**20, 2**14, 2**18, 4
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
        x, target = torch.zeros(2, widths[0]), torch.zeros(2, widths[-1])
    graph = trace(model, (x,), {}, target=target, loss_fn=nn.MSELoss())
    graph, classes = reduce(graph, find_classes(graph))
    return Pricer(Shardings(graph, classes, CLUSTER), "fp32", "adamw", {}, CLUSTER.memory_bytes)


def test_a_boundary_costs_what_crosses_it_in_search_and_plan():
    pricer, chosen = funnel(), config(pp=2)
    problem = pricer.problem(chosen)
    assert len(set(problem.cut_seconds[1:])) == len(problem.layers) - 1
    options = tuple(problem.menus[c][0] for c in problem.layers)
    names = tuple(map(str, range(len(problem.layers))))
    bounds = pricer.candidate(chosen).lower_bound, problem_bound(problem)
    for start in range(1, len(names)):
        plan = (0, start), options
        solution = Solution(problem, *plan, 1.0, 1.0, 0.0, "optimal", 0.1, {}, "HiGHS")
        stages, *_ = assemble(pricer, names, solution)
        cut = pricer.p2p_seconds(chosen, start - 1)
        assert [s.prediction.p2p_seconds for s in stages] == [cut, cut]
        assert [problem.transfer_seconds((0, start), s) for s in range(2)] == [cut, cut]
        assert stages[0].prediction.passes.transfer_seconds == cut
        assert bounds[0] <= bounds[1] <= objective_seconds(problem, *plan)


def test_actions_occupy_ranks_and_the_wire_does_not():
    cpu = Cluster.load("cpu")
    curves = cpu.curves | {"overheads": {"pipeline_action": {"seconds": 1.0}}}
    slow = dataclasses.replace(cpu, curves=curves)
    graph, classes = reduced("gpt")

    def passes(cluster, schedule):
        own = Pricer(Shardings(graph, classes, cluster), "fp32", "adamw", {}, cluster.memory_bytes)
        problem = own.problem(dataclasses.replace(config(pp=2), schedule=schedule))
        options = tuple(problem.menus[c][0] for c in problem.layers)
        solution = Solution(problem, (0, 2), options, 1.0, 1.0, 0.0, "optimal", 0.1, {}, "HiGHS")
        return [stage.prediction for stage in assemble(own, NAMES, solution)[0]]

    without = dataclasses.replace(cpu, curves=cpu.curves | {"overheads": {}})
    for schedule, backward in (("1f1b", 1), ("zero_bubble", 2)):
        for now, before in zip(passes(slow, schedule), passes(without, schedule), strict=True):
            new, old = now.passes, before.passes
            assert new.forward_seconds - old.forward_seconds == pytest.approx(1)
            assert new.backward_seconds - old.backward_seconds == pytest.approx(backward)
            assert new.weight_seconds - old.weight_seconds == pytest.approx(backward - 1)
            assert new.transfer_seconds == old.transfer_seconds
            assert now.p2p_seconds - before.p2p_seconds == pytest.approx(1 + backward)


def test_gradients_made_apart_cost_more_for_every_module():
    cpu = Cluster.load("cpu")
    curves = cpu.curves | {"overheads": {"split_module": {"seconds": 1.0}}}
    slow = dataclasses.replace(cpu, curves=curves)
    graph, classes = reduced("gpt")
    own = Pricer(Shardings(graph, classes, slow), "fp32", "adamw", {}, slow.memory_bytes)
    for schedule in ("1f1b", "zero_bubble"):
        chosen = dataclasses.replace(config(pp=2), schedule=schedule)
        block = own.problem(chosen).menus[1][0]
        # Two norms, two products of attention, two of the MLP; the weight and bias of each are one.
        assert (block.weight_seconds > 6) == (block.backward_seconds > 6) == chosen.splits_backward
        assert block.weight_seconds < 7
