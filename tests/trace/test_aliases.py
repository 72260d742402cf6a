"""Every name in the table of aliases beside what torch does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autopar.trace.aliases import ALIASES, EXPANDED, PARTS, RESHAPED

ATEN = torch.ops.aten
ROWS, PAIRS, CUBE, EVEN = (3, 4), (3, 2), (4, 6, 8), (4, 4, 4)
CALLS = {
    "view": (ATEN.view.default, CUBE, [24, 8]),
    "reshape": (ATEN.reshape.default, CUBE, [24, 8]),
    "_unsafe_view": (ATEN._unsafe_view.default, CUBE, [24, 8]),
    "flatten": (ATEN.flatten.using_ints, CUBE, 0, 1),
    "unflatten": (ATEN.unflatten.int, CUBE, 1, [2, 3]),
    "transpose": (ATEN.transpose.int, CUBE, 0, 1),
    "swapaxes": (ATEN.swapaxes.default, CUBE, 0, 1),
    "swapdims": (ATEN.swapdims.default, CUBE, 0, 1),
    "permute": (ATEN.permute.default, CUBE, [2, 0, 1]),
    "movedim": (ATEN.movedim.int, CUBE, 0, 2),
    "moveaxis": (ATEN.moveaxis.int, CUBE, 0, 2),
    "t": (ATEN.t.default, ROWS),
    "numpy_T": (ATEN.numpy_T.default, ROWS),
    "mT": (ATEN.mT.default, CUBE),
    "mH": (ATEN.mH.default, CUBE),
    "adjoint": (ATEN.adjoint.default, CUBE),
    "unsqueeze": (ATEN.unsqueeze.default, CUBE, 0),
    "squeeze": (ATEN.squeeze.default, (1, *ROWS)),
    "alias": (ATEN.alias.default, CUBE),
    "detach": (ATEN.detach.default, CUBE),
    "view_as_complex": (ATEN.view_as_complex.default, PAIRS),
    "expand": (ATEN.expand.default, (1, *ROWS), [5, *ROWS]),
    "broadcast_to": (ATEN.broadcast_to.default, (1, *ROWS), [5, *ROWS]),
    "slice": (ATEN.slice.Tensor, CUBE, 1, 0, 3),
    "narrow": (ATEN.narrow.default, CUBE, 1, 0, 3),
    "select": (ATEN.select.int, CUBE, 1, 0),
    "split": (ATEN.split.Tensor, CUBE, 2, 2),
    "chunk": (ATEN.chunk.default, CUBE, 2, 2),
    "split_with_sizes": (ATEN.split_with_sizes.default, CUBE, [2, 6], 2),
    "tensor_split": (ATEN.tensor_split.sections, CUBE, 2, 2),
    "hsplit": (ATEN.hsplit.int, CUBE, 2),
    "vsplit": (ATEN.vsplit.int, CUBE, 2),
    "dsplit": (ATEN.dsplit.int, CUBE, 2),
    "unbind": (ATEN.unbind.int, CUBE, 1),
    "diagonal": (ATEN.diagonal.default, CUBE),
    "unfold": (ATEN.unfold.default, CUBE, 1, 2, 1),
    "view_as": (ATEN.view_as.default, EVEN, torch.zeros(16, 4)),
    "expand_as": (ATEN.expand_as.default, (1, *ROWS), torch.zeros(5, *ROWS)),
}  # fmt: skip
COMPLEX = {
    "view_as_real": (ATEN.view_as_real.default, ROWS),
    "real": (ATEN.real.default, ROWS),
    "imag": (ATEN.imag.default, ROWS),
}


def run(name: str) -> tuple[Tensor, list[Tensor]]:
    """A tensor with a gradient, and what the operation makes of it."""
    op, shape, *args = {**CALLS, **COMPLEX}[name]
    dtype = torch.complex64 if name in COMPLEX else torch.float32
    source = torch.randn(shape, dtype=dtype, requires_grad=True)
    made = op(source, *args)
    return source, list(made) if isinstance(made, list | tuple) else [made]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_every_alias_is_tried():
    assert CALLS.keys() | COMPLEX.keys() == ALIASES
    assert len(ALIASES) == len(RESHAPED) + len(EXPANDED) + len(PARTS)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_results_share_memory(name):
    source, made = run(name)
    assert {storage(tensor) for tensor in made} == {storage(source)}
    sizes = [tensor.numel() * tensor.element_size() for tensor in made]
    whole = source.numel() * source.element_size()
    if name in RESHAPED:
        assert sizes == [whole]
    elif name in EXPANDED:
        assert min(sizes) > whole


@pytest.mark.parametrize("name", sorted(ALIASES - {"detach"}))
def test_gradients_of_what_is_reshaped_share_memory(name):
    source, made = run(name)
    given = [torch.randn(tensor.shape, dtype=tensor.dtype) for tensor in made]
    (found,) = torch.autograd.grad(made, source, given)
    assert (storage(found) in map(storage, given)) == (name in RESHAPED)


def test_detached_results_have_no_gradient():
    _, (made,) = run("detach")
    assert not made.requires_grad
