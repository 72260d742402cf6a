"""Whole state dicts of a program's model, for sessions that hold one in their hands.

A program by itself writes checkpoints, which ``torch.distributed.checkpoint.format_utils`` turns
into whole files, so it needs none of this.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

State = dict[str, Tensor]
Fused = tuple[int, int]


def add_whole_states(program: ModuleType) -> None:
    """Gives the ``ParallelModel`` of an emitted program two more methods.

    ``full_state_dict(state=None)`` returns parameters and buffers, or ``state``, as whole CPU
    tensors on rank 0 and {} elsewhere; ``load_full_state_dict(state)`` takes what it returned, of
    which only that of rank 0 is read.
    """
    mesh_axes = ("dp", "replicate", "shard", "tp")

    def full_state_dict(self: Any, state: State | None = None) -> State:
        mesh = getattr(program, "MESH", None)
        leads = mesh is None or all(
            axis not in mesh.mesh_dim_names or mesh.get_local_rank(axis) == 0 for axis in mesh_axes
        )
        found = {}
        for name, tensor in (self.state_dict() if state is None else state).items():
            value = whole(tensor, fused(self).get(name))
            if leads:
                found[name] = value.to("cpu", copy=True)
        if leads and getattr(program, "PP", 1) > 1:
            assert mesh is not None
            parts: list[Any] | None = [None] * program.PP if dist.get_rank() == 0 else None
            dist.gather_object(found, parts, group=mesh.get_group("pp"), group_dst=0)
            found = {name: tensor for part in parts or () for name, tensor in part.items()}
        return found

    @torch.no_grad()
    def load_full_state_dict(self: Any, state: State) -> None:
        names, mine = [list(state)], self.state_dict()
        broadcast(names)
        if missing := sorted(mine.keys() - set(names[0])):
            raise ValueError(f"found no value for {missing}, expected all parameters and buffers")
        for name in names[0]:
            value: list[Any] = [state.get(name)]
            broadcast(value)
            if name in mine:
                assign(mine[name], value[0], fused(self).get(name))

    program.ParallelModel.full_state_dict = full_state_dict
    program.ParallelModel.load_full_state_dict = load_full_state_dict


def fused(parallel: Any) -> dict[str, Fused]:
    """{parameter: (dim, parts)} of several stacked ones, whose dim a program stores as two."""
    return getattr(parallel, "fused", {})


def broadcast(objects: list[Any]) -> None:
    """Those of rank 0, where there are others."""
    if dist.is_initialized():
        dist.broadcast_object_list(objects)


def whole(tensor: Tensor, stacked: Fused | None) -> Tensor:
    """The whole of a tensor, in the shape that the user's model gives it."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.flatten(stacked[0], stacked[0] + 1) if stacked and tensor.ndim else tensor


def assign(tensor: Tensor, value: Tensor, stacked: Fused | None) -> None:
    """Writes this rank's part of ``value``, a whole tensor in the shape of the user's model."""
    if stacked:
        value = value.view(
            *value.shape[: stacked[0]], stacked[1], -1, *value.shape[stacked[0] + 1 :]
        )
    if not isinstance(tensor, DTensor):
        tensor.copy_(value)
        return
    mesh, placements = tensor.device_mesh, tensor.placements
    value = value.to(tensor.device)
    part = distribute_tensor(value, mesh, placements, src_data_rank=None)
    tensor.to_local().copy_(part.to_local())
