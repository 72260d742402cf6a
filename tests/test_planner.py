"""Planning a small GPT from end to end: what a plan says fits together, and what is refused."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

import autopar
from autopar import planner
from autopar.cluster import Cluster
from autopar.errors import InfeasiblePlanError, UsageError
from autopar.plan import Plan
from autopar.show.trace import memory_over_time, plan_timeline
from examples.gpt import loss_fn
from tests.zoo import gpt, llama, tokens

PINS = {
    "free": {},
    "tensor": {"tp": 2, "pp": 1, "dp": 2, "sequence_parallel": True, "microbatch_size": 1},
    "stages": {"pp": 2, "tp": 1, "microbatch_size": 1, "schedule": "1f1b", "zero": 3},
    "recompute": {"pp": 2, "tp": 2, "recompute": "full", "schedule": "gpipe"},
}


def make(model=None, world_size=4, **more):
    arguments = {
        "example_inputs": (tokens(),), "loss_fn": loss_fn, "example_target": tokens(),
        "cluster": "h100-80g", "global_batch_size": 16, "precision": "fp32", **more,
    }  # fmt: skip
    return autopar.plan(model or gpt(), world_size, **arguments)


@pytest.fixture(scope="module")
def plans():
    return {name: make(pin=pins) for name, pins in PINS.items()}


@pytest.mark.parametrize("name", PINS)
def test_pins_are_honoured(plans, name):
    plan = plans[name]
    for key, value in PINS[name].items():
        if key in ("pp", "dp", "tp"):
            assert getattr(plan.mesh, key) == value
        elif key in ("microbatch_size", "schedule"):
            assert getattr(plan, key) == value
        elif key == "zero":
            assert {layer.zero for layer in plan.layers} == {value}
        elif key == "recompute":
            assert {layer.recompute for layer in plan.layers[1:-1]} == {value}
    assert plan.pins == PINS[name]


@pytest.mark.parametrize("name", PINS)
def test_the_timeline_is_the_one_that_the_step_was_predicted_from(plans, name):
    plan = plans[name]
    ranks = [plan.stages[rank :: plan.mesh.pp] for rank in range(plan.mesh.pp)]
    behind = [
        sum(s.prediction.sync_seconds + s.prediction.optimizer_seconds for s in r) for r in ranks
    ]
    timeline = plan_timeline(plan)
    step = timeline.makespan + max(behind)
    assert step == pytest.approx(plan.prediction.step_seconds, rel=1e-12)
    for rank in range(plan.mesh.pp):
        peak = max(held.total for _, held in memory_over_time(plan, timeline, rank))
        assert peak == plan.rank_memory(rank).total


@pytest.mark.parametrize("name", PINS)
def test_degrees_multiply(plans, name):
    plan = plans[name]
    assert plan.mesh.pp * plan.mesh.dp * plan.mesh.tp == plan.world_size == 4
    assert plan.mesh.dp * plan.microbatch_size * plan.num_microbatches == 16
    assert len(plan.stages) == plan.mesh.pp


@pytest.mark.parametrize("name", PINS)
def test_stages_hold_every_layer_in_order(plans, name):
    plan = plans[name]
    names = [n for stage in plan.stages for n in stage.layers]
    assert names == [layer.name for layer in plan.layers]
    assert names == ["embedding", "transformer.h.0", "transformer.h.1", "head"]
    stages = [layer.stage for layer in plan.layers]
    assert stages == sorted(stages)


@pytest.mark.parametrize("name", PINS)
def test_figures_add_up(plans, name):
    plan, prediction = plans[name], plans[name].prediction
    assert sum(prediction.breakdown.values()) == pytest.approx(prediction.step_seconds)
    assert min(prediction.breakdown.values()) >= 0
    assert prediction.samples_per_second == pytest.approx(16 / prediction.step_seconds)
    each = [stage.prediction for stage in plan.stages]
    assert prediction.memory_bytes == max(p.memory.total for p in each)
    assert prediction.memory_bytes <= plan.memory_limit_bytes
    kinds = {kind for p in each for kind in p.collectives}
    assert prediction.collectives == {
        kind: sum(p.collectives.get(kind, 0) for p in each) for kind in sorted(kinds)
    }
    assert 0 < prediction.mfu < 1


@pytest.mark.parametrize("name", PINS)
def test_every_parameter_has_a_placement(plans, name):
    plan = plans[name]
    placed = {key for layer in plan.layers for key in layer.placements}
    assert placed == {key for key, _, _ in plan.parameters}
    split = {p for layer in plan.layers for (p,) in layer.placements.values()}
    assert split == {"Replicate()"} or plan.mesh.tp > 1


def test_collectives_of_the_pinned_plans(plans):
    """Eight micro-batches on each of two dp ranks; each layer's gradients are reduced once."""
    stages = plans["stages"].prediction.collectives
    m = plans["stages"].num_microbatches
    assert stages["send"] == stages["recv"] == 2 * m
    assert stages["reduce_scatter"] == 4
    assert plans["free"].solver.candidates["considered"] > 1


