"""Counts the collectives that a rank issues, including a pipeline's sends and receives.

A plain dispatch mode, because CommDebugMode breaks the backward pass of a pipeline schedule.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "c10d.allreduce_": "all_reduce",
    "c10d._allgather_base_": "all_gather",
    "c10d.allgather_": "all_gather",
    "c10d.allgather_into_tensor_coalesced_": "all_gather",
    "c10d._reduce_scatter_base_": "reduce_scatter",
    "c10d.reduce_scatter_": "reduce_scatter",
    "c10d.reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "c10d.alltoall_": "all_to_all",
    "c10d.alltoall_base_": "all_to_all",
    "c10d.broadcast_": "broadcast",
    "c10d.reduce_": "reduce",
    "c10d.scatter_": "scatter",
    "c10d.gather_": "gather",
    "c10d.barrier": "barrier",
    "c10d.send": "send",
    "c10d.recv_": "recv",
    "_c10d_functional.all_reduce": "all_reduce",
    "_c10d_functional.all_reduce_": "all_reduce",
    "_c10d_functional.all_gather_into_tensor": "all_gather",
    "_c10d_functional.reduce_scatter_tensor": "reduce_scatter",
    "_c10d_functional.all_to_all_single": "all_to_all",
    "_c10d_functional.broadcast": "broadcast",
}
# Part of the same namespaces, but nothing is sent.
SILENT = {"_c10d_functional.wait_tensor", "_c10d_functional._wrap_tensor_autograd"}


class Collective(NamedTuple):
    """One call: its kind, the ranks in its group (0: not told), the bytes this rank puts in."""

    kind: str
    group_size: int
    bytes: int


class CountCollectives(TorchDispatchMode):
    """``with CountCollectives() as seen: ...`` then ``seen.calls`` or ``seen.kinds``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    @property
    def kinds(self) -> dict[str, int]:
        """Number of calls of each kind."""
        return dict(Counter(call.kind for call in self.calls))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in KINDS:
            self.calls.append(Collective(KINDS[name], group_size(args), input_bytes(name, args)))
        elif "c10d" in name and name not in SILENT:
            raise AssertionError(f"unknown collective {name}: add it to KINDS")
        return func(*args, **(kwargs or {}))


def group_size(args: tuple[Any, ...]) -> int:
    """Size of the process group among ``args``, 0 where the op names its group only."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(arg).size()
            except RuntimeError:
                continue
    return 0


def input_bytes(name: str, args: tuple[Any, ...]) -> int:
    """Bytes of the tensors that the rank contributes."""
    # The in-place gathers and scatters take (output, input, ...): the input is the second.
    takes_output = name in {"c10d._allgather_base_", "c10d._reduce_scatter_base_"}
    value = args[1] if takes_output else args[0]
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
