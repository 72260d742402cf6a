"""Bytes of live tensors on a rank, where there is no allocator to ask."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from autopar.trace.private import TorchDispatchMode, tree_leaves

Storages = dict[int, weakref.ref[torch.UntypedStorage]]


class PeakBytes(TorchDispatchMode):
    """``with PeakBytes(known) as seen: ...`` then ``seen.peak``.

    Counts each storage once, from the op that made it until the last tensor on it is gone, with
    the size that it has: ``fully_shard`` keeps the storages of gathered parameters and takes
    their memory away. Of a DTensor its local part counts.
    ``known`` are tensors that are alive before: parameters, gradients, optimizer state.
    What a function wrapped by ``elsewhere`` allocates stands for another device's memory.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Storages = {}
        self.away: Storages = {}
        self.peak = self.away_peak = 0
        self.table = self.live
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
        result = func(*args, **(kwargs or {}))
        self._add(tree_leaves(result))
        return result


def _bytes(table: Storages) -> int:
    # A list, because what another thread frees meanwhile leaves the table.
    storages = [ref() for ref in list(table.values())]
    return sum(storage.nbytes() for storage in storages if storage is not None)