def test_plans_survive_their_file(plans, tmp_path):
    for name, plan in plans.items():
        path = tmp_path / f"{name}.json"
        plan.save(path)
        assert autopar.load_plan(path) == plan
        assert json.loads(path.read_text(encoding="utf-8"))


def test_equal_requests_give_equal_decisions(plans):
    again = make(pin=PINS["tensor"])
    for field in ("mesh", "layers", "stages", "prediction", "program", "parameters"):
        assert getattr(again, field) == getattr(plans["tensor"], field), field


def test_meta_models_are_planned_and_not_changed():
    with torch.device("meta"):
        model = gpt()
    before = {key: id(p) for key, p in model.named_parameters()}
    plan = make(model, pin={"tp": 1, "pp": 1})
    assert isinstance(plan, Plan)
    assert before == {key: id(p) for key, p in model.named_parameters()}
    assert model.lm_head.weight is model.transformer["wte"].weight


def test_default_batch_is_that_of_the_example_per_device():
    model = llama()
    inputs = {"input_ids": tokens(), "labels": tokens()}
    plan = make(model, 2, example_inputs=inputs, loss_fn=None, example_target=None,
                global_batch_size=None, pin={"tp": 2})  # fmt: skip
    assert plan.global_batch_size == 4
    assert plan.model == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"world_size": 0}, "world_size"),
        ({"world_size": 2.0}, "world_size"),
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"precision": "fp8"}, "precision"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"pin": {"tp": 3}}, "pin"),
        ({"pin": {"tensor": 2}}, "pin"),
        ({"example_inputs": None}, "example_inputs"),
    ],
)
def test_refused_arguments(arguments, where):
    with pytest.raises(UsageError) as caught:
        make(**arguments)
    assert caught.value.where == where
    assert caught.value.expected


def test_no_legal_factorisation():
    with pytest.raises(UsageError) as caught:
        make(world_size=7, global_batch_size=16)
    assert "7 devices" in caught.value.found
    assert "heads [4]" in caught.value.expected


def test_nothing_fits():
    with pytest.raises(InfeasiblePlanError) as caught:
        make(memory_limit=10_000, pin={"tp": 1})
    assert caught.value.hint


def test_every_plan_that_was_simulated_is_counted(plans):
    """The plan, the runners-up, and the baselines that keep to the pins."""
    simulated = [plan.solver.simulated for plan in plans.values()]
    assert all(n > len(plan.runners_up) for n, plan in zip(simulated, plans.values(), strict=True))


def test_bound_is_no_more_than_the_objective(plans):
    for plan in plans.values():
        report = plan.solver
        assert 0 < report.bound <= report.objective * (1 + 1e-9)
        assert report.gap == pytest.approx(1 - report.bound / report.objective, abs=1e-9)
        assert report.gap <= 0.01
        # The closed form charges every transfer to both stages, the simulation once.
        assert plan.prediction.step_seconds <= report.objective * (1 + 1e-6)


def test_runners_up_are_slower_and_of_another_kind(plans):
    plan = plans["free"]
    meshes = [(r.mesh, r.schedule, r.virtual_stages) for r in plan.runners_up]
    assert meshes
    assert (plan.mesh, plan.schedule, plan.virtual_stages) not in meshes
    for runner in plan.runners_up:
        assert runner.step_seconds >= plan.prediction.step_seconds
        assert runner.memory_bytes <= plan.memory_limit_bytes
        assert re.fullmatch(r".* s more \w+|equally fast", runner.reason)
        assert runner.mesh.pp * runner.mesh.dp * runner.mesh.tp == 4


@pytest.mark.parametrize("name", PINS)
def test_no_baseline_that_honours_the_pins_is_faster_than_the_plan(plans, name):
    plan = plans[name]
    ran = [b for b in plan.baselines if b.step_seconds is not None]
    honest = [b.step_seconds for b in ran if not b.reason]
    assert min(honest, default=math.inf) >= plan.prediction.step_seconds * (1 - 1e-9)
    assert ran
    for base in ran:
        assert not base.reason or any(f"{k}={v}" in base.reason for k, v in PINS[name].items())


def test_a_baseline_that_honours_the_pins_and_is_faster_is_the_plan(monkeypatch):
    """The search is made to miss what the recipes find: it gets micro-batches of 1 alone."""
    real, searches = planner.solve, []

    def solve(candidates, **more):
        if "runners" in more:  # the search, not a baseline
            listed = [c for group in candidates for c in group.expand()]
            candidates = [c for c in listed if c.configuration.microbatch_size == 1]
            searches.append(candidates)
        return real(candidates, **more)

    monkeypatch.setattr(planner, "solve", solve)
    plan = make(pin={"pp": 2})
    assert searches
    assert plan.microbatch_size > 1
    honest = [b.step_seconds for b in plan.baselines if b.step_seconds and not b.reason]
    assert min(honest) == pytest.approx(plan.prediction.step_seconds)


