"""What a module or function that cannot be traced makes, keeps and costs, seen by running it.

It runs on small random inputs on the CPU, in a thread of its own, where the trace's modes do not
hold. The weights of a large module are one number each, expanded to the weight's shape, which takes
no memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import flop_registry

from autopar.graph import Size
from autopar.trace.nests import describe_results, fill, rebuild
from autopar.trace.private import TorchDispatchMode

# The weights' values do not matter much, as long as no result grows or vanishes.
WEIGHT = 0.02
# Modules with more parameters than this are not drawn.
MOST_DRAWN = 1 << 22
SMALL, LARGE = 2, 4
WHOLE_TRIALS = 6
Described = tuple[tuple[Size, ...], torch.dtype]


@dataclass(frozen=True)
class Observed:
    """What running a module or function told.

    Attributes:
        arguments: shape and dtype of each tensor that is passed.
        made: shape and dtype of each tensor that is returned.
        results: the nest of what is returned (``nests.describe_results``).
        template: the same with tensors on ``meta``.
        learned: for each tensor whether it has a gradient.
        mixes: whether results of a sample depend on other samples, or results of all samples are
            neither sums nor means over them.
        flops: of the forward of one sample.
        saved_bytes: kept for backward per sample, besides arguments and weights.
        sums: whether a result of all samples is a sum over them, and no mean.
        finite: whether all results were.
    """

    arguments: tuple[Described, ...]
    made: tuple[Described, ...]
    results: Any
    template: Any
    learned: tuple[bool, ...]
    mixes: bool
    flops: int
    saved_bytes: int
    sums: bool
    finite: bool


@dataclass(frozen=True)
class _Run:
    """One run: what is returned, its form and what else it holds, tensors, flops, kept bytes."""

    output: Any
    results: tuple[Any, list[Any]]
    tensors: list[Tensor]
    flops: int
    saved_bytes: int

    def forms(self) -> list[Any]:
        """What has to be the same for every micro-batch of one size."""
        return [(t.shape, t.dtype, t.requires_grad) for t in self.tensors]


@dataclass(frozen=True)
class _Draw:
    """Random arguments: integers are indices into anything, 0 or 1, or with ``least`` 1 lengths.

    Numbers are of either sign, unless ``positive``: variances, say, which are checked.
    """

    least: int
    positive: bool
    learned: bool

    @property
    def trials(self) -> int:
        """How often samples are drawn: a whole model may branch on what they are together."""
        return 1 if self.learned else WHOLE_TRIALS

    def __call__(self, shape: list[int], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point or dtype.is_complex:
            drawn = torch.randn(shape, dtype=dtype)
            return (drawn.abs() if self.positive else drawn).requires_grad_(self.learned)
        return torch.randint(self.least, 2, shape).to(dtype)


class _ChangesError(Exception):
    """What is run changes what it is passed."""


class _Flops(TorchDispatchMode):
    """Adds up the flops of operations.

    torch's ``FlopCounterMode`` does too, but also watches modules, by hooks that forbid derivatives
    within a forward.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=made)
        return made


def observe(
    module: Any, call: Any, arguments: Sequence[Described], *, learned: bool = True
) -> Observed | None:
    """Runs ``module`` on two samples, on two others, and on all four.

    Args:
        module: or a function; its weights may be on ``meta``.
        call: positional and keyword arguments, tensors by number (``nests.describe_arguments``).
        arguments: these tensors.
        learned: whether gradients flow into them, where they are no integers.

    Returns:
        None if it cannot be run so, if what it returns depends on more than the number of
        samples, or if it changes what it is passed or holds.
    """
    draws = (_Draw(*kind, learned) for kind in ((0, False), (1, False), (1, True)))
    infinite: Observed | None = None
    for draw in draws:
        try:
            with ThreadPoolExecutor(1) as thread:
                seen = thread.submit(_observe, module, call, tuple(arguments), draw).result()
        except _ChangesError:  # with these numbers; it would not show with others
            return None
        except Exception:  # a user's module, which may raise anything
            continue
        if seen is None or seen.finite:
            return seen or infinite
        infinite = infinite or seen  # a loss of what cannot be tells nothing of sums and means
    return infinite


def _observe(
    module: Any, call: Any, arguments: tuple[Described, ...], draw: _Draw
) -> Observed | None:
    runs = _runs(module, call, arguments, draw)
    first, _, _, large, *rest = runs
    same = first.results == large.results
    same = same and all((r.results, r.forms()) == (first.results, first.forms()) for r in runs[1:3])
    same = same and all(r.forms() == first.forms() for r in rest)
    if not same or not first.tensors:
        return None
    made = [_described(a, b) for a, b in zip(first.tensors, large.tensors, strict=True)]
    found = [described for described in made if described is not None]
    if len(found) < len(made):
        return None
    mixes = _mixes(runs) or any(
        _mixes(_runs(module, call, arguments, draw, seed)) for seed in range(1, draw.trials)
    )
    metas = (tensor.detach().to("meta") for tensor in first.tensors)
    return Observed(
        arguments, tuple(found), first.results[0], rebuild(first.output, metas),
        tuple(tensor.requires_grad for tensor in first.tensors), mixes,
        max(0, large.flops - first.flops) // SMALL,
        max(0, large.saved_bytes - first.saved_bytes) // SMALL,
        any(map(_is_sum, first.tensors, runs[2].tensors, large.tensors)),
        all(bool(tensor.isfinite().all()) for run in runs for tensor in run.tensors),
    )  # fmt: skip


