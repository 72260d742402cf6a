"""The graphs of three real models: what they hold, and that they compute the model's loss."""

from __future__ import annotations

import pytest
import torch

from autopar.graph import Ref
from autopar.strategies.patterns import find_classes, reduce
from autopar.trace import trace
from autopar.trace.interpret import run
from tests.trace.models import Chain, Inplace, NoGrad, graph_of
from tests.zoo import MODELS, NAMES, TOKENS, call, traced

BLOCKS = {"gpt": "transformer.h", "gpt2": "transformer.h", "llama": "model.layers"}
OUTSIDE = {
    "gpt": {"transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"},
    "gpt2": {"transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"},
    "llama": {"model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"},
}
INPUTS = {
    "gpt": {"args.0", "target"},
    "gpt2": {"kwargs.input_ids", "kwargs.labels"},
    "llama": {"kwargs.input_ids", "kwargs.labels"},
}


def reference(model, name, inputs):
    more = call(name)[2]
    if "loss_fn" in more:
        return more["loss_fn"](model(inputs["args.0"]), inputs["target"])
    return model(**{key.removeprefix("kwargs."): value for key, value in inputs.items()}).loss


def evaluate(graph, model, inputs, batch):
    """Runs the graph op by op."""
    held = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    env = {name: inputs[key] for key, name in graph.inputs.items()}
    values = graph.values.values()
    env |= {v.name: held[v.source] for v in values if v.kind in ("parameter", "buffer")}
    for op in graph.ops:
        env.update(zip(op.outputs, run(op, env, batch, "cpu"), strict=True))
    return env[graph.loss]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_graph_computes_the_loss_and_its_gradients(name, batch):
    torch.manual_seed(0)
    model, graph = MODELS[name](), traced(name)
    inputs = {key: torch.randint(64, (batch, TOKENS)) for key in graph.inputs}
    expected = reference(model, name, inputs)
    found = evaluate(graph, model, inputs, batch)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(expected, parameters),
                    torch.autograd.grad(found, parameters), strict=True)  # fmt: skip
    for theirs, ours in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_layers(name):
    graph = traced(name)
    blocks = [f"{BLOCKS[name]}.{i}" for i in range(2)]
    assert [layer.name for layer in graph.layers] == ["embedding", *blocks, "head"]
    assert [layer.kind for layer in graph.layers] == ["embedding", "block", "block", "head"]
    assert graph.layers[1].signature == graph.layers[2].signature
    assert sorted(i for ly in graph.layers for i in ly.ops) + list(graph.context) != []
    every = sorted([*graph.context, *(i for layer in graph.layers for i in layer.ops)])
    assert every == list(range(len(graph.ops)))
    for before, after in zip(graph.layers, graph.layers[1:], strict=False):
        assert set(before.outputs) & set(after.inputs)
        assert all(p.startswith(f"{before.name}.") for p in before.parameters) or (
            before.kind != "block"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_class_of_layers(name):
    graph = traced(name)
    with torch.device("meta"):
        known = {n for n, _ in MODELS[name]().named_parameters(remove_duplicate=True)}
    used = [p for layer in graph.layers for p in layer.parameters]
    assert set(used) == known
    tied = {p for group in graph.tied for p in group}
    assert {p for p in used if used.count(p) > 1} <= tied


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_ties(name):
    graph = traced(name)
    assert graph.inputs.keys() == INPUTS[name]
    assert all(graph.values[v].shape[0].power == 1 for v in graph.inputs.values())
    shared = (("transformer.wte.weight", "lm_head.weight"),)
    assert graph.tied == (() if name == "llama" else shared)


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_units(name):
    graph = traced(name)
    assert OUTSIDE[name] <= graph.calls.keys()
    block = graph.calls[f"{BLOCKS[name]}.1"]
    assert block.args[0] == Ref(graph.layers[1].outputs[0])
    assert block.outputs == Ref(graph.layers[2].outputs[0])
    if name == "llama":
        cos, sin = block.kwargs["position_embeddings"]
        assert {cos.name, sin.name} <= set(graph.layers[2].inputs)
        assert block.kwargs["use_cache"] is False


@pytest.mark.parametrize("name", NAMES)
def test_causal_attention_without_a_mask(name):
    graph = traced(name)
    attention = [op for op in graph.ops if "scaled_dot_product" in op.target]
    assert len(attention) == 2
    for op in attention:
        causal = op.kwargs.get("is_causal") or op.args[5]
        mask = op.args[3] if len(op.args) > 3 else op.kwargs.get("attn_mask")
        assert causal is True
        assert mask is None


@pytest.mark.parametrize("name", NAMES)
def test_bias_is_added_behind_the_product(name):
    graph = traced(name)
    assert not [op for op in graph.ops if "addmm" in op.target]
    assert all(len(op.args) == 2 for op in graph.ops if op.target == "aten.linear.default")
    targets = {"aten.linear.default", "aten.matmul.default"}
    products = [op.outputs[0] for op in graph.ops if op.target in targets]
    # Hugging Face's Conv1D flattens its input to (rows, channels); the graph keeps the tokens.
    assert {len(graph.values[name].shape) for name in products} == {3}


@pytest.mark.parametrize("name", NAMES)
def test_saved_is_observed_once_per_class(name):
    graph = traced(name)
    expected = {i for layer in (*graph.layers[:2], graph.layers[-1]) for i in layer.ops}
    assert graph.saved.keys() == expected


@pytest.mark.parametrize("name", NAMES)
def test_depth_adds_layers_but_no_classes(name):
    shallow, deep = traced(name), traced(name, 4)
    assert len(deep.layers) == len(shallow.layers) + 2
    first, second = (find_classes(graph) for graph in (shallow, deep))
    assert first.patterns.keys() == second.patterns.keys()
    small, _ = reduce(shallow, first)
    large, classes = reduce(deep, second)
    assert [op.target for op in small.ops] == [op.target for op in large.ops]
    assert len(large.calls) <= len(small.calls)
    assert {i for p in classes.patterns.values() for i in p.ops} <= set(range(len(large.ops)))


def test_bf16_changes_the_activations_and_not_the_names():
    name = "gpt"
    args, kwargs, more = call(name)
    graph = trace(MODELS[name](), args, kwargs, precision="bf16", **more)
    hidden = graph.values[graph.layers[1].outputs[0]]
    assert hidden.dtype == "bfloat16"
    assert hidden.bytes(2) * 2 == traced(name).values[graph.layers[1].outputs[0]].bytes(2)


def test_regions_without_gradient():
    graph = graph_of(Chain(NoGrad))
    inside = [op.target.split(".")[1] for op in graph.ops if op.no_grad]
    assert inside == ["abs", "mean"] * 2
    learned = {o: graph.values[o].requires_grad for op in graph.ops for o in op.outputs}
    assert not any(learned[o] for op in graph.ops if op.no_grad for o in op.outputs)
    assert learned[graph.loss]


def test_changes_in_place_keep_their_meaning():
    torch.manual_seed(0)
    model = Chain(Inplace)
    graph = graph_of(model)
    x = torch.randn(2, 8)
    expected = torch.nn.functional.mse_loss(model(x.clone()), x)
    found = evaluate(graph, model, {"args.0": x, "target": x}, 2)
    torch.testing.assert_close(found, expected)