def test_the_even_pipeline_is_a_baseline(plans):
    (even,) = [b for b in plans["free"].baselines if b.name == "Even pipeline"]
    assert even.step_seconds is not None
    assert "pp=2 dp=2 tp=1" in even.description


def test_stages_that_are_pinned_unevenly_have_an_even_baseline_that_breaks_the_pin():
    plan = make(gpt(4), world_size=2, pin={"pp": 2, "tp": 1, "stages": [3, 1]})
    assert [sum(".h." in name for name in stage.layers) for stage in plan.stages] == [3, 1]
    (even,) = [b for b in plan.baselines if b.name == "Even pipeline"]
    assert even.step_seconds is not None
    assert even.reason


def test_single_layers_are_pinned():
    pin = {"pp": 1, "recompute": {"transformer.h.0": "full"}, "zero": {"*.h.1": 3}}
    layers = {layer.name: layer for layer in make(pin=pin).layers}
    assert layers["transformer.h.0"].recompute == "full"
    assert layers["transformer.h.1"].zero == 3
    assert layers["transformer.h.1"].recompute == "none", "left to the solver, and cheaper"
    with pytest.raises(UsageError, match="matches no layer"):
        make(pin={"recompute": {"transformer.h.9": "full"}})


def test_the_time_limit_covers_the_trace():
    """Little is left of it, so a plan is found and said to be unproven, or to be optimal."""
    plan = make(time_limit=0.01)
    assert plan.solver.status in ("optimal", "time limit")
    assert plan.solver.seconds < 20


class Unknown(torch.nn.Module):
    """A product behind an op that has no rule and mixes all of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x):
        return self.second(torch.special.log_ndtr(torch.trace(self.first(x)) + x))


def test_ops_that_cannot_be_divided_are_named_with_their_cost():
    inputs, target = (torch.zeros(2, 16),), torch.zeros(2, 16)
    loss = torch.nn.functional.mse_loss
    plans = [
        autopar.plan(Unknown(), tp, inputs, loss_fn=loss, example_target=target, cluster="cpu",
                     precision="fp32", pin={"tp": tp})
        for tp in (1, 2)
    ]  # fmt: skip
    mixing, note = plans[1].notes
    assert len(plans[0].notes) == 1  # there is nothing to divide over
    assert "trace at (test_planner.py:" in mixing
    assert note.startswith("no way to divide aten.trace.default was found")
    assert note.endswith("ms per micro-batch")


def test_groups_beyond_the_measured_ones_are_named():
    """The curves of h100-80g cover 8 devices of a node and 2 nodes."""
    small = make(pin={"pp": 1, "tp": 1, "dp": 4})
    assert not any("extrapolated" in note for note in small.notes)
    large = make(world_size=64, global_batch_size=64, pin={"pp": 1, "tp": 1, "dp": 64})
    (note,) = [note for note in large.notes if "extrapolated" in note]
    assert "dp groups of 64 on 8 node(s)" in note


def test_plans_carry_the_errors_of_their_cost_model():
    assert make().cluster.step_error["points"] > 0
    assert make(cluster="h200-141g").cluster.step_error == {}


def nodes_of(node, tmp_path):
    """An H100 machine with another number of devices per node."""
    path = tmp_path / "variant.json"
    path.write_text(json.dumps({
        "schema_version": 1, "extends": "h100-80g", "name": f"nodes-of-{node}", "source": "vendor",
        "created": "2026-11-29", "description": "other nodes", "detail": "other nodes",
        "devices_per_node": node,
    }))  # fmt: skip
    return Cluster.load(str(path))


@pytest.fixture
def no_baselines(monkeypatch):
    """Half of the time of a plan that is small."""
    monkeypatch.setattr(planner, "run_baselines", lambda *_, **__: ())


@pytest.mark.parametrize(
    ("devices", "node", "pin"), [(12, 8, {"pp": 3, "tp": 2}), (24, 6, {"dp": 3, "tp": 4})]
)
def test_degrees_that_are_no_powers_of_two(tmp_path, no_baselines, devices, node, pin):
    plan = make(gpt(3), devices, cluster=nodes_of(node, tmp_path), global_batch_size=48, pin=pin)
    mesh = plan.mesh
    assert mesh.pp * mesh.dp * mesh.tp == devices
    assert mesh.dp * plan.microbatch_size * plan.num_microbatches == 48
    assert pin.items() <= {"pp": mesh.pp, "dp": mesh.dp, "tp": mesh.tp}.items()
    assert plan.solver.status == "optimal"


def test_more_stages_than_powers_of_two(no_baselines):
    """105 layers on 35 stages, as Megatron-Turing NLG 530B had them."""
    plan = make(gpt(105), 35, global_batch_size=70, pin={"pp": 35, "recompute": "none"})
    blocks = [sum(".h." in name for name in stage.layers) for stage in plan.stages]
    assert sum(blocks) == 105
    assert max(blocks) == 3
    assert plan.solver.status == "optimal"
