"""The configurations, and the pins that no plan could honour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.cost.schedule import check_schedule
from autopar.errors import UsageError
from autopar.solve.space import Task, check_pins, configurations, degrees, divisors

TASKS = st.builds(
    Task,
    world_size=st.sampled_from([1, 2, 6, 8, 24]),
    global_batch_size=st.sampled_from([1, 6, 16, 24]),
    blocks=st.integers(1, 8),
    heads=st.lists(st.sampled_from([2, 4, 6, 12]), max_size=2).map(tuple),
    pins=st.just({}),
)
LAYOUTS = ("replicate", "sequence", "open.1")


NAMES = ("embedding", *(f"h.{k}" for k in range(6)), "head")


def task(**pins):
    return Task(world_size=8, global_batch_size=16, blocks=6, heads=(4, 12), pins=pins)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TASKS)
def test_every_configuration_is_legal(task):
    found = list(configurations(task, LAYOUTS))
    assert len(set(found)) == len(found)
    for c in found:
        assert c.pp * c.dp * c.tp == task.world_size
        assert c.dp * c.microbatch_size * c.num_microbatches == task.global_batch_size
        assert c.pp <= task.blocks
        assert all(heads % c.tp == 0 for heads in task.heads)
        check_schedule(c.schedule, c.pp, c.num_microbatches, c.virtual_stages)
        assert c.schedule == "gpipe" or c.num_microbatches >= c.pp
        assert c.stages <= task.blocks or c.virtual_stages == 1
        assert (c.virtual_stages > 1) <= (c.schedule in ("interleaved_1f1b", "zero_bubble"))
        assert c.pp > 1 or c.schedule == "1f1b"
        assert c.layout in (LAYOUTS if c.tp > 1 else ("replicate",))


def test_divisors_are_all_of_them_in_order():
    for number in range(1, 400):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_divisors_of_a_large_batch_are_not_tried_one_by_one():
    assert divisors(2**44) == [2**k for k in range(45)]  # ends in this century


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TASKS)
def test_every_factorisation_is_there(task):
    expected = {
        (pp, task.world_size // pp // tp, tp)
        for pp in divisors(task.world_size)
        for tp in divisors(task.world_size // pp)
        if pp <= task.blocks
        and all(heads % tp == 0 for heads in task.heads)
        and task.global_batch_size % (task.world_size // pp // tp) == 0
    }
    assert set(degrees(task)) == expected


@pytest.mark.parametrize(
    ("pins", "named"),
    [
        ({"tp": 8}, "1, 2, 4"),  # heads of 4 and 12
        ({"tp": 3}, "1, 2, 4"),
        ({"pp": 8}, "1, 2, 4"),  # six blocks
        ({"dp": 3}, "1, 2, 4, 8"),
        ({"dp": 4, "microbatch_size": 3}, "1, 2, 4, 8, 16"),
        ({"num_microbatches": 3}, "1, 2, 4, 8, 16"),
        ({"schedule": "dualpipe"}, "gpipe, 1f1b, interleaved_1f1b, zero_bubble"),
        ({"virtual_stages": 4}, "1, 2, 3"),  # six blocks on two ranks at least
        ({"zero": 4}, "0, 1, 2, 3"),
        ({"recompute": "some"}, "none, selective, full"),
        ({"sequence_parallel": 1}, "False, True"),
        ({"tp": True}, "1, 2, 4"),
        ({"tp": "2"}, "1, 2, 4"),
    ],
)
def test_refused_pins_name_what_is_allowed(pins, named):
    with pytest.raises(UsageError) as caught:
        check_pins(task(**pins))
    error = caught.value
    name, value = list(pins.items())[-1]
    assert error.found == f"pin {name}={value!r}"
    assert error.expected.endswith(f": {named}")
    assert name in error.hint
    assert error.where == "pin"


def test_unknown_pin():
    with pytest.raises(UsageError, match="unknown pin 'tensor_parallel'") as caught:
        check_pins(task(tensor_parallel=2))
    assert "microbatch_size" in caught.value.expected


@pytest.mark.parametrize(
    ("pins", "involved", "rule"),
    [
        ({"pp": 4, "tp": 4, "zero": 2}, "pp=4 and tp=4", "pp * dp * tp = 8"),
        ({"pp": 2, "dp": 2, "tp": 4}, "pp=2 and dp=2 and tp=4", "pp * dp * tp = 8"),
        ({"pp": 1, "dp": 2, "tp": 2}, "pp=1 and dp=2 and tp=2", "pp * dp * tp = 8"),
        ({"dp": 4, "microbatch_size": 8}, "dp=4 and microbatch_size=8", "= 16"),
        ({"microbatch_size": 8, "num_microbatches": 4, "tp": 2},
         "microbatch_size=8 and num_microbatches=4", "dp * microbatch_size * num_microbatches"),
        ({"pp": 1, "virtual_stages": 2}, "pp=1 and virtual_stages=2", "pp * virtual_stages"),
        ({"schedule": "zero_bubble", "pp": 2, "zero": {"h.1": 3}},
         "schedule=zero_bubble and zero@h.1=3", "no zero=3"),
        ({"pp": 4, "stages": [3, 3]}, "pp=4 and stages=[3, 3]", "pp * virtual_stages"),
        ({"stage": {"h.3": 0, "h.2": 1}, "dp": 1}, "stage@h.3=0 and stage@h.2=1", "in the order"),
        ({"stages": [3, 3], "pp": 2, "stage": {"h.3": 0}}, "stages=[3, 3] and stage@h.3=0", ""),
        ({"pp": 2, "tp": 1, "stage": {"h.5": 3}}, "pp=2 and stage@h.5=3", "pp * virtual_stages"),
        ({"tp": 1, "placement": {"w": "Shard(0)"}}, "tp=1 and placement@w=Shard(0)", "tp = 1"),
        ({"stage": {"embedding": 2}}, "stage@embedding=2", "each with a layer"),
    ],
)  # fmt: skip
def test_contradictions_name_the_pins_that_are_involved_and_no_others(pins, involved, rule):
    with pytest.raises(UsageError) as caught:
        check_pins(replace(task(**pins), names=NAMES, parts=("embedding", "head")))
    assert caught.value.found.split(" contradict")[0].split(": no plan")[0] == involved
    assert rule in caught.value.expected


@pytest.mark.parametrize(
    "pins",
    [
        {"stages": [6], "pp": 2}, {"stages": [3, 2]}, {"stages": 3}, {"stages": [7, -1]},
        {"stage": 1}, {"stage": {"h.9": 0}}, {"stage": {"h.1": 8}}, {"placement": "Shard(0)"},
    ],
)  # fmt: skip
def test_pins_of_stages_are_checked_by_themselves(pins):
    with pytest.raises(UsageError):
        check_pins(replace(task(**pins), names=NAMES, parts=("embedding", "head")))


def test_a_pin_of_stages_decides_how_many_there_are():
    given = replace(task(stages=[1, 2, 2, 1]), names=NAMES, parts=("embedding", "head"))
    assert {c.stages for c in configurations(given, LAYOUTS)} == {4}
    two = replace(given, pins={"stages": [1, 2, 2, 1], "pp": 2})
    assert {(c.pp, c.virtual_stages) for c in configurations(two, LAYOUTS)} == {(2, 2)}


@pytest.mark.parametrize(
    "pins",
    [
        {},
        {"pp": 2},
        {"dp": 8},
        {"dp": 2, "tp": 4, "pp": 1},
        {"microbatch_size": 2, "dp": 4},
        {"schedule": "gpipe"},
        {"schedule": "zero_bubble"},
        {"schedule": "interleaved_1f1b", "pp": 2},
        {"virtual_stages": 3},
        {"sequence_parallel": True},
        {"zero": 3, "recompute": "full", "virtual_stages": 1},
    ],
)
def test_pins_are_honoured(pins):
    check_pins(task(**pins))
    found = list(configurations(task(**pins), LAYOUTS))
    assert found
    for configuration in found:
        names = {"pp", "dp", "tp", "microbatch_size", "schedule", "virtual_stages"}
        for name in pins.keys() & names:
            assert (name == "schedule" and configuration.pp == 1) or (
                getattr(configuration, name) == pins[name]
            )
        if "sequence_parallel" in pins and configuration.tp > 1:
            assert configuration.layout == "sequence"


def _schedules(pp: int, blocks: int, batch: int, interleaves: bool = True, **pins: Any) -> set[Any]:
    given = Task(pp, batch, blocks, (), {"pp": pp, "microbatch_size": 1, **pins})
    given = replace(given, interleaves=interleaves)
    return {(c.schedule, c.virtual_stages) for c in configurations(given, LAYOUTS)}


def test_all_schedules_are_considered_but_gpipe_where_1f1b_can_run():
    two = {("interleaved_1f1b", 2), ("zero_bubble", 2)}
    assert _schedules(2, 4, 8) == {("1f1b", 1), ("zero_bubble", 1), *two}
    assert _schedules(2, 4, 8, virtual_stages=1) == {("1f1b", 1), ("zero_bubble", 1)}
    assert _schedules(2, 4, 8, virtual_stages=2) == two
    assert _schedules(2, 4, 8, schedule="zero_bubble") == {("zero_bubble", 1), ("zero_bubble", 2)}


def test_stages_per_rank_divide_the_blocks_about_evenly():
    interleaved = {"schedule": "interleaved_1f1b"}
    assert _schedules(2, 5, 8, **interleaved) == set()  # 5 blocks on 4 stages: 2 against 1.25
    assert {v for _, v in _schedules(16, 126, 64, **interleaved)} == {2, 4}
    assert _schedules(2, 5, 8, virtual_stages=2, **interleaved) == {("interleaved_1f1b", 2)}


def test_micro_batches_that_pp_does_not_divide_leave_single_stages():
    assert _schedules(2, 4, 3) == {("1f1b", 1)}
    assert _schedules(4, 8, 3) == {("gpipe", 1)}
    assert _schedules(2, 4, 3, schedule="zero_bubble") == set()


def test_zero_bubble_is_not_offered_where_it_loses_gradients():
    assert _schedules(2, 4, 8, zero=3, virtual_stages=2) == {("interleaved_1f1b", 2)}
    assert _schedules(2, 4, 8, zero=3, schedule="zero_bubble") == set()
    assert _schedules(2, 4, 8, recompute="full", virtual_stages=2) == {("interleaved_1f1b", 2)}


def test_zero_bubble_is_not_offered_where_torch_cannot_split_backward():
    given = Task(2, 8, 4, (), {"pp": 2}, splits=False)
    assert "zero_bubble" not in {c.schedule for c in configurations(given, LAYOUTS)}


def test_shared_parameters_keep_ranks_to_one_stage():
    assert _schedules(2, 4, 8, False, schedule="zero_bubble") == {("zero_bubble", 1)}
    assert _schedules(2, 4, 8, False, schedule="interleaved_1f1b") == set()


@pytest.mark.parametrize("other", [{"recompute": "full"}, {"schedule": "zero_bubble"},
                                   {"recompute": {"model.layers.0": "selective"}}])  # fmt: skip
def test_activations_on_the_host_are_neither_computed_again_nor_used_twice(other):
    names = ("embedding", "model.layers.0", "model.layers.1", "head")
    for offload in ("activations", "all"):
        with pytest.raises(UsageError, match=f"offload={offload} and"):
            check_pins(replace(task(offload=offload, **other), names=names))
    check_pins(replace(task(offload="optimizer", **other), names=names))


def _shards(world_size=32, devices_per_node=8, **pins):
    """{(dp, tp): shard degrees} of pp = 1."""
    given = replace(task(pp=1, **pins), world_size=world_size, global_batch_size=64)
    found = configurations(replace(given, devices_per_node=devices_per_node), LAYOUTS)
    degrees = {}
    for c in found:
        degrees.setdefault((c.dp, c.tp), set()).add(c.dp_shard)
    return degrees


def test_state_is_also_divided_within_nodes_alone_where_dp_spans_some():
    assert _shards() == {(32, 1): {32, 8}, (16, 2): {16, 4}, (8, 4): {8, 2}}
    assert _shards(64)[64, 1] == {64, 8, 32}
    assert _shards(64, devices_per_node=2)[16, 4] == {16, 4}, "tp takes more than a node"
    assert _shards(8) == {(8, 1): {8}, (4, 2): {4}, (2, 4): {2}}
    assert _shards(devices_per_node=6, tp=1) == {(32, 1): {32, 2, 8}}
    assert _shards(devices_per_node=0, tp=1) == {(32, 1): {32}}


def test_pinned_shard_degrees_divide_dp():
    assert _shards(dp_shard=8) == {(32, 1): {8}, (16, 2): {8}, (8, 4): {8}}
    assert _shards(dp_shard=16) == {(32, 1): {16}, (16, 2): {16}}
    assert _shards(dp_shard=1, zero=0, tp=1) == {(32, 1): {1}}
    # Nothing is divided by zero 0, and all of a layer's state by the others.
    for shard, pins in (
        (2, {"zero": 0}), (1, {"zero": 2}), (8, {"dp": 2}), (2, {"zero": {"h.1": 0}}),
        (2, {"exchange": "ring"}),
    ):  # fmt: skip
        given = task(**{"dp": 8, "dp_shard": shard, **pins})
        given = replace(given, names=NAMES, parts=("embedding", "head"))
        with pytest.raises(UsageError, match=r"dp_shard=\d.* contradict each other"):
            check_pins(given)
    assert _shards(zero=0, tp=1) == {(32, 1): {32}}


def test_exchanges_of_their_own_are_between_replicas():
    for exchange in ("ring", "server"):
        asked = task(exchange=exchange)
        check_pins(asked)
        found = list(configurations(asked, LAYOUTS))
        assert {(c.pp, c.dp, c.tp, c.exchange) for c in found} == {(1, 8, 1, exchange)}
        with pytest.raises(UsageError, match=f"exchange={exchange}"):
            check_pins(task(exchange=exchange, tp=2))
        with pytest.raises(UsageError, match="zero=3"):
            check_pins(task(exchange=exchange, zero=3))
