"""Options of a small GPT under configurations: what they hold, cost, and leave out."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

from autopar.cluster import Cluster
from autopar.solve.menus import AIMS, LAYOUTS, Pricer, world_size
from autopar.solve.problem import Configuration
from tests.zoo import block_of, reduced

CLUSTER = Cluster.load("h100-80g")
BLOCK = block_of("gpt")
ALONE = Configuration(1, 1, 1, 2, 4, "1f1b")
DATA = Configuration(1, 4, 1, 2, 4, "1f1b")
TENSOR = Configuration(1, 1, 2, 2, 4, "1f1b", "sequence:leanest")
STAGES = Configuration(2, 2, 1, 2, 4, "1f1b")


def pricer(name="gpt", **pins):
    graph, classes = reduced(name)
    return Pricer(graph, classes, CLUSTER, "fp32", "adamw", pins, CLUSTER.memory_bytes)


@cache
def shared():
    return pricer()


def test_menu_has_every_mode_that_makes_a_difference():
    keys = [option.key for option in shared().menu(BLOCK, DATA)]
    assert keys == [f"{zero}/{mode}" for zero in (0, 2, 3) for mode in ("none", "full")]
    assert [o.key for o in shared().menu(BLOCK, ALONE)] == ["0/none", "0/full"]
    assert [o.key for o in shared().menu("head", DATA)] == ["0/none", "2/none", "3/none"]


def test_pins_leave_one_option():
    pinned = pricer(zero=3, recompute="full")
    assert [o.key for o in pinned.menu(BLOCK, DATA)] == ["3/full"]
    assert [o.key for o in pinned.menu("head", DATA)] == ["3/none"]


def test_recomputation_keeps_the_input_and_runs_forward_again():
    plain, again = shared().menu(BLOCK, ALONE)
    cost = shared().cost(BLOCK, ALONE)
    assert plain.activation_bytes == cost.saved_bytes
    assert again.activation_bytes == cost.input_bytes
    assert again.transient_bytes == plain.transient_bytes + cost.saved_bytes
    assert again.forward_seconds == plain.forward_seconds
    extra = again.backward_seconds - plain.backward_seconds
    assert extra == pytest.approx(cost.forward_seconds)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_zero_trades_state_for_time(mode):
    options = [o for o in shared().menu(BLOCK, DATA) if o.recompute == mode]
    states = [o.state_bytes for o in options]
    assert states == sorted(states, reverse=True)
    assert options[2].microbatch_seconds >= options[0].microbatch_seconds


def test_shared_embedding_is_held_once_on_one_rank():
    held = shared().cost("head", ALONE).parameter_elements
    table = shared().shared_elements(list(shared().shared()), ALONE)
    assert shared().layer("head", ALONE).parameter_elements == held - table
    assert shared().layer("head", STAGES).parameter_elements == held
    assert shared().layer("embedding", ALONE) == shared().cost("embedding", ALONE)
    assert pricer("llama").shared() == {}


def test_shared_embedding_is_summed_over_stages():
    assert shared().shared_seconds("head", ALONE) == 0
    assert shared().shared_seconds(BLOCK, STAGES) == 0
    assert (
        shared().shared_seconds("head", STAGES) == shared().shared_seconds("embedding", STAGES) > 0
    )


def test_transfers_between_stages():
    assert shared().p2p_seconds(ALONE) == 0
    one = shared().p2p_seconds(STAGES)
    far = shared().p2p_seconds(Configuration(2, 8, 1, 2, 4, "1f1b"))
    assert 0 < one < far, "eight ranks fill a node, so the next stage is on another"


def test_problem_of_a_configuration():
    problem = shared().problem(STAGES)
    assert problem.layers == (0, 1, 1, 2)
    assert len(problem.menus) == 3
    assert problem.linked == ((0, 3),)
    assert problem.p2p_seconds == shared().p2p_seconds(STAGES)
    assert problem.memory_limit_bytes == CLUSTER.memory_bytes


@pytest.mark.parametrize("config", [ALONE, DATA, TENSOR, STAGES], ids=str)
def test_bound_is_no_more_than_any_assignment(config):
    """With one option for all layers: the fill and drain of the slower stage counts once per m."""
    candidate = shared().candidate(config)
    problem = candidate.build()
    for number in range(min(len(menu) for menu in problem.menus)):
        options = [problem.menus[c][number] for c in problem.layers]
        cuts = [options] if config.pp == 1 else [options[:2], options[2:]]
        times = [
            sum(o.microbatch_seconds for o in stage) + problem.p2p_seconds * (config.pp > 1)
            for stage in cuts
        ]
        sync = max(sum(o.step_seconds for o in stage) for stage in cuts)
        total = sum(times) + (config.num_microbatches - 1) * max(times) + sync
        assert candidate.lower_bound <= total * (1 + 1e-9)


def test_layouts_are_kept_once():
    found = shared().layouts(2)
    assert set(found) <= set(LAYOUTS)
    kinds = {layout.partition(":")[0] for layout in found}
    assert kinds == {"replicate", "sequence"}
    assert shared().layouts(1) == ["replicate"]
    assert {layout.partition(":")[2] for layout in LAYOUTS} == AIMS.keys()


def test_tensor_parallel_halves_what_is_divided():
    whole, split = (shared().cost(BLOCK, config) for config in (ALONE, TENSOR))
    assert split.input_bytes * 2 == whole.input_bytes
    assert split.parameter_elements <= whole.parameter_elements
    assert shared().cost(BLOCK, TENSOR) == split, "priced once"
    assert world_size(dataclasses.replace(STAGES, tp=3)) == 12
