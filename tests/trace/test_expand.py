"""A trace of few blocks gives the graph of all."""

from __future__ import annotations

import logging
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import autopar.trace.capture as capturing
from autopar.graph import Ref, refs
from autopar.trace import trace
from autopar.trace.expand import MARK
from autopar.trace.simplify import substitute
from tests.trace.deep import EXPANDED, REFUSED, UNEQUAL
from tests.trace.models import WIDTH
from tests.zoo import MODELS, NAMES, call

IDS = {"input_ids": torch.ones(2, 16, dtype=torch.long)}
LABELS = {**IDS, "labels": IDS["input_ids"]}


def bert():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=6, num_attention_heads=4,
                   intermediate_size=64, max_position_embeddings=32)
    )  # fmt: skip


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64,
                  image_size=16, patch_size=4, num_labels=10)
    )  # fmt: skip


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=6, num_heads=4,
                 decoder_start_token_id=0)
    )  # fmt: skip


def gemma():
    """Windows of attention in every other layer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=8,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                         sliding_window=4, max_position_embeddings=32,
                         layer_types=["sliding_attention", "full_attention"] * 4)
    )  # fmt: skip


REAL = {
    "bert": (bert, LABELS), "t5": (t5, LABELS), "gemma": (gemma, LABELS),
    "vit": (vit, {"pixel_values": torch.ones(2, 3, 16, 16),
                  "labels": torch.ones(2, dtype=torch.long)}),
}  # fmt: skip


def canonical(ops, values):
    """Rows of ops in which activations go by their order and the rest by its source."""
    names, rows = {}, []
    for op in ops:
        for name in op.inputs():
            names.setdefault(name, f"{values[name].kind} {values[name].source}")
        arguments = repr(substitute((op.args, op.kwargs), names))
        for name in op.outputs:
            names[name] = f"v{len(names)}"
        described = [
            (values[n].shape, values[n].dtype, values[n].kind, values[n].requires_grad)
            for n in (*op.inputs(), *op.outputs)
        ]
        # a mark stands where the block is called from, which may differ between blocks
        where = "" if op.target == MARK else op.where
        rows.append((op.target, arguments, op.no_grad, op.unit, where, described))
    return rows, names


def rename(tree, names):
    return repr(substitute(tree, names))


def check_raw(full, short):
    """Both captures are equal but for the names of values."""
    expected, names = canonical(full.ops, full.values)
    found, other = canonical(short.ops, short.values)
    assert found == expected
    assert names[full.loss] == other[short.loss]
    assert full.recorder.counts == short.recorder.counts
    assert full.recorder.parameters == short.recorder.parameters
    assert list(full.recorder.calls) == list(short.recorder.calls)
    for path, recorded in full.recorder.calls.items():
        assert repr(short.recorder.calls[path]) == repr(recorded)


def captured(model, kwargs, monkeypatch, short):
    """The capture and the number of blocks that were left out."""
    seen = []
    args = (kwargs.pop("args"),) if "args" in kwargs else ()
    loss_fn = F.mse_loss if args else None
    with monkeypatch.context() as patch:
        if not short:
            patch.setattr(capturing, "find_repeats", lambda *_: ())
        original = capturing._capture
        patch.setattr(capturing, "_capture", lambda *a: seen.append(a[4]) or original(*a))
        raw = capturing.capture(model, args, kwargs, args[0] if args else None, loss_fn,
                                torch.float32)  # fmt: skip
    return raw, sum(len(repeat.omitted) for repeat in seen[-1]), len(seen)


@pytest.mark.parametrize("name", EXPANDED)
def test_expansion_equals_the_full_trace(name, monkeypatch):
    build, omitted = EXPANDED[name]
    model = build()
    inputs = {"args": torch.ones(2, WIDTH)}
    full, none, _ = captured(model, dict(inputs), monkeypatch, short=False)
    short, left_out, attempts = captured(model, dict(inputs), monkeypatch, short=True)
    check_raw(full, short)
    assert (none, left_out, attempts) == (0, omitted, 1)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("name", REFUSED)
def test_unequal_use_is_noticed(name, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    model = REFUSED[name]()
    inputs = {"args": torch.ones(2, WIDTH)}
    full, _, _ = captured(model, dict(inputs), monkeypatch, short=False)
    short, left_out, attempts = captured(model, dict(inputs), monkeypatch, short=True)
    check_raw(full, short)
    assert (left_out, attempts) == (0, 2)
    assert "tracing every block" in caplog.text


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_blocks_are_all_traced(name, monkeypatch):
    model = UNEQUAL[name]()
    inputs = {"args": torch.ones(2, WIDTH)}
    full, _, _ = captured(model, dict(inputs), monkeypatch, short=False)
    short, left_out, attempts = captured(model, dict(inputs), monkeypatch, short=True)
    check_raw(full, short)
    assert (left_out, attempts) == (0, 1)


@pytest.mark.parametrize("name", REAL)
def test_real_models(name, monkeypatch):
    build, inputs = REAL[name]
    with torch.device("meta"):
        model = build()
    full, _, _ = captured(model, dict(inputs), monkeypatch, short=False)
    short, left_out, attempts = captured(model, dict(inputs), monkeypatch, short=True)
    check_raw(full, short)
    assert left_out >= 2
    assert attempts == 1


@cache
def graphs(name):
    """(full, expanded) graphs of a model with six blocks."""
    with torch.device("meta"):
        model = MODELS[name](6)
    args, kwargs, more = call(name)
    short = trace(model, args, kwargs, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capturing, "find_repeats", lambda *_: ())
        return trace(model, args, kwargs, **more), short


@pytest.mark.parametrize("name", NAMES)
def test_whole_graphs_are_equal(name):
    full, short = graphs(name)
    expected, names = canonical(full.ops, full.values)
    found, other = canonical(short.ops, short.values)
    assert found == expected
    assert other[short.loss] == names[full.loss]
    assert short.context == full.context
    assert (short.inputs, short.tied) == (full.inputs, full.tied)
    assert {names[n] for n in full.values} == {other[n] for n in short.values}
    for ours, theirs in zip(short.layers, full.layers, strict=True):
        assert (ours.name, ours.kind, ours.ops) == (theirs.name, theirs.kind, theirs.ops)
        assert ours.parameters == theirs.parameters
        # the head's signature holds the names of context that it reads
        assert ours.signature == theirs.signature or ours.kind != "block"
        assert [other[n] for n in ours.inputs] == [names[n] for n in theirs.inputs]
        assert sorted(other[n] for n in ours.outputs) == sorted(names[n] for n in theirs.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_calls_and_saved_tensors_are_equal(name):
    full, short = graphs(name)
    names, other = (canonical(g.ops, g.values)[1] for g in (full, short))
    assert list(short.calls) == list(full.calls)
    for path, ours in short.calls.items():
        theirs = full.calls[path]
        assert (ours.class_name, ours.parameters) == (theirs.class_name, theirs.parameters)
        assert rename((ours.args, ours.kwargs, ours.outputs), other) == rename(
            (theirs.args, theirs.kwargs, theirs.outputs), names
        )
    assert short.saved.keys() == full.saved.keys()
    for index, ours in short.saved.items():
        theirs = full.saved[index]
        assert [other[n] for n in ours.values] == [names[n] for n in theirs.values]
        assert (ours.extra_bytes, ours.fixed_bytes) == (theirs.extra_bytes, theirs.fixed_bytes)


def test_names_are_unique_and_can_be_written_as_source():
    _, short = graphs("llama")
    made = [out for op in short.ops for out in op.outputs]
    assert len(set(made)) == len(made)
    assert all(name.isidentifier() for name in made)
    known = {v.name for v in short.values.values()}
    assert all(name in known for op in short.ops for name in refs(op.args))
    assert Ref(short.layers[4].outputs[0]) == short.calls["model.layers.4"].args[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_users_model_is_not_touched(name):
    with torch.device("meta"):
        model = MODELS[name](6)
    before = [(path, id(m), sorted(vars(m))) for path, m in model.named_modules()]
    args, kwargs, more = call(name)
    trace(model, args, kwargs, **more)
    assert [(path, id(m), sorted(vars(m))) for path, m in model.named_modules()] == before
    assert not any("forward" in vars(m) for m in model.modules())
