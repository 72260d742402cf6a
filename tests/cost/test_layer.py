"""Layers priced by arithmetic: saved bytes as autograd keeps them, and how prices scale."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.cluster import Cluster
from autopar.cost.activations import can_keep, is_kept
from autopar.cost.layer import layer_cost, replicated
from autopar.solve.intra import Weights, shard_pattern
from autopar.strategies.patterns import ENDS, restrict
from tests.zoo import CHANNELS, HEADS, MODELS, NAMES, TOKENS, VOCABULARY, block_of, reduced

CLUSTER = Cluster.load("h100-80g")
FIRST = {"gpt": "transformer.h.0", "gpt2": "transformer.h.0", "llama": "model.layers.0"}


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def really_saved(name: str, batch: int) -> int:
    """Bytes that autograd keeps for the first block of a model that really runs.

    Parameters are there anyway, and what has no gradient, such as rotary tables, is shared.
    """
    model = MODELS[name]().train()
    block = model.get_submodule(FIRST[name])
    ignored = {storage(p) for p in model.parameters()}
    kept: dict[int, Tensor] = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(storage(t), t) if storage(t) not in ignored else t, lambda t: t
    )

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        ignored.update(storage(t) for t in tensors((args, kwargs)) if not t.requires_grad)
        hooks.__enter__()

    block.register_forward_pre_hook(enter, with_kwargs=True)
    block.register_forward_hook(lambda *_: hooks.__exit__(None, None, None))
    x = torch.zeros(batch, TOKENS, dtype=torch.long)
    model(x) if name == "gpt" else model(input_ids=x, use_cache=False)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def price(name: str, key: str, batch: int = 1, **split: Any) -> Any:
    graph, classes = reduced(name)
    pattern = classes.patterns[key]
    sharding = replicated(graph, pattern)
    if split:
        weights = Weights(parameter=1e-7)
        sharding = shard_pattern(graph, pattern, CLUSTER, weights=weights, batch=1, **split)
    return layer_cost(graph, pattern, sharding, CLUSTER, batch)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_saved_bytes_are_those_of_autograd(name, batch):
    assert price(name, block_of(name), batch).saved_bytes == really_saved(name, batch)


def test_saved_bytes_of_repeated_keys_and_values():
    """Eager Llama keeps two heads of each; the exported graph repeats them for four queries."""
    repeated = 2 * (HEADS - 2) * TOKENS * (CHANNELS // HEADS) * 4
    assert price("llama", block_of("llama")).saved_bytes == really_saved("llama", 1) + repeated


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_depends_on_the_batch_grows_with_it(name):
    one, four = (price(name, block_of(name), batch) for batch in (1, 4))
    for field in ("saved_bytes", "input_bytes", "output_bytes", "flops"):
        assert getattr(four, field) == 4 * getattr(one, field), field
    for field in ("forward_seconds", "backward_seconds"):
        assert getattr(one, field) <= getattr(four, field) < 4 * getattr(one, field), field
    assert one.parameter_elements == four.parameter_elements


def test_flops_of_a_block():
    """Two per multiply-add: 12 c^2 per token in the products, causal attention is half of t^2 c."""
    products = 2 * 12 * CHANNELS**2 * TOKENS
    attention = 4 * TOKENS**2 * CHANNELS // 2
    assert price("gpt", block_of("gpt")).flops == products + attention


def test_parameters_of_a_block():
    weights, biases_and_norms = 12 * CHANNELS**2, 13 * CHANNELS
    assert price("gpt", block_of("gpt")).parameter_elements == weights + biases_and_norms
    split = price("gpt", block_of("gpt"), tp=2, layout="replicate")
    assert split.parameter_elements == weights // 2 + 7 * CHANNELS // 2 + 6 * CHANNELS
    assert split.partial_elements == 0


def test_sequence_layout_divides_what_is_kept_and_leaves_partial_gradients():
    whole = price("gpt", block_of("gpt"))
    replicate, sequence = (
        price("gpt", block_of("gpt"), tp=2, layout=kind) for kind in ("replicate", "sequence")
    )
    assert sequence.saved_bytes < replicate.saved_bytes < whole.saved_bytes
    assert sequence.input_bytes * 2 == replicate.input_bytes == whole.input_bytes
    assert sequence.partial_elements == 6 * CHANNELS, "two norms and two biases"
    assert sequence.flops < whole.flops


@pytest.mark.parametrize("name", NAMES)
def test_collectives_of_a_split_block(name):
    replicate, sequence = (
        price(name, block_of(name), tp=2, layout=kind) for kind in ("replicate", "sequence")
    )
    assert replicate.tp_forward == replicate.tp_backward == Counter(all_reduce=2)
    assert sequence.tp_forward == Counter(all_gather=2, reduce_scatter=2)
    assert sequence.tp_backward == Counter(all_gather=2, reduce_scatter=2)
    # Recomputation stops in front of the last reduction: nothing that is kept comes behind it.
    assert replicate.tp_again == Counter(all_reduce=1)
    assert sequence.tp_again == Counter(all_gather=2, reduce_scatter=1)
    for cost in (replicate, sequence):
        assert 0 < cost.tp_again_seconds < cost.tp_forward_seconds


def test_unsplit_layers_do_not_communicate():
    cost = price("gpt", block_of("gpt"))
    assert cost.tp_forward == cost.tp_backward == cost.tp_again == Counter()
    assert cost.tp_forward_seconds == cost.tp_backward_seconds == cost.tp_again_seconds == 0


def test_ends_are_priced_where_they_run():
    graph, classes = reduced("gpt")
    whole = replicated(graph, classes.patterns[ENDS])
    costs = {
        key: layer_cost(graph, part, restrict(whole, part, graph), CLUSTER, 1)
        for key, part in classes.parts.items()
    }
    table, positions = VOCABULARY * CHANNELS, TOKENS * CHANNELS
    assert costs["embedding"].parameter_elements == table + positions
    assert costs["head"].parameter_elements == table + 2 * CHANNELS
    assert costs["embedding"].flops == 0
    assert costs["head"].flops == 2 * table * TOKENS
    assert costs["embedding"].input_bytes == costs["head"].output_bytes == 0
    assert costs["embedding"].output_bytes == costs["head"].input_bytes
    logits = TOKENS * VOCABULARY * 4
    assert costs["head"].transient_bytes >= logits


def test_backward_holds_the_gradients_of_one_op_at_a_time():
    """The head's product: those of its result and its input, and a new one of its weight.

    What the loss had saved is gone by then, unless gradients of parameters are made later.
    """
    graph, classes = reduced("gpt")
    whole, part = replicated(graph, classes.patterns[ENDS]), classes.parts["head"]
    cost = layer_cost(graph, part, restrict(whole, part, graph), CLUSTER, 1)
    around = 4 * TOKENS * (VOCABULARY + CHANNELS)
    assert cost.step_summed_bytes == around + 4 * VOCABULARY * CHANNELS
    assert around <= cost.step_bytes < cost.step_summed_bytes
    split = cost.in_two_parts()
    assert (split.transient_bytes, split.summed_bytes) == (cost.step_bytes, cost.step_summed_bytes)
    assert 0 < cost.transient_bytes < cost.summed_bytes < cost.step_summed_bytes


def test_a_slow_host_keeps_the_device_waiting():
    """A pass takes as long as its operations take to be issued, tp communication included."""
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    data = deepcopy(CLUSTER.to_dict())
    data["curves"]["dispatch"] = {"op_seconds": 1e-3}
    slow = layer_cost(graph, pattern, replicated(graph, pattern), Cluster.from_dict(data), 1)
    fast = layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, 1)
    assert fast.forward_seconds < 1e-3 < slow.forward_seconds < 1e-3 * len(pattern.ops)
    assert slow.backward_seconds > slow.forward_seconds


def test_processes_that_share_a_whole_node_wait_for_the_slowest():
    data = deepcopy(CLUSTER.to_dict())
    data["curves"]["dispatch"] = {"op_seconds": 1e-3, "whole_node": 1.25}
    cluster = Cluster.from_dict(data)
    assert cluster.dispatch_seconds(cluster.devices_per_node) == pytest.approx(1.25e-3)
    assert cluster.dispatch_seconds(cluster.devices_per_node // 2) == 1e-3
    assert CLUSTER.dispatch_seconds(cluster.devices_per_node) == CLUSTER.dispatch_seconds()


def test_gradients_that_wait_for_those_of_the_parameters():
    """Of the results of two norms and of the products, which are 3, 1, 4 and 1 times c wide."""
    assert price("gpt", block_of("gpt"), 2).waiting_bytes == 2 * 4 * 11 * CHANNELS * TOKENS


@pytest.mark.parametrize("name", NAMES)
def test_backward_in_two_parts_takes_at_least_as_long(name):
    cost = price(name, block_of(name))
    assert 0 < cost.weight_seconds < cost.backward_seconds
    assert cost.backward_seconds <= cost.input_seconds + cost.weight_seconds
    assert cost.input_seconds + cost.weight_seconds < 1.5 * cost.backward_seconds


class Kept(TorchDispatchMode):
    """Bytes of the results of the ops whose results selective recomputation keeps."""

    OPS = ("mm", "addmm", "bmm", "convolution", "_scaled_dot_product_flash_attention_for_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.OPS:
            self.total += sum(t.untyped_storage().nbytes() for t in tensors(result))
        return result


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_kept_bytes_are_the_results_of_products_and_attention(name: str, batch: int) -> None:
    model = MODELS[name]().train()
    block, kept = model.get_submodule(FIRST[name]), Kept()
    block.register_forward_pre_hook(lambda *_: kept.__enter__() and None)
    block.register_forward_hook(lambda *_: kept.__exit__(None, None, None))
    x = torch.zeros(batch, TOKENS, dtype=torch.long)
    model(x) if name == "gpt" else model(input_ids=x, use_cache=False)
    graph, classes = reduced(name)
    pattern = classes.patterns[block_of(name)]
    cost = layer_cost(graph, pattern, replicated(graph, pattern), CLUSTER, batch)
    assert kept.total == cost.kept_bytes > 0
    assert 0 < cost.kept_seconds < cost.forward_seconds
    assert -cost.kept_bytes < cost.selective_bytes < cost.saved_bytes


def test_what_is_changed_in_place_is_not_kept() -> None:
    graph, classes = reduced("gpt")
    pattern = classes.patterns[block_of("gpt")]
    assert can_keep(graph, pattern)
    product = next(i for i in pattern.ops if is_kept(graph.ops[i]))
    reader = next(i for i in pattern.ops if graph.ops[product].outputs[0] in graph.ops[i].inputs())
    changing = dataclasses.replace(graph.ops[reader], inplace=True)
    ops = (*graph.ops[:reader], changing, *graph.ops[reader + 1 :])
    assert not can_keep(dataclasses.replace(graph, ops=ops), pattern)
