"""Options of a small GPT under configurations: what they hold, cost, and leave out."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import cache

import pytest

from autopar.cluster import Cluster
from autopar.cost.data_parallel import accumulation_seconds
from autopar.solve.menus import Pricer
from autopar.solve.price import problem_bound
from autopar.solve.problem import Configuration
from autopar.solve.shardings import AIMS, Shardings
from tests.zoo import block_of, reduced

CLUSTER = Cluster.load("h100-80g")
BLOCK = block_of("gpt")
ALONE = Configuration(1, 1, 1, 2, 4, "1f1b")
DATA = Configuration(1, 4, 1, 2, 4, "1f1b")
TENSOR = Configuration(1, 1, 2, 2, 4, "1f1b", "sequence")
STAGES = Configuration(2, 2, 1, 2, 4, "1f1b")


def pricer(name="gpt", blocks=2, **pins):
    graph, classes = reduced(name, blocks)
    shardings = Shardings(graph, classes, CLUSTER)
    return Pricer(shardings, "fp32", "adamw", pins, CLUSTER.memory_bytes)


@cache
def shared():
    return pricer()


def test_menu_has_every_mode_that_makes_a_difference():
    keys = [option.key for option in shared().menu(BLOCK, DATA)]
    assert keys == [
        f"{zero}/{mode}" for zero in (0, 2, 3) for mode in ("none", "selective", "full")
    ]
    assert [o.key for o in shared().menu(BLOCK, ALONE)] == ["0/none", "0/selective", "0/full"]
    assert [o.key for o in shared().menu("head", DATA)] == ["0/none", "2/none", "3/none"]
    assert [o.key for o in pricer(zero=1).menu("head", DATA)] == ["1/none"], "where a pin asks"


def test_pins_leave_one_option():
    pinned = pricer(zero=3, recompute="full")
    assert [o.key for o in pinned.menu(BLOCK, DATA)] == ["3/full"]
    assert [o.key for o in pinned.menu("head", DATA)] == ["3/none"]


def test_pinned_sharding_is_the_only_one():
    free = shared()
    for aim in AIMS:
        pinned = pricer(sharding=aim)
        (k,) = pinned.useful(BLOCK, TENSOR)
        offered = pinned.offered(BLOCK, TENSOR)
        assert aim in offered[k].aims
        assert sum(aim in each.aims for each in offered) == 1, "an aim has one sharding"
        assert pinned.useful(BLOCK, ALONE) == free.useful(BLOCK, ALONE), "nothing is divided"


def test_pinned_sharding_that_divides_nothing_makes_way_for_the_next():
    pinned = pricer(sharding="lean")
    key = (pinned.classes.home(BLOCK), TENSOR.tp, TENSOR.layout)
    offered = pinned.offered(BLOCK, TENSOR)[0]
    for left, taken in ((("fast", "smallest"), "smallest"), (("fast",), "fast")):
        known = tuple(replace(offered, aims=(aim,)) for aim in left)
        pinned.shardings._found[key] = known
        assert known[pinned.useful(BLOCK, TENSOR)[0]].aim == taken


@pytest.mark.parametrize("config", [ALONE, TENSOR, replace(TENSOR, pp=2, schedule="zero_bubble")])
def test_a_bound_prices_no_memory_and_is_below_every_option(config, monkeypatch):
    own = pricer()
    with monkeypatch.context() as closed:
        closed.setattr("autopar.solve.layer_prices.layer_cost", None)
        found = {member: own.least_seconds(member, None, config) for member in (BLOCK, "head")}
    for member, (seconds, crossing) in found.items():
        for k in range(len(own.offered(member, config))):
            cost, times = own.cost(member, config, k), own.times(member, config, k)
            assert all(getattr(cost, name) == value for name, value in vars(times).items())
        least = min(option.microbatch_seconds for option in own.menu(member, config))
        assert 0 < crossing <= seconds <= least


def test_recomputation_keeps_the_input_and_runs_forward_again():
    plain, part, again = shared().menu(BLOCK, ALONE)
    cost = shared().cost(BLOCK, ALONE)
    kept = [o.activation_bytes - o.reserve_bytes for o in (plain, part, again)]
    assert kept == [cost.saved_bytes, cost.input_bytes + cost.kept_bytes, cost.input_bytes]
    assert again.transient_bytes == plain.transient_bytes + cost.saved_bytes
    assert part.transient_bytes == plain.transient_bytes + cost.selective_bytes
    assert again.forward_seconds == plain.forward_seconds
    extra = again.backward_seconds - plain.backward_seconds
    assert extra == pytest.approx(cost.forward_seconds)
    assert again.activation_bytes < part.activation_bytes < plain.activation_bytes
    assert plain.backward_seconds < part.backward_seconds < again.backward_seconds


@pytest.mark.parametrize("mode", ["none", "full"])
def test_zero_trades_state_for_time(mode):
    options = [o for o in shared().menu(BLOCK, DATA) if o.recompute == mode]
    states = [o.state_bytes for o in options]
    assert states == sorted(states, reverse=True)
    assert options[2].microbatch_seconds >= options[0].microbatch_seconds


def test_shared_embedding_is_held_once_on_one_rank():
    held = shared().cost("head", ALONE).parameter_elements
    table = shared().shared_elements(list(shared().shared), ALONE, 0)
    assert shared().layer("head", ALONE, 0).parameter_elements == held - table
    assert shared().layer("head", STAGES, 0).parameter_elements == held
    assert shared().layer("embedding", ALONE, 0) == shared().cost("embedding", ALONE)
    assert pricer("llama").shared == {}


def test_shared_embedding_is_summed_over_stages():
    assert shared().shared_seconds("head", ALONE, 0) == 0
    assert shared().shared_seconds(BLOCK, STAGES, 0) == 0
    seconds = [shared().shared_seconds(part, STAGES, 0) for part in ("embedding", "head")]
    assert seconds[0] == seconds[1] > 0


def test_transfers_between_stages():
    assert shared().cut_seconds(ALONE) == ()
    one = shared().p2p_seconds(STAGES, 0)
    far = shared().p2p_seconds(Configuration(2, 8, 1, 2, 4, "1f1b"), 0)
    assert 0 < one < far, "eight ranks fill a node, so the next stage is on another"


def test_problem_of_a_configuration():
    problem = shared().problem(STAGES)
    assert problem.layers == (0, 1, 1, 2)
    assert len(problem.menus) == 3
    assert problem.linked == ((0, 3),)
    assert problem.cut_seconds[1:] == tuple(shared().p2p_seconds(STAGES, cut) for cut in range(3))
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
            sum(o.microbatch_seconds for o in stage) + sum(problem.cut_seconds[2:3])
            for stage in cuts
        ]
        sync = max(sum(o.step_seconds for o in stage) for stage in cuts)
        total = sum(times) + (config.num_microbatches - 1) * max(times) + sync
        assert candidate.lower_bound <= problem_bound(problem) <= total * (1 + 1e-9)


def test_no_useful_sharding_is_beaten_by_another():
    """The useful ones are those from which a menu is made, and all others are dearer."""
    for member in ("embedding", BLOCK):
        offered = range(len(shared().offered(member, TENSOR)))
        useful = shared().useful(member, TENSOR)
        assert useful
        assert {o.tp_option for o in shared().menu(member, TENSOR)} == set(useful)
        together = [BLOCK] if member == BLOCK else ["embedding", "head"]
        figures = [shared()._figures(together, TENSOR, k) for k in offered]
        for k in offered:
            rivals = [figures[r] for r in useful if r != k]
            beaten = any(all(x <= y for x, y in zip(f, figures[k], strict=True)) for f in rivals)
            assert beaten == (k not in useful)


def test_embedding_and_head_have_the_same_keys():
    keys = [[o.key for o in shared().menu(m, TENSOR)] for m in ("embedding", "head")]
    assert keys[0] == keys[1]
    assert all(key.count("/") == 2 for key in keys[0])


def test_tensor_parallel_halves_what_is_divided():
    whole, split = (shared().cost(BLOCK, config) for config in (ALONE, TENSOR))
    assert split.input_bytes * 2 == whole.input_bytes
    assert split.parameter_elements <= whole.parameter_elements
    assert shared().cost(BLOCK, TENSOR) == split, "priced once"
    assert dataclasses.replace(STAGES, tp=3).world_size == 12


SPLIT = Configuration(2, 2, 1, 1, 4, "zero_bubble", virtual_stages=2)


def test_a_split_backward_has_two_parts_and_holds_gradients_between_them():
    plain = shared().menu(BLOCK, dataclasses.replace(SPLIT, schedule="1f1b", virtual_stages=1))[0]
    split = shared().menu(BLOCK, SPLIT)
    cost = shared().cost(BLOCK, SPLIT)
    added = accumulation_seconds(shared().cluster, cost, shared().setting(SPLIT), 0)
    assert [o.key for o in split] == ["0/none", "2/none"]
    both = cost.input_seconds + cost.weight_seconds
    assert split[0].backward_seconds == pytest.approx(both + added)
    assert split[0].weight_seconds == pytest.approx(cost.weight_seconds)
    assert split[0].waiting_bytes == cost.waiting_bytes > 0
    assert (plain.weight_seconds, plain.waiting_bytes) == (0, 0)
    assert plain.backward_seconds <= split[0].backward_seconds


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
def test_stages_of_a_rank_begin_near_an_even_cut_and_take_turns(schedule):
    own = pricer("gpt", blocks=6)
    given = own.problem(dataclasses.replace(SPLIT, schedule=schedule))
    blocks = [i for i, m in enumerate(own.classes.members) if m not in own.classes.parts]
    assert given.cuts[0] == (0,)
    assert len(given.cuts) == 4
    for stage, cuts in enumerate(given.cuts[1:], start=1):
        assert cuts
        assert all(abs(blocks.index(i) - len(blocks) * stage / 4) <= 1 for i in cuts)
    assert given.fold.is_cut_by([0, *(blocks[k] for k in (1, 3, 5))])
    single = own.problem(dataclasses.replace(SPLIT, schedule="1f1b", virtual_stages=1))
    assert (single.cuts, single.turns) == ((), ())


def test_multi_stage_schedules_hold_what_they_sent():
    single = dataclasses.replace(SPLIT, schedule="1f1b", virtual_stages=1)
    one, two = (shared().buffer_bytes(c, [0], first=False) for c in (single, SPLIT))
    assert two == 2 * one > 0
    # each of two ranks is on three sides of the four stages' boundaries
    inputs = shared().buffer_bytes(SPLIT, [])
    assert shared().buffer_bytes(SPLIT) == inputs + 3 * two


@pytest.mark.parametrize(
    ("schedule", "pp", "m", "kept"),
    [
        # by stage: results until their backward, and gradients returned: the last one, or all
        ("1f1b", 2, 4, [2, 1]),
        ("1f1b", 2, 2, [2, 1]),
        ("1f1b", 4, 4, [4, 3 + 1, 2 + 1, 1]),
        ("gpipe", 2, 4, [4, 3]),
        ("gpipe", 4, 1, [1, 1, 1, 0]),
        ("gpipe", 3, 4, [4, 4 + 3, 3]),
        ("interleaved_1f1b", 2, 4, [0, 0]),
        ("1f1b", 1, 4, [0]),
    ],
)
def test_stages_keep_what_they_sent_for_a_while(schedule, pp, m, kept):
    own = pricer("gpt", blocks=4)
    config = dataclasses.replace(STAGES, schedule=schedule, pp=pp, num_microbatches=m)
    size = own.crossing_bytes(config)[1]
    found = [own.kept_bytes(config, s, (1, 1)) for s in range(pp)]
    assert found == [size * number for number in kept]
    assert config.most_kept == max(kept)
    widest = own.crossing_bytes(config)[own.widest_cut(config)]
    without = replace(config, schedule="interleaved_1f1b")
    if schedule == "1f1b" and pp == 2:  # the same buffers, but that all of what was sent is kept
        more = own.buffer_bytes(config) - own.buffer_bytes(without)
        assert more == widest * (max(kept) - m)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zero_bubble"])
def test_no_option_undercuts_the_bound_of_its_configuration(schedule):
    v = 1 if schedule == "1f1b" else 2
    config = dataclasses.replace(SPLIT, schedule=schedule, virtual_stages=v)
    candidate = pricer("gpt", blocks=4).candidate(config)
    assert 0 < candidate.lower_bound <= problem_bound(candidate.build()) * (1 + 1e-12)


def test_schedules_share_menus_where_layers_cannot_tell_them_apart():
    own, built = pricer("gpt", blocks=8), {}
    each = {"1f1b": [1], "gpipe": [1], "interleaved_1f1b": [2, 4], "zero_bubble": [1, 2, 4]}
    for schedule, v in ((name, v) for name, numbers in each.items() for v in numbers):
        config = dataclasses.replace(SPLIT, schedule=schedule, virtual_stages=v)
        built[schedule, v] = own.problem(config).menus
        members = dict.fromkeys(own.classes.members)
        assert built[schedule, v] == tuple(own.menu(member, config) for member in members)
    assert built["gpipe", 1] is built["1f1b", 1] is built["interleaved_1f1b", 2]
    assert built["zero_bubble", 1] is built["zero_bubble", 2]
    assert built["zero_bubble", 1] != built["1f1b", 1]
    assert own.with_pins({"zero": 2}).problem(config).menus != built[schedule, v]


def test_tied_ends_may_be_on_different_ranks():
    assert shared().interleaves
