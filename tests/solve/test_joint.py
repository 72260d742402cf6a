"""The op-level ILP over all classes: it finds the classic plans without being told."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from autopar.cluster import Cluster
from autopar.solve import joint
from autopar.solve.joint import propose_layouts
from autopar.solve.opprices import Weights
from autopar.strategies.patterns import ENDS, Classes, find_classes, reduce
from autopar.strategies.sharding import Pattern
from autopar.strategies.states import shard
from autopar.trace import trace
from examples.alexnet import AlexNet, loss_fn
from tests.solve.sharded import check_pattern
from tests.zoo import NAMES, reduced

H100, A100 = Cluster.load("h100-80g"), Cluster.load("a100-80g")
DEAR = Weights(parameter=1e-7)


@cache
def alexnet(size=224, **sizes):
    with torch.device("meta"):
        model = AlexNet(dropout=0.0, **sizes)
        images, target = torch.zeros(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
    graph = trace(model, (images,), {}, target=target, loss_fn=loss_fn)
    return reduce(graph, find_classes(graph))


def states(graph, *shardings):
    return {graph.values[n].source: str(s) for x in shardings for n, s in x.parameters.items()}


def for_all(classes, weights):
    return [dict.fromkeys(classes.patterns, weights)]


@pytest.mark.parametrize(("tp", "batch"), [(2, 256), (4, 512), (8, 1024)])
def test_alexnet_shares_samples_in_convolutions_and_divides_weights_of_linears(tp, batch):
    """Krizhevsky's answer (2014) for all devices of a node, at 128 samples per device."""
    graph, classes = alexnet()
    aims = for_all(classes, Weights(steps=1.0))
    (found,) = propose_layouts(graph, classes, A100, tp, batch, aims)
    for name, state in states(graph, *found.values()).items():
        if name.startswith("features"):
            assert state == "V", "whole, its gradient summed over the samples of all ranks"
        elif name.endswith("weight"):
            assert state.startswith("S"), name
    images = {
        strategy.inputs[0][1]
        for sharding in found.values()
        for i, strategy in sharding.strategies.items()
        if "conv" in graph.ops[i].target
    }
    assert images == {shard(0)}


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-6])
def test_convolutions_compute_what_one_device_does(batch, price):
    torch.manual_seed(0)
    graph, classes = alexnet(96, classes=16, width=8, hidden=64, pooled=2)
    aims = for_all(classes, Weights(parameter=price))
    (found,) = propose_layouts(graph, classes, Cluster.load("cpu"), 2, batch, aims)
    assert batch % 2 == 0 or not any(s.divides_samples for s in found.values())
    for key, pattern in classes.patterns.items():
        check_pattern(graph, pattern, found[key])


@cache
def llama_8b():
    """Two layers of Llama-3-8B with 2,048 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        model, tokens = LlamaForCausalLM(config), torch.zeros(2, 2048, dtype=torch.int64)
    graph = trace(model, (), {"input_ids": tokens, "labels": tokens}, precision="bf16")
    return reduce(graph, find_classes(graph))


def test_llama_gets_column_then_row_with_sequence_parallelism():
    """Megatron's plan (Korthikanti et al., 2022), at one sample per tp group and dear memory."""
    graph, classes = llama_8b()
    weights = {name: Weights(parameter=1e-11) for name in classes.patterns}
    (found,) = propose_layouts(graph, classes, H100, 8, 1, [weights])
    (block,) = (sharding for name, sharding in found.items() if name != ENDS)
    for sharding in found.values():
        assert set(sharding.boundary.values()) == {shard(1)}
    held = {name.split(".")[-2]: state for name, state in states(graph, block).items()}
    column = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    assert {held[name] for name in column} == {"S(0)"}
    assert {held[name] for name in ("o_proj", "down_proj")} == {"S(1)"}
    kinds = [m.move.forward for m in block.moves]
    assert kinds == ["all_gather", "reduce_scatter"] * 2


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_computes_what_one_device_does(name, batch):
    torch.manual_seed(0)
    graph, classes = reduced(name)
    aims = [dict.fromkeys(classes.patterns, w) for w in (Weights(), DEAR)]
    proposals = propose_layouts(graph, classes, H100, 2, batch, aims)
    assert 1 <= len(proposals) <= 2
    for found in proposals:
        for key, pattern in classes.patterns.items():
            check_pattern(graph, pattern, found[key])


def test_equal_layouts_are_proposed_once():
    graph, classes = reduced("gpt")
    weights = dict.fromkeys(classes.patterns, DEAR)
    assert len(propose_layouts(graph, classes, H100, 2, 1, [weights, weights])) == 1


def test_places_of_one_activation_have_one_state():
    """Two blocks of one class in a row, then another class that also reads the first one's."""
    first = Pattern("a", (), ("x",), ("y",), frozenset({"x", "y"}))
    second = Pattern("b", (), ("p", "q"), (), frozenset({"p"}))
    start = Pattern("embedding", (), (), ("e",), frozenset({"e"}))
    classes = Classes(
        {"a": first, "b": second, ENDS: start}, {"embedding": start},
        ("embedding", "a", "a", "b"),
        reads=((), ("hidden",), ("hidden",), ("hidden", "kept")),
        writes=(("hidden",), ("hidden",), ("kept",), ()),
    )  # fmt: skip
    groups = {frozenset(group) for group in joint._groups(classes)}
    assert groups == {frozenset({(ENDS, "e"), ("a", "x"), ("a", "y"), ("b", "p"), ("b", "q")})}
