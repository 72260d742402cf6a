"""Which blocks count as equal."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopar.trace.model import find_blocks
from autopar.trace.repeats import NotRepeatedError, Repeat, Unreadable, find_repeats
from tests.trace.deep import Alternating, Counted, Deep, Dropped, Hooked, Shared, Wide


def repeats(model):
    return find_repeats(model, find_blocks(model))


def paths(*numbers):
    return tuple(f"blocks.{n}" for n in numbers)


def test_first_two_and_last_are_traced_and_a_counter_may_differ():
    expected = Repeat("blocks.1", "blocks.8", paths(2, 3, 4, 5, 6, 7), ("layer_idx",))
    assert repeats(Deep(Counted)) == (expected,)


def test_other_attributes_divide():
    assert repeats(Deep(Alternating)) == ()  # classes of three and six, each again by its shift
    assert repeats(Deep(Dropped)) == ()
    (wide,) = repeats(Deep(Wide))
    assert (wide.template, wide.check, wide.omitted) == ("blocks.3", "blocks.8", paths(4, 5, 6, 7))


def test_shared_tensors_and_hooks_divide():
    assert repeats(Shared()) == ()
    (hooked,) = repeats(Hooked())
    assert "blocks.5" not in hooked.omitted


@pytest.mark.parametrize("change", ["dtype", "frozen", "mode", "plain tensor", "function"])
def test_a_single_difference_is_seen(change):
    model = Deep(Counted)
    block = model.blocks[4]
    changes = {
        "dtype": lambda: block.linear.to(torch.float64),
        "frozen": lambda: block.linear.weight.requires_grad_(False),
        "mode": lambda: setattr(block.linear, "training", False),
        "plain tensor": lambda: setattr(block.linear, "kept", torch.ones(1)),
        "function": lambda: setattr(block.linear, "activation", F.relu),
    }
    changes[change]()
    (found,) = repeats(model)
    assert "blocks.4" not in found.omitted
    assert set(found.omitted) == set(paths(2, 3, 5, 6, 7))


def test_equal_functions_with_arguments_are_equal():
    model = Deep(Counted)
    for number, block in enumerate(model.blocks):
        block.activation = functools.partial(F.gelu, approximate="tanh" if number < 5 else "none")
    assert [r.omitted for r in repeats(model)] == [paths(2, 3), paths(7)]


def test_small_groups_are_traced_in_full():
    assert repeats(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])) == ()
    assert repeats(nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])) == (
        Repeat("1", "3", ("2",), ()),
    )


USES = {
    "equality": lambda x: x == 1, "truth": bool, "text": lambda x: f"{x}", "key": lambda x: {x: 1},
    "arithmetic": lambda x: x + 1, "order": lambda x: x < 3, "index": lambda x: [1, 2][x],
    "number": float, "range": range,
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_a_hidden_counter_cannot_be_read(use):
    with pytest.raises((NotRepeatedError, TypeError)):
        USES[use](Unreadable())
    assert Unreadable() is not None
