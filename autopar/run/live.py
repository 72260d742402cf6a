"""Bytes of live tensors on a rank, where there is no allocator to ask."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from autopar.trace.private import TorchDispatchMode, tree_leaves


class PeakBytes(TorchDispatchMode):
    """``with PeakBytes(known) as seen: ...`` then ``seen.peak``.

    Counts each storage once, from the op that made it until the last tensor on it is gone, with
    the size that it has: ``fully_shard`` keeps the storages of gathered parameters and takes
    their memory away. Of a DTensor its local part counts.
    ``known`` are tensors that are alive before: parameters, gradients, optimizer state.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.peak = 0
        self._add(known)

    @property
    def current(self) -> int:
        """Bytes that are alive now."""
        # A list, because what another thread frees meanwhile leaves the table.
        storages = [ref() for ref in list(self.live.values())]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def _add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                storage = local.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = weakref.ref(storage)
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, self.current)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Runs the op and counts what it made."""
        result = func(*args, **(kwargs or {}))
        self._add(tree_leaves(result))
        return result
