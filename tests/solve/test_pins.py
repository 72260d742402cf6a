"""Pins of single layers."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autopar
from autopar.cli_arguments import pin, pins
from autopar.errors import InfeasiblePlanError, UsageError
from autopar.solve.pins import Entry, check_layer_pins, conflict, entries, joined, pin_of, plain
from benchmarks.bench_pinned import shared_work
from tests.zoo import llama, tokens

NAMES = ("embedding", "h.0", "h.1", "h.2", "head")
PARTS = ("embedding", "head")
ALLOWED = {"zero": (0, 1, 2, 3), "recompute": ("none", "selective", "full")}


def test_the_first_pattern_that_matches_holds():
    value = {"h.0": "full", "h.?": "none"}
    assert [pin_of(value, name) for name in NAMES] == [None, "full", "none", "none", None]
    assert pin_of("full", "h.7") == "full"
    assert pin_of(None, "h.7") is None


def test_what_is_possible_passes():
    check_layer_pins({"zero": {"*": 3}, "recompute": {"h.*": "full"}}, NAMES, PARTS, ALLOWED)
    check_layer_pins({"recompute": {"*": "full"}, "tp": 2}, NAMES, PARTS, ALLOWED)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recompute": {"h.7": "full"}}, ("recompute@h.7", "matches no layer")),
        ({"recompute": {"h.0": "some"}}, ("recompute@h.0", "selective")),
        ({"zero": {"h.0": True}}, ("zero@h.0", "0, 1, 2, 3")),
        ({"zero": {"embedding": 0, "head": 3}}, ("zero@embedding=0 and zero@head=3",)),
        ({"recompute": {"head": "full"}}, ("recompute@head", "only blocks")),
    ],
)
def test_contradictions_name_the_pins(given, words):
    with pytest.raises(UsageError) as caught:
        check_layer_pins(given, NAMES, PARTS, ALLOWED)
    for word in words:
        assert word in str(caught.value)


def test_command_line():
    assert pins([("tp", 4), ("recompute@h.0", "full"), ("recompute@h.1", "none")]) == {
        "tp": 4, "recompute": {"h.0": "full", "h.1": "none"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="zero"):
        pins([("zero", 3), ("zero@h.0", 2)])


def test_command_line_of_stages_and_placements():
    texts = [
        "stages=13,13,6",
        "stage@h.7=1",
        "placement@*.up.weight=Shard(0)",
        "num_microbatches=4",
    ]
    assert pins([pin(text) for text in texts]) == {
        "stages": [13, 13, 6], "stage": {"h.7": 1}, "placement": {"*.up.weight": "Shard(0)"},
        "num_microbatches": 4,
    }  # fmt: skip
    assert pin("stages=[4]") == ("stages", [4])


def test_pins_become_plain_data():
    from torch.distributed.tensor import Replicate, Shard

    given = {"stages": (1, 2), "placement": {"a": Shard(1), "b": Replicate()}, "tp": 2}
    found = {"stages": [1, 2], "placement": {"a": "Shard(1)", "b": "Replicate()"}, "tp": 2}
    assert plain(given) == found
    assert joined(list(entries(found))) == found


def test_a_conflict_is_one_without_any_one_of_its_pins():
    given = {"a": 1, "b": {"x": 1, "y": 0}, "c": 1, "d": 0}

    def possible(pins):
        """At most two ones."""
        return sum(entry.value for entry in entries(pins)) < 3

    assert [str(entry) for entry in conflict(given, possible)] == ["a=1", "b@x=1", "c=1"]


# ---- any subset of what a plan has decided


def decided(plan):
    """All that could have been pinned to get this plan, one by one."""
    config = {"pp": plan.mesh.pp, "dp": plan.mesh.dp, "tp": plan.mesh.tp}
    config["dp_shard"] = plan.mesh.dp_shard
    config |= {key: getattr(plan, key) for key in CONFIGURED}
    blocks = [sum(n.startswith("model.layers") for n in stage.layers) for stage in plan.stages]
    found = [Entry(key, "", value) for key, value in (config | {"stages": blocks}).items()]
    for layer in plan.layers:
        found += [Entry(kind, layer.name, getattr(layer, kind)) for kind in BY_LAYER]
        found += [Entry("placement", name, own) for name, (own,) in layer.placements.items()]
    return found


CONFIGURED = ("microbatch_size", "num_microbatches", "schedule", "virtual_stages")
BY_LAYER = ("stage", "zero", "recompute")


@pytest.fixture(scope="module")
def planned():
    """A function that plans with pins, and a plan in which layers differ; one trace for all."""
    model, inputs = llama(4), {"input_ids": tokens(), "labels": tokens()}

    def plan(pin, **more):
        return autopar.plan(model, 4, inputs, cluster="h100-80g", global_batch_size=16, pin=pin,
                            precision="fp32", gap=GAP, **more)  # fmt: skip

    with shared_work():
        start = {"pp": 2, "tp": 2, "microbatch_size": 4, "schedule": "1f1b"}
        whole = plan(start)
        most = max(map(whole.rank_memory, range(2)), key=lambda memory: memory.total)
        for share in (0.7, 0.6, 0.5, 0.45, 0.4):
            within = partial(plan, memory_limit=most.reserve + int(share * most.live))
            known = within(start)
            if differs(known):
                break
        yield within, known, within({})


def differs(plan):
    return len({(layer.zero, layer.recompute) for layer in plan.layers[1:-1]}) > 1


GAP = 0.001


def test_the_plan_to_pin_has_layers_that_differ(planned):
    _, known, _ = planned
    assert differs(known)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_subset_of_a_plan_is_obeyed_and_completed_no_better_than_without(planned, data):
    plan, known, free = planned
    all_of_it = decided(known)
    share = data.draw(st.sampled_from([0.03, 0.1, 0.3, 1.0]))
    chosen = [e for e in all_of_it if data.draw(st.floats(0, 1)) <= share]
    found = plan(joined(chosen))
    assert set(map(str, chosen)) <= set(map(str, decided(found)))
    assert found.solver.objective <= known.solver.objective * (1 + GAP)
    if not any(entry.kind == "placement" for entry in chosen):  # these may leave the free space
        assert found.solver.objective >= free.solver.bound * (1 - 1e-9)


def test_all_of_a_plan_reproduces_it(planned):
    plan, known, _ = planned
    found = plan(joined(decided(known)))
    assert decided(found) == decided(known)
    assert (found.stages, found.prediction) == (known.stages, known.prediction)


@pytest.mark.parametrize(
    "changed",
    [{"dp": 2}, {"num_microbatches": 8}, {"schedule": "zero_bubble"}, {"stages": [1, 3]}],
)
def test_what_contradicts_the_rest_of_a_plan_is_named(planned, changed):
    """The pins that are named have no plan together, and have one without any one of them."""
    plan, known, _ = planned
    pins = joined(decided(known)) | changed
    with pytest.raises(UsageError, match="contradict each other") as caught:
        plan(pins)
    named = caught.value.found.removesuffix(" contradict each other").split(" and ")
    assert str(*entries(changed)) in named
    involved = [entry for entry in entries(pins) if str(entry) in named]
    assert len(involved) == len(named) < 5
    with pytest.raises(UsageError, match="contradict each other"):
        plan(joined(involved))
    for entry in involved:
        with contextlib.suppress(InfeasiblePlanError):
            plan(joined([other for other in involved if other is not entry]))
