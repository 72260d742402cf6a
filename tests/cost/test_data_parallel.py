"""What data parallelism adds to a layer, by ZeRO mode."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from copy import deepcopy

import pytest

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.compute import elementwise_seconds, optimizer_seconds
from autopar.cost.data_parallel import (
    Setting,
    Traffic,
    _scheduled_gathers,
    backward_bytes,
    count_gathers,
    dp_cost,
    dp_group,
    gathers,
    reductions,
    replica_group,
    shard_group,
    state_bytes,
)
from autopar.cost.layer import layer_cost, replicated
from autopar.cost.schedule import actions
from tests.zoo import block_of, reduced

CLUSTER = Cluster.load("h100-80g")
M = 8


def setting(pp=1, dp=4, tp=1, m=M, schedule="1f1b", precision="bf16", optimizer="adamw"):
    return Setting(pp, dp, tp, m, schedule, precision, optimizer)


@pytest.fixture(scope="module")
def cost():
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    found = layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, 1)
    return dataclasses.replace(found, parameter_elements=1000)


def test_state_of_plain_fp32(cost):
    held = state_bytes(cost, setting(dp=1, precision="fp32"), 0)
    assert (held.parameters, held.gradients, held.optimizer) == (4000, 4000, 8000)
    assert held.total == 16000


@pytest.mark.parametrize(("zero", "share"), [(0, 1), (1, 4), (2, 4), (3, 4)])
def test_state_is_divided_by_the_shard_degree(cost, zero, share):
    """Master copy, optimizer state: 4 n / s and 8 n / s; the compute copy in bf16 is 2 n."""
    held = state_bytes(cost, setting(m=1), zero)
    compute = 2000 if zero < 3 else 0
    assert held.parameters == 4000 // share + compute
    assert held.optimizer == 8000 // share
    assert held.gradients == 4000 // share
    assert held.transient > 0


def test_zero_3_holds_least_and_gathers_most(cost):
    totals = [state_bytes(cost, setting(), zero).total for zero in range(4)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4
    assert [gathers(setting(), zero, 0) for zero in range(4)] == [0, 1, 1, 2 * M]
    assert [reductions(setting(), zero) for zero in range(4)] == [1, 1, M, M]


def test_zero_1_keeps_whole_gradients_until_they_are_reduced_once(cost):
    one, two = (state_bytes(cost, setting(), zero) for zero in (1, 2))
    assert (one.gradients, two.gradients) == (4000, 1000)
    assert (one.parameters, one.optimizer) == (two.parameters, two.optimizer)
    once, often = (dp_cost(CLUSTER, cost, setting(), zero, 0) for zero in (1, 2))
    assert once.collectives == {"all_gather": 1, "reduce_scatter": 1}
    assert often.collectives == {"all_gather": 1, "reduce_scatter": M}
    assert once.backward_seconds < often.backward_seconds
    assert once.sync_seconds > often.sync_seconds


@pytest.mark.parametrize("other", [setting(m=1), setting(pp=2)])
def test_zero_1_is_zero_2_where_gradients_are_reduced_once(cost, other):
    assert state_bytes(cost, other, 1) == state_bytes(cost, other, 2)
    assert dp_cost(CLUSTER, cost, other, 1, 0) == dp_cost(CLUSTER, cost, other, 2, 0)


@pytest.mark.parametrize(("zero", "pp", "m", "waiting"), [
    (0, 1, 1, False), (0, 1, M, True), (1, 1, M, True), (2, 1, M, False), (3, 1, M, False),
    (2, 2, 1, True), (3, 2, M, True),
])  # fmt: skip
def test_gradients_wait_for_the_last_micro_batch(cost, zero, pp, m, waiting):
    """Whole ones where they wait, which the reduced ones then replace."""
    held = state_bytes(cost, setting(pp=pp, m=m), zero)
    assert held.gradients == (4000 if waiting or zero == 0 else 1000)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_pipelines_reduce_behind_their_passes(cost, zero):
    alone, staged = (state_bytes(cost, setting(pp=pp), zero) for pp in (1, 2))
    assert alone.behind == 0
    assert staged.behind == 4000 + (1000 if zero else 4000)
    assert staged.transient < alone.transient


@pytest.mark.parametrize(("activations", "more"), [(0, 400), (150, 250), (4000, 0)])
def test_partial_gradients_travel_in_a_copy_behind_the_passes(cost, activations, more):
    some = dataclasses.replace(cost, partial_elements=100)
    for parallel in (setting(dp=1, tp=2, precision="fp32"), setting(tp=2)):
        held = [state_bytes(each, parallel, 0, activations).gradients for each in (some, cost)]
        assert held[0] - held[1] == more


@pytest.mark.parametrize(("pp", "dp", "m", "precision", "wanted"), [
    (1, 1, 1, "fp32", 10), (1, 1, M, "fp32", 70), (2, 1, M, "fp32", 70), (2, 4, M, "fp32", 70),
    # fully_shard's own buffers are larger
    (1, 4, M, "fp32", 10), (1, 4, M, "bf16", 10),
    # in bf16 a whole layer's wait for their sum in float32
    (2, 4, M, "bf16", 2010),
])  # fmt: skip
def test_gradients_of_parameters_are_new_beside_their_sum(cost, pp, dp, m, precision, wanted):
    some = dataclasses.replace(cost, transient_bytes=10, summed_bytes=70)
    assert backward_bytes(some, setting(pp=pp, dp=dp, m=m, precision=precision)) == wanted


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", 12])
def test_optimizer_bytes(cost, optimizer):
    expected = {"sgd": 0, "adamw": 8, 12: 12}[optimizer]
    assert state_bytes(cost, setting(optimizer=optimizer), 0).optimizer == 1000 * expected


def test_nothing_is_gathered_or_reduced_alone(cost):
    alone = dp_cost(CLUSTER, cost, setting(dp=1), 0, 0)
    assert alone.collectives == Counter()
    assert alone.forward_seconds == alone.backward_seconds == alone.sync_seconds == 0
    assert alone.optimizer_seconds > 0


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_collectives_are_counted(cost, zero):
    found = dp_cost(CLUSTER, cost, setting(), zero, 0).collectives
    kind = "reduce_scatter" if zero else "all_reduce"
    assert +found == +Counter({"all_gather": gathers(setting(), zero, 0),
                               kind: reductions(setting(), zero)})  # fmt: skip


def test_sharding_divides_the_work_of_the_optimizer(cost):
    big = dataclasses.replace(cost, parameter_elements=10**9)
    whole, shared = (dp_cost(CLUSTER, big, setting(), zero, 0).optimizer_seconds for zero in (0, 3))
    assert shared == pytest.approx(whole / 4, rel=0.05)


@pytest.mark.parametrize(("zero", "pp", "precision", "copied", "added", "share"), [
    (0, 1, "fp32", 0, 12, 1), (2, 2, "fp32", 0, 12, 1), (0, 1, "bf16", 6, 10, 1),
    (2, 2, "bf16", 6, 10, 1), (2, 1, "bf16", 0, 12, 4), (3, 1, "fp32", 0, 12, 4),
])  # fmt: skip
def test_gradients_of_micro_batches_are_added_up(cost, zero, pp, precision, copied, added, share):
    """Of the 8 micro-batches the first is at most copied; reduced gradients are shards."""
    big = dataclasses.replace(cost, parameter_elements=10**9, parameter_tensors=1)
    given = setting(pp=pp, precision=precision)
    found = dp_cost(CLUSTER, big, given, zero, 0).accumulation_seconds
    first, later = (elementwise_seconds(CLUSTER, each * 10**9 // share) for each in (copied, added))
    assert M * found == pytest.approx(first + (M - 1) * later)
    once = dp_cost(CLUSTER, big, dataclasses.replace(given, num_microbatches=1, pp=1), zero, 0)
    assert once.accumulation_seconds == 0


def test_clipping_moves_every_gradient_three_times(cost):
    big = dataclasses.replace(cost, parameter_elements=10**9, parameter_tensors=0)
    found = dp_cost(CLUSTER, big, setting(), 0, 0).optimizer_seconds
    update = optimizer_seconds(CLUSTER, 10**9, "adamw", 0)
    assert found - update == pytest.approx(elementwise_seconds(CLUSTER, 12 * 10**9))


def test_communication_hides_behind_compute(cost):
    """Ample compute hides a gather; without any it is exposed."""
    slow = dataclasses.replace(cost, forward_seconds=10.0, backward_seconds=10.0)
    fast = dataclasses.replace(cost, forward_seconds=0.0, backward_seconds=0.0)
    perfect = with_curve(overlap={"slowdown": 0.0})
    hidden, exposed = (dp_cost(perfect, c, setting(), 3, 0) for c in (slow, fast))
    assert hidden.forward_seconds == hidden.backward_seconds == 0
    assert exposed.forward_seconds > 0
    assert exposed.backward_seconds > 0


def gathered(schedule, pp, stage, m):
    """Gathers of zero 3 by playing the actions: freed behind a forward, kept behind a backward."""
    held, count = False, 0
    for action in actions(schedule, pp, m)[stage]:
        count += not held
        held = action.kind == "B"
    return count


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("pp", "m"), [(2, 1), (2, 8), (4, 2), (4, 9)])
def test_pipeline_gathers_follow_the_schedule(schedule, pp, m):
    given = setting(pp=pp, dp=2, m=m, schedule=schedule)
    for stage in range(pp):
        assert count_gathers(given, stage) == gathered(schedule, pp, stage, m)
    assert reductions(given, 3) == 1


@pytest.mark.parametrize(
    ("dp", "tp", "expected"), [(4, 2, (4, 4, 1)), (8, 8, (8, 1, 8)), (16, 1, (16, 8, 1))]
)
def test_dp_groups_fill_what_tp_leaves_of_a_node(dp, tp, expected):
    assert dataclasses.astuple(dp_group(CLUSTER, setting(dp=dp, tp=tp))) == expected


def hybrid(replicas=4, **more):
    """State divided among the 8 ranks of a node, and ``replicas`` nodes."""
    return dataclasses.replace(setting(dp=8 * replicas, **more), replicas=replicas)


def test_shards_are_neighbours_and_replicas_a_node_apart():
    parts = shard_group, replica_group

    def groups(given):
        return [dataclasses.astuple(of(CLUSTER, given)) for of in parts]

    assert groups(hybrid()) == [(8, 8, 1), (4, 1, 8)]
    assert groups(hybrid(tp=2)) == [(8, 4, 2), (4, 1, 8)]
    two = dataclasses.replace(setting(dp=16), replicas=8)
    assert groups(two) == [(2, 2, 1), (8, 4, 2)], "several replicas in a node"
    six = dataclasses.replace(setting(dp=12), replicas=2)
    assert groups(six)[0] == (6, 2, 1), "the second group begins with two ranks of the first node"


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(("pp", "m"), [(1, 1), (1, M), (2, M)])
def test_replicas_hold_what_fewer_ranks_would_and_all_reduce_it_once(cost, zero, pp, m):
    some = dataclasses.replace(cost, partial_elements=80)
    alone, more = setting(pp=pp, dp=8, m=m), hybrid(pp=pp, m=m)
    assert state_bytes(some, more, zero) == state_bytes(some, alone, zero)
    once = dp_cost(CLUSTER, some, alone, zero, 0).collectives
    assert dp_cost(CLUSTER, some, more, zero, 0).collectives == once + Counter(all_reduce=1)
    frozen = dataclasses.replace(some, frozen_elements=1000)
    assert dp_cost(CLUSTER, frozen, more, zero, 0).collectives["all_reduce"] == 0


def test_shards_are_added_over_the_replicas_behind_the_last_micro_batch(cost):
    """Exposed: what 8 ranks of one node take, and an eighth of the gradients over 4 nodes."""
    large = dataclasses.replace(
        cost, parameter_elements=10**9, backward_seconds=0.0, forward_seconds=0.0
    )
    across = collective_seconds(CLUSTER, "all_reduce", 4 * 10**9 // 8, Group(4, 1, 8))
    for zero in (1, 2, 3):
        alone, more = (dp_cost(CLUSTER, large, s, zero, 0) for s in (setting(dp=8), hybrid()))
        assert more.forward_seconds == alone.forward_seconds
        assert more.backward_seconds == pytest.approx(alone.backward_seconds)
        assert more.sync_seconds - alone.sync_seconds == pytest.approx(across)
        assert more.optimizer_seconds == alone.optimizer_seconds


def test_backward_hides_what_is_added_over_the_replicas(cost):
    large = dataclasses.replace(cost, parameter_elements=10**9, backward_seconds=10.0)
    perfect = with_curve(overlap={"slowdown": 0.0})
    assert dp_cost(perfect, large, hybrid(), 3, 0).sync_seconds == 0
    reduce = collective_seconds(CLUSTER, "reduce_scatter", 4 * 10**9, Group(8, 8))
    across = collective_seconds(CLUSTER, "all_reduce", 4 * 10**9 // 8, Group(4, 1, 8))
    half = dataclasses.replace(large, backward_seconds=reduce + across / 2)
    more, alone = (dp_cost(perfect, half, s, 2, 0).sync_seconds for s in (hybrid(), setting(dp=8)))
    assert more - alone == pytest.approx(across / 2)


def with_curve(**curves):
    data = deepcopy(CLUSTER.to_dict())
    data["curves"].update(curves)
    return Cluster.from_dict(data)


def test_overlap_slows_both_down(cost):
    """The shorter of computing and communication shows by the slow-down's share."""
    free, half = with_curve(overlap={"slowdown": 0.0}), with_curve(overlap={"slowdown": 0.5})
    wire = collective_seconds(CLUSTER, "reduce_scatter", 4 * 1000, dp_group(CLUSTER, setting()))
    slow = dataclasses.replace(cost, backward_seconds=10 * wire)
    assert dp_cost(free, slow, setting(), 2, 0).backward_seconds == 0
    assert dp_cost(half, slow, setting(), 2, 0).backward_seconds == pytest.approx(wire / 2)
    fast = dataclasses.replace(cost, backward_seconds=wire / 4)
    assert dp_cost(half, fast, setting(), 2, 0).backward_seconds == pytest.approx(wire * 7 / 8)


