"""Bytes of live tensors on a rank, where there is no allocator to ask."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.dlpack import from_dlpack

from autopar.trace.private import TorchDispatchMode, tree_leaves, tree_map

Storages = dict[int, weakref.ref[torch.UntypedStorage]]

# Two ranks' messages have no thread of gloo's.
MESSAGES = ("c10d::send", "c10d::recv_", "c10d::recv_any_source_")
# How long a collective is waited for to let go of its tensors; and one of a kind that did not,
# because the program keeps the handles of such.
RETURN_SECONDS, KEPT_SECONDS = 2.0, 0.02
FREED_SECONDS = 2e-4


class PeakBytes(TorchDispatchMode):
    """``with PeakBytes(known) as seen: ...`` then ``seen.peak``.

    Counts each storage once, from the op that made it until the last tensor on it is gone, with
    the size that it has: ``fully_shard`` keeps the storages of gathered parameters and takes
    their memory away. Of a DTensor its local part counts.
    ``known`` are tensors that are alive before: parameters, gradients, optimizer state.
    The threads of gloo let go of a collective's tensors at some time after the rank that waited
    for it went on, later on a busy host. So a collective gets tensors of its own on the same
    memory, and the next operation waits until these are gone.
    What a function wrapped by ``elsewhere`` allocates stands for another device's memory.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Storages = {}
        self.away: Storages = {}
        self.peak = self.away_peak = 0
        self.table = self.live
        self.lent: list[tuple[str, weakref.ref[Any]]] = []
        self.kept: set[str] = set()
        self.written: list[weakref.ref[Any]] = []
        self._add(known)

    def elsewhere(self, allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """``allocate``, whose result counts in ``away_peak`` instead."""

        def counted(*args: Any) -> torch.Tensor:
            self.table = self.away
            result = allocate(*args)
            self._add([result])
            self.table = self.live
            return result

        return counted

    @property
    def current(self) -> int:
        """Bytes that are alive now."""
        return _bytes(self.live)

    def _add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                storage = local.untyped_storage()
                if storage._cdata not in self.live and storage._cdata not in self.away:
                    self.table[storage._cdata] = weakref.ref(storage)
                    weakref.finalize(storage, self.table.pop, storage._cdata, None)
        self.peak = max(self.peak, self.current)
        self.away_peak = max(self.away_peak, _bytes(self.away))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Runs the op and counts what it made."""
        self._take_back(args)
        if "reduce_scatter" in func.name():
            found = (value for value in tree_leaves(args) if isinstance(value, torch.Tensor))
            self.written = [weakref.ref(tensor) for tensor in found]
        elif func.namespace == "c10d" and func.name() not in MESSAGES:
            lend = partial(self._lend, func.name())
            return func(*tree_map(lend, args), **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._add(tree_leaves(result))
        return result

    def _lend(self, collective: str, value: Any) -> Any:
        """A tensor on a storage of its own with the memory of ``value``, until that is let go."""
        if not isinstance(value, torch.Tensor):
            return value
        memory = value.detach()
        self.lent.append((f"{collective} {tuple(memory.shape)}", weakref.ref(memory)))
        return from_dlpack(memory)

    def _take_back(self, args: tuple[Any, ...]) -> None:
        """Waits, before an op on ``args``, until what collectives were lent is gone.

        A collective that is still under way, or whose handle the program keeps, holds its tensors
        by right: those are waited for once, and briefly from then on. gloo's reduce-scatter adds up
        a copy, out of which the rank itself writes the result while it waits.
        """
        if any(tensor() is args[0] for tensor in self.written if args):
            self.written.clear()
            storage = args[1].untyped_storage()
            self.lent.append((f"reduce_scatter {storage.nbytes()}", weakref.ref(storage)))
            return
        begun = time.monotonic()
        while held := {kind for kind, memory in self.lent if memory() is not None}:
            limit = RETURN_SECONDS if held - self.kept else KEPT_SECONDS
            if time.monotonic() - begun > limit:
                self.kept |= held
                break
            time.sleep(1e-5)  # lets other threads have the interpreter
        if self.lent:  # what is gone for Python is freed by its thread right after
            time.sleep(FREED_SECONDS)
        self.lent.clear()


def _bytes(table: Storages) -> int:
    # A list, because what another thread frees meanwhile leaves the table.
    storages = [ref() for ref in list(table.values())]
    return sum(storage.nbytes() for storage in storages if storage is not None)