def _mixes(runs: list[_Run]) -> bool:
    """Whether the results of four samples are not those of two and two, and not by chance."""
    first, again, second, large, *_ = (run.tensors for run in runs)
    return _equal(first, again) and not all(map(_joins, first, second, large))


def _described(small: Tensor, large: Tensor) -> Described | None:
    """Shape and dtype of a result, None if it grows otherwise than with the batch."""
    pairs = list(zip(small.shape, large.shape, strict=True))
    if any(b not in (a, 2 * a) for a, b in pairs):
        return None
    sizes = (Size(a // SMALL, 1) if b == 2 * a and a else Size(a) for a, b in pairs)
    return tuple(sizes), small.dtype


def _runs(
    module: Any, call: Any, arguments: tuple[Described, ...], draw: _Draw, seed: int = 0
) -> list[_Run]:
    """Two samples, the same by another chance, two others, all four, and two of zeros if it can.

    The last shows sizes that depend on values, as those of ``nonzero`` do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        large = [draw([s.at(LARGE) for s in shape], dtype) for shape, dtype in arguments]
        weights = _weights(module)
    halves = [
        [_half(tensor, shape, k) for tensor, (shape, _) in zip(large, arguments, strict=True)]
        for k in range(2)
    ]
    rows = [(halves[0], SMALL, 0), (halves[0], SMALL, 1), (halves[1], SMALL, 0), (large, LARGE, 0)]
    runs = [_run(module, weights, call, *row) for row in rows]
    zeros = [torch.zeros_like(t).requires_grad_(t.requires_grad) for t in halves[0]]
    with contextlib.suppress(Exception):
        runs.append(_run(module, weights, call, zeros, SMALL, 0))
    return runs


def _half(tensor: Tensor, shape: tuple[Size, ...], k: int) -> Tensor:
    """The first or second half of the samples."""
    for dim, size in enumerate(shape):
        if size.power:
            tensor = tensor.chunk(2, dim)[k]
    return tensor


def _run(
    module: Any, weights: dict[str, Tensor], call: Any, inputs: list[Tensor], batch: int, seed: int
) -> _Run:
    given = [tensor.clone() for tensor in inputs]
    known = {_storage(tensor) for tensor in (*given, *weights.values())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    args, kwargs = fill(call, given, batch)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[]), _Flops() as counter, hooks:
        torch.manual_seed(seed)
        if isinstance(module, nn.Module):
            output = functional_call(module, weights, args, kwargs)
        else:
            output = module(*args, **kwargs)
    if not _equal(inputs, given):
        raise _ChangesError
    tensors: list[Tensor] = []
    others: list[Any] = []
    results = describe_results(output, tensors, others), others
    saved = sum(size for storage, size in kept.items() if storage not in known)
    return _Run(output, results, tensors, counter.total, saved)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _joins(first: Tensor, second: Tensor, large: Tensor) -> bool:
    """Whether a result of four samples is those of two and two: joined, added up or averaged."""
    dims = [d for d, (a, b) in enumerate(zip(first.shape, large.shape, strict=True)) if a != b]
    if dims:
        return len(dims) == 1 and _close(torch.cat([first, second], dims[0]), large)
    if not large.is_floating_point():
        return _close(first, second)
    return any(_close(whole, large) for whole in (first + second, (first + second) / 2))


def _is_sum(first: Tensor, second: Tensor, large: Tensor) -> bool:
    """Whether a result of four samples is that of two and two added up, and not their mean."""
    if first.shape != large.shape or not large.is_floating_point():
        return False
    return _close(first + second, large) and not _close((first + second) / 2, large)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def _weights(module: Any) -> dict[str, Tensor]:
    """Stand-ins for parameters and buffers of a module."""
    if not isinstance(module, nn.Module):
        return {}
    drawn = sum(parameter.numel() for parameter in module.parameters()) <= MOST_DRAWN
    learned = {n: _weight(p, drawn=drawn) for n, p in module.named_parameters()}
    return learned | {n: _weight(b, drawn=False) for n, b in module.named_buffers()}


def _weight(tensor: Tensor, *, drawn: bool) -> Tensor:
    if drawn and tensor.is_floating_point():
        whole = WEIGHT * torch.randn(tensor.shape, dtype=tensor.dtype)
    else:
        value = WEIGHT if tensor.is_floating_point() else 0
        whole = torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)
    return whole.requires_grad_(tensor.requires_grad)