def test_recomputation_hides_communication_too(cost):
    wire = collective_seconds(CLUSTER, "reduce_scatter", 4 * 1000, dp_group(CLUSTER, setting()))
    none, perfect = (
        dataclasses.replace(cost, backward_seconds=0.0),
        with_curve(overlap={"slowdown": 0.0}),
    )
    assert dp_cost(perfect, none, setting(), 2, 0).backward_seconds == pytest.approx(wire)
    assert dp_cost(perfect, none, setting(), 2, 0, again_seconds=wire).backward_seconds == 0


def test_traffic_of_other_systems(cost):
    """One exposed reduction of half the bytes per step, and a gather of twice the bytes."""
    large = dataclasses.replace(cost, parameter_elements=10**9, backward_seconds=1e9)
    late = Traffic(gather_bytes=4, reduce_bytes=2, every_microbatch=False, overlapped=False)
    other = dataclasses.replace(setting(), traffic=late)
    assert reductions(other, 2) == 1
    group = dp_group(CLUSTER, other)
    wire = collective_seconds(CLUSTER, "reduce_scatter", 2 * 10**9, group)
    wire += collective_seconds(CLUSTER, "all_gather", 4 * 10**9, group)
    assert dp_cost(CLUSTER, large, other, 2, 0).sync_seconds == pytest.approx(wire)


