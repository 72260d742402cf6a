"""The op-level optimisation: what it finds, that it is optimal, and that it computes the same."""

from __future__ import annotations

import pytest
import torch

from autopar.cluster import Cluster
from autopar.solve.intra import LAYOUTS, Sharder, Weights, shard_pattern
from autopar.solve.opmodel import op_model
from autopar.solve.opprices import prices
from autopar.solve.program import solver_of
from autopar.strategies.patterns import ENDS
from autopar.strategies.states import CONSTANT_MOVES, MOVES, R, V
from tests.solve.sharded import check_pattern
from tests.zoo import NAMES, TOKENS, block_of, reduced

CLUSTER = Cluster.load("h100-80g")
# These models are so small that only a high price makes it worth while to divide them.
DEAR = Weights(parameter=1e-7)
WEIGHTS = {"fast": Weights(), "dear": DEAR, "all": Weights(parameter=1e-7, activation=1e-8)}
COLUMN = {
    "gpt": {"attn.c_attn.weight": "S(0,3)", "mlp.c_fc.weight": "S(0)"},
    "gpt2": {"attn.c_attn.weight": "S(1,3)", "mlp.c_fc.weight": "S(1)"},
    "llama": {
        **{f"self_attn.{x}_proj.weight": "S(0)" for x in "qkv"},
        **{f"mlp.{x}_proj.weight": "S(0)" for x in ("gate", "up")},
    },
}
ROW = {
    "gpt": {"attn.c_proj.weight": "S(1)", "mlp.c_proj.weight": "S(1)"},
    "gpt2": {"attn.c_proj.weight": "S(0)", "mlp.c_proj.weight": "S(0)"},
    "llama": {"self_attn.o_proj.weight": "S(1)", "mlp.down_proj.weight": "S(1)"},
}


def shard(name, pattern, layout="replicate", weights=DEAR, tp=2, **more):
    graph, classes = reduced(name)
    return shard_pattern(graph, classes.patterns[pattern], CLUSTER, tp, layout, 1, weights, **more)


def states(name, sharding):
    """State of each parameter by its name inside the block."""
    graph, classes = reduced(name)
    root = classes.patterns[block_of(name)].name
    sources = {v: graph.values[v].source.removeprefix(f"{root}.") for v in sharding.parameters}
    return {sources[value]: str(state) for value, state in sharding.parameters.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_column_then_row(name, layout):
    sharding = shard(name, block_of(name), layout)
    found = states(name, sharding)
    wanted = {**COLUMN[name], **ROW[name]}
    assert {key: found[key] for key in wanted} == wanted
    kinds = [m.move.forward for m in sharding.moves if m.move.forward]
    if layout == "replicate":
        assert kinds == ["all_reduce"] * 2
    else:
        assert sorted(kinds) == ["all_gather"] * 2 + ["reduce_scatter"] * 2
    backward = [m.move.backward for m in sharding.moves if m.move.backward]
    assert len(backward) == len(kinds)
    whole = "R" if layout == "replicate" else "V"
    others = {k: s for k, s in found.items() if k not in wanted and not k.endswith("bias")}
    assert set(others.values()) == {whole}, "norms are replicated"


@pytest.mark.parametrize("name", NAMES)
def test_bias_goes_with_its_product(name):
    found = states(name, shard(name, block_of(name)))
    for key, state in found.items():
        weight = key.replace("bias", "weight")
        if key.endswith("bias") and weight in COLUMN[name]:
            assert state == COLUMN[name][weight].replace("S(1", "S(0")
        elif key.endswith("bias"):
            assert state == "R"


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_computes_what_one_device_does(name, layout, weights):
    torch.manual_seed(0)
    graph, classes = reduced(name)
    for key, pattern in classes.patterns.items():
        sharding = shard(name, key, layout, WEIGHTS[weights])
        assert sharding.strategies.keys() == set(pattern.ops)
        check_pattern(graph, pattern, sharding)


@pytest.mark.parametrize("name", NAMES)
def test_every_move_exists(name):
    graph, classes = reduced(name)
    for key in classes.patterns:
        for layout in LAYOUTS:
            for m in shard(name, key, layout, WEIGHTS["all"]).moves:
                table = MOVES if graph.values[m.value].requires_grad else CONSTANT_MOVES
                assert table[m.source.kind, m.target.kind] == m.move


@pytest.mark.parametrize("name", NAMES)
def test_cbc_finds_the_same_optimum(name):
    graph, classes = reduced(name)
    pattern = classes.patterns[block_of(name)]
    model = op_model(graph, pattern, 2)
    fixed = model.fixed(pattern.boundary(LAYOUTS["sequence"]), 1)
    cost = prices(model, CLUSTER, 1, DEAR.steps).weighted(DEAR)
    highs, cbc = (
        solver_of(model.program, solver=solver, gap=1e-4, time_limit=20.0).minimise(cost, fixed)
        for solver in ("highs", "cbc")
    )
    assert cost @ highs == pytest.approx(cost @ cbc, rel=3e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_sharder_returns_does_not_depend_on_what_it_was_asked_before(name):
    graph, classes = reduced(name)
    pattern = classes.patterns[block_of(name)]
    states = {layout: pattern.boundary(state) for layout, state in LAYOUTS.items()}
    asked = [("sequence", 2), ("replicate", 1), ("sequence", 1)]
    kept = Sharder(op_model(graph, pattern, 2), CLUSTER)
    for layout, batch in asked:
        fresh = Sharder(op_model(graph, pattern, 2), CLUSTER)
        own = (layout, states[layout], batch, [*WEIGHTS.values()])
        assert kept.shard(*own) == fresh.shard(*own)


def test_without_pressure_a_tiny_block_stays_whole():
    sharding = shard("gpt", block_of("gpt"), weights=Weights())
    assert sharding.unsplit
    assert set(sharding.parameters.values()) == {R}
    assert sharding.moves == ()


def test_tied_weights_have_one_state():
    sharding = shard("gpt", ENDS, "sequence")
    graph, _ = reduced("gpt")
    readers = [
        strategy.state_of(name)
        for strategy in sharding.strategies.values()
        for name, _ in strategy.inputs
        if graph.values[name].source == "transformer.wte.weight"
    ]
    assert len(readers) == 2
    assert readers[0] == readers[1] != V


def test_impossible_layout():
    """Sixteen tokens cannot be divided among three ranks, so there is no sequence layout."""
    assert TOKENS % 3
    assert shard("gpt", block_of("gpt"), "sequence", tp=3) is None
    assert shard("gpt", block_of("gpt"), "replicate", tp=3) is not None


def test_more_pressure_never_holds_more():
    graph, _ = reduced("llama")
    held = []
    for price in (0.0, 1e-8, 1e-7, 1e-5):
        sharding = shard("llama", block_of("llama"), weights=Weights(parameter=price))
        held.append(sum(graph.values[n].elements(1) // (2 if s.kind == "S" else 1)
                        for n, s in sharding.parameters.items()))  # fmt: skip
    assert held == sorted(held, reverse=True)
    assert held[-1] < held[0]
