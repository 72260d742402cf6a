"""The copy on ``meta``, the search for blocks, and the recorder of module calls."""

from __future__ import annotations

import torch
from torch import nn

from autopar.graph import Call, Ref
from autopar.trace.model import Recorder, as_call, find_blocks, find_units, meta_copy
from tests.trace.models import Chain
from tests.zoo import MODELS, NAMES, gpt, tokens, traced


def test_copy_allocates_nothing_and_leaves_the_model_alone():
    model = gpt()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    copy = meta_copy(model, torch.bfloat16)
    assert {p.device.type for p in copy.parameters()} == {"meta"}
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_copy_of_a_model_that_would_not_fit():
    """100 TB of weights; only their shapes are copied."""
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(2**21, 2**21, bias=False) for _ in range(6)])
    copy = meta_copy(model, torch.float32)
    assert sum(p.numel() for p in copy.parameters()) == 6 * 2**42


def test_copy_keeps_ties_buffers_and_flags():
    model = gpt()
    model.lm_head.weight.requires_grad_(False)
    model.register_buffer("count", torch.arange(3))
    copy = meta_copy(model, torch.float32)
    assert copy.lm_head.weight is copy.transformer["wte"].weight
    assert not copy.lm_head.weight.requires_grad
    assert copy.count.dtype == torch.int64
    assert copy.count.device.type == "meta"


def test_trace_leaves_no_hooks_and_no_mode_behind():
    model = gpt().eval()
    loss_before = model(tokens())
    traced("gpt")
    from autopar.trace import trace
    from examples.gpt import loss_fn

    trace(model, (tokens(),), {}, target=tokens(), loss_fn=loss_fn)
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(tokens()), loss_before)


def test_blocks_and_units():
    expected = {"gpt": "transformer.h", "gpt2": "transformer.h", "llama": "model.layers"}
    for name in NAMES:
        with torch.device("meta"):
            model = MODELS[name]()
        blocks = find_blocks(model)
        assert blocks == tuple(f"{expected[name]}.{i}" for i in range(2))
        units = find_units(model, blocks)
        assert set(blocks) < set(units)
        assert "lm_head" in units


def test_children_of_a_sequential_are_blocks_if_they_have_parameters():
    equal = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    unequal = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    assert find_blocks(equal) == ("0", "2")
    assert find_blocks(unequal) == ("0", "1")
    assert find_blocks(nn.Linear(4, 4)) == ()


def test_a_small_sequence_of_different_modules_is_not_worth_cutting():
    tail = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 2))
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), tail)
    assert find_blocks(nn.ModuleDict({"trunk": model[:2], "tail": tail})) == ("trunk.0", "trunk.1")
    assert find_blocks(nn.ModuleDict({"tail": tail})) == ("tail.0", "tail.1")


BLOCKS = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))


def stage(width: int, depth: int) -> nn.Module:
    blocks = nn.Sequential(*[nn.Conv2d(width, width, 3) for _ in range(depth)])
    return nn.ModuleDict({"down": nn.Conv2d(width // 2, width, 1), "blocks": blocks})


def test_in_stages_of_different_widths_their_blocks_count():
    stages = nn.ModuleList([stage(4, 2), stage(8, 1), stage(16, 2)])
    assert find_blocks(stages) == tuple(f"{s}.blocks.{i}" for s, i in BLOCKS)


def test_in_blocks_that_are_alike_lists_do_not_count():
    """Some hold a list of experts, the first one something more: they are blocks all the same."""

    def block(experts: int) -> nn.Module:
        inner = nn.ModuleList([nn.Linear(4, 4) for _ in range(experts)])
        return nn.ModuleDict({"mix": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "experts": inner})

    blocks = nn.ModuleList([block(1), block(3)])
    assert find_blocks(blocks) == ("0", "1")


def test_recorder_counts_calls_and_knows_where_it_is():
    model = Chain()
    recorder = Recorder()
    recorder.attach(model, ("first", "blocks.0"))
    seen = []
    model.blocks[0].linear.register_forward_hook(lambda *_: seen.append(list(recorder.stack)))
    model(torch.ones(2, 8))
    assert recorder.counts == {"first": 1, "blocks.0": 1}
    assert seen[0][:2] == ["", "blocks.0"]
    assert recorder.stack == []


def test_a_call_without_source_form_is_left_out():
    tags = {"u#1:in:0": "x", "u#1:out:0": "y"}
    arguments = ((Ref("u#1:in:0"), 3), {"flag": None})
    recorded = ("Unit", arguments, Ref("u#1:out:0"))
    expected = Call("u", "Unit", (Ref("x"), 3), {"flag": None}, Ref("y"))
    assert as_call("u", recorded, tags) == expected
    assert as_call("u", ("Unit", ((object(),), {}), None), tags) is None
    assert as_call("u", ("Unit", ((Ref("unknown"),), {}), None), tags) is None