@pytest.mark.parametrize("v", [2, 3])
def test_up_to_three_stages_per_rank_are_gathered_as_one(v):
    deep = dataclasses.replace(setting(pp=2, dp=2, schedule="interleaved_1f1b"), virtual_stages=v)
    for stage in range(2 * v):
        scheduled = (deep.schedule, 2, M, v)
        assert _scheduled_gathers(*scheduled, 2, stage) == gathers(deep, 2, stage) == 1
        assert _scheduled_gathers(*scheduled, 3, stage) == gathers(deep, 3, stage) == M + 1


def test_more_stages_per_rank_are_gathered_by_turns():
    deep = dataclasses.replace(setting(pp=2, dp=2, schedule="interleaved_1f1b"), virtual_stages=4)
    kept = [gathers(deep, 2, stage) for stage in range(8)]
    freed = [gathers(deep, 3, stage) for stage in range(8)]
    assert max(kept) > 1
    assert min(kept) >= 1
    # freed behind every forward, which the schedule's own gathers only add to
    assert min(freed) >= M + 1


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
@pytest.mark.parametrize(("pp", "v"), [(2, 4), (3, 6), (5, 5)])
def test_gathers_of_many_rounds_go_on_like_those_of_a_few(schedule, pp, v):
    for m in (pp, 3 * pp, 9 * pp, 10 * pp):
        deep = dataclasses.replace(setting(pp=pp, dp=2, m=m, schedule=schedule), virtual_stages=v)
        for zero, stage in itertools.product((2, 3), (0, pp, 2 * pp + 1, pp * v - 1)):
            listed = _scheduled_gathers(schedule, pp, m, v, zero, stage)
            assert gathers(deep, zero, stage) == listed, (m, zero, stage)


