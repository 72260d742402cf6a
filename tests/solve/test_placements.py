"""Pinned placements: which parameters they name, what they leave, what a plan then has."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from autopar.errors import UsageError
from autopar.solve.placements import check_placements, find_demands
from benchmarks.bench_pinned import shared_work
from tests.test_planner import make
from tests.zoo import llama, reduced, tokens

NAMES = ("embedding", "transformer.h.0", "transformer.h.1", "head")
UP, DOWN = "*.mlp.c_fc.weight", "*.mlp.c_proj.weight"


def placements(plan):
    return {name: own for layer in plan.layers for name, (own,) in layer.placements.items()}


def test_layers_of_one_class_ask_for_different_things():
    graph, classes = reduced("gpt")
    assert find_demands(graph, classes, NAMES, {}).of(classes.members[1]) == ((),)
    pins = {"placement": {"transformer.h.0.mlp.c_fc.weight": "Shard(0)"}}
    found = find_demands(graph, classes, NAMES, pins)
    assert [len(demand) for demand in found.layers] == [0, 1, 0, 0]
    assert len(found.of(classes.members[1])) == 2


def test_tied_parameters_go_by_all_their_names_and_bind_all_parts():
    graph, classes = reduced("gpt")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        found = find_demands(graph, classes, NAMES, {"placement": {name: "Shard(1)"}})
        assert [len(demand) for demand in found.layers] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("pin", "word"),
    [
        ({UP: "Shard(2)"}, "Replicate\\(\\), Shard\\(0\\), Shard\\(1\\)"),
        ({UP: "column"}, "Shard\\(DIM\\) or Replicate"),
        ({UP: 0}, "Shard\\(DIM\\)"),
        ({"*.mlp.c_fc": "Shard(0)"}, "matches no parameter"),
        ({"*.ln_1.weight": "Shard(1)"}, "has 1 dim"),
    ],
)
def test_placements_that_are_none(pin, word):
    with pytest.raises(UsageError, match=word):
        check_placements(*reduced("gpt"), NAMES, {"placement": pin})


@pytest.mark.parametrize(
    "pin",
    [
        {UP: "Shard(0)"},
        {UP: "Shard(1)"},  # a row-parallel product, though Megatron's is column-parallel
        {UP: "Replicate()", DOWN: "Shard(1)"},
        {"lm_head.weight": "Shard(0)"},
        {"transformer.h.1.mlp.c_fc.weight": "Shard(0)", UP: "Replicate()"},
    ],
)
def test_plans_have_the_pinned_placements(pin):
    plan = make(pin={"tp": 2, "placement": pin})
    for name, own in placements(plan).items():
        names = (name, "lm_head.weight") if name == "transformer.wte.weight" else (name,)
        asked = [p for pattern, p in pin.items() if any(fnmatchcase(n, pattern) for n in names)]
        assert own in (asked or [own])[:1], name


@pytest.fixture
def one_trace():
    """Plans of one model share its trace."""
    with shared_work():
        yield


def test_every_placement_that_an_op_can_have_can_be_pinned_and_no_other(one_trace):
    """The error of one that cannot be names those that can."""
    model = llama()
    more = {"loss_fn": None, "example_target": None}
    refusals = 0
    for module, dims in {"q_proj": 2, "down_proj": 2, "input_layernorm": 1}.items():
        name = f"*.layers.1.*{module}.weight"
        legal, refused = [], []
        for placement in ("Replicate()", *(f"Shard({d})" for d in range(dims))):
            pin = {"tp": 2, "pp": 1, "placement": {name: placement}}
            try:
                plan = make(model, 2, example_inputs={"input_ids": tokens(), "labels": tokens()},
                            pin=pin, **more)  # fmt: skip
            except UsageError as error:
                refused.append(error.expected)
            else:
                found = {n: p for n, p in placements(plan).items() if fnmatchcase(n, name)}
                assert set(found.values()) == {placement}
                legal.append(placement)
        assert "Replicate()" in legal
        for expected in refused:
            assert expected.endswith(f"placement@{name} can be {' or '.join(legal)}")
        refusals += len(refused)
    assert refusals