def test_pipeline_stages_keep_what_backward_gathered(cost):
    alone, staged = (state_bytes(cost, setting(pp=pp, m=1), 3).parameters for pp in (1, 2))
    assert staged == alone + 2000


def test_overheads_of_the_runtime_are_paid_per_unit_gather_and_parameter(cost):
    names = ("shard_gather", "shard_reduce", "shard_forward", "clip_parameter", "shard_parameter")
    curves = deepcopy(CLUSTER.curves) | {"overheads": {n: {"seconds": 1e-2} for n in names}}
    slow = dataclasses.replace(CLUSTER, curves=curves)
    for zero, passes, ends in ((0, 1, 1), (3, 4, 0)):
        plain, paid = (dp_cost(c, cost, setting(), zero, 0) for c in (CLUSTER, slow))
        forward = paid.forward_seconds + paid.backward_seconds
        forward -= plain.forward_seconds + plain.backward_seconds
        assert forward == pytest.approx(1e-2 * passes, rel=0.1)
        assert paid.sync_seconds - plain.sync_seconds == pytest.approx(1e-2 * ends, rel=0.1)
        step = paid.optimizer_seconds - plain.optimizer_seconds
        assert step == pytest.approx(2e-2 * cost.parameter_tensors)


@pytest.mark.parametrize("zero", range(4))
def test_what_is_frozen_has_no_gradient_no_state_and_no_reduction(cost, zero):
    half, whole = (dataclasses.replace(cost, frozen_elements=n) for n in (500, 1000))
    assert (
        state_bytes(half, setting(), zero).optimizer
        == state_bytes(cost, setting(), zero).optimizer // 2
    )
    held = state_bytes(whole, setting(), zero)
    assert (held.gradients, held.optimizer) == (0, 0)
    assert held.parameters == state_bytes(cost, setting(), zero).parameters
    found = dp_cost(CLUSTER, dataclasses.replace(whole, learns=False), setting(), zero, 0)
    assert +found.collectives == +Counter(all_gather=(0, 1, 1, M)[zero])


def synced(cost, **facts):
    """Sync seconds of a zero 1 layer on 32 ranks of 4 nodes whose traffic has these facts."""
    late = Traffic(every_microbatch=False, overlapped=False, **facts)
    own = dataclasses.replace(setting(dp=32), traffic=late)
    return dp_cost(CLUSTER, dataclasses.replace(cost, partial_elements=0), own, 2, 0)


def test_buckets_spread_the_latency_of_a_collective(cost):
    """A layer that is a thousandth of its bucket takes a thousandth of the bucket's time."""
    group = Group(32, 8)
    found = synced(cost, bucket_bytes=4_000_000).sync_seconds
    share = {"all_gather": 2000 / 4e6, "reduce_scatter": 4000 / 4e6}
    expected = [
        part * collective_seconds(CLUSTER, k, 4_000_000, group) for k, part in share.items()
    ]
    assert found == pytest.approx(sum(expected))
    assert found < synced(cost).sync_seconds / 10


def test_all_reduced_gradients_are_told_from_scattered_ones(cost):
    large = dataclasses.replace(cost, parameter_elements=100_000_000)
    reduced, scattered = (synced(large, all_reduced=a) for a in (True, False))
    assert reduced.collectives == {"all_gather": 1, "all_reduce": 1}
    assert scattered.collectives == {"all_gather": 1, "reduce_scatter": 1}
    assert reduced.sync_seconds > scattered.sync_seconds


def test_unpacking_issues_a_copy_per_tensor_and_rank(cost):
    more = synced(cost, unpacked=True).sync_seconds - synced(cost).sync_seconds
    assert more == pytest.approx(32 * cost.parameter_tensors * CLUSTER.dispatch_seconds())


def test_whole_gradients_are_clipped_by_all_ranks(cost):
    """16 bytes of every gradient instead of 12 of a 32nd of them."""
    large = dataclasses.replace(cost, parameter_elements=320_000_000)
    more = synced(large, whole_bytes=16).optimizer_seconds - synced(large).optimizer_seconds
    moved = (16 * 320_000_000, 12 * 10_000_000)
    whole, shard = (elementwise_seconds(CLUSTER, size) for size in moved)
    assert more == pytest.approx(whole - shard)


def test_state_divided_within_a_node_is_gathered_there(cost):
    """Fewer shards: a gather without the network, and a larger share to update."""
    large = dataclasses.replace(cost, parameter_elements=320_000_000)
    inside, everywhere = (synced(large, shards=n) for n in (8, None))
    group, across = Group(8, 8), Group(32, 8)
    saved = [collective_seconds(CLUSTER, "all_gather", 640_000_000, g) for g in (across, group)]
    assert everywhere.sync_seconds - inside.sync_seconds == pytest.approx(saved[0] - saved[1])
    assert inside.optimizer_seconds > 3 * everywhere.optimizer_seconds
    assert synced(large, shards=64) == everywhere
