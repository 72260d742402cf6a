"""What a step pays beyond kernels and wire: the runtime around a few small layers, timed by rank.

Each sample is a step of a toy that has one thing to pay for, ``fit.py`` takes differences. All of
them run on two ranks, as the program of a plan does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from autopar.calibration.points import OVERHEAD_PARAMETERS, OVERHEAD_UNITS, Point

Step = Callable[[], object]
_WARM_UP, _REPEATS = 2, 3
_ROWS = 8
# A block of a small model at a usual micro-batch: what eight of them save is 40 MB.
_CROWD_WIDTH, _CROWD_ROWS = 256, 1024


def overhead_seconds(point: Point, device: str, steps: dict[Point, Step]) -> float:
    """Seconds of one step of a toy; ``steps`` keeps what was built for earlier samples."""
    if point not in steps:
        steps[point] = _TOYS[point.variant](point.shape[0], device)
        for _ in range(_WARM_UP):
            steps[point]()
    dist.barrier()
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        steps[point]()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


class _Block(nn.Module):
    """Eight small operations: two products, a norm and an activation, views and two sums."""

    def __init__(self, width: int, device: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, device=device)
        self.up = nn.Linear(width, width, device=device)
        self.down = nn.Linear(width, width, device=device)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return result


def _chain(width: int, device: str) -> tuple[list[nn.Module], Tensor]:
    blocks: list[nn.Module] = [_Block(width, device) for _ in range(OVERHEAD_UNITS)]
    return blocks, torch.rand(_ROWS, width, device=device)


def _width(payload: int) -> int:
    """Of two square matrices of float32 that hold about ``payload`` bytes."""
    return max(16, 16 * round(math.sqrt(payload / 8) / 16))


def _forward(payload: int, device: str) -> Step:
    blocks, x = _chain(_width(payload), device)
    return partial(_run, blocks, x)


def _run(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x.sum()


def _train(blocks: list[nn.Module], x: Tensor) -> None:
    _run(blocks, x).backward()  # type: ignore[no-untyped-call]
    for block in blocks:
        for parameter in block.parameters():
            parameter.grad = None


def _both(payload: int, device: str) -> Step:
    blocks, x = _chain(_width(payload), device)
    return partial(_train, blocks, x)


def _checkpointed(payload: int, device: str) -> Step:
    blocks, x = _chain(_width(payload), device)
    again = [partial(checkpoint, block, use_reentrant=False) for block in blocks]

    def step() -> None:
        result = x
        for block in again:
            result = block(result)
        result.sum().backward()  # type: ignore[no-untyped-call]
        for own in blocks:
            own.zero_grad(set_to_none=True)

    return step


def _sharded(zero: int, payload: int, device: str, *, reduce: bool = True) -> Step:
    size = dist.get_world_size()
    mesh = init_device_mesh(device, (size, 1), mesh_dim_names=("dp", "one"))
    over: DeviceMesh = mesh if zero == 0 else mesh["dp"]
    blocks, x = _chain(_width(payload), device)
    root = nn.Sequential(*blocks)
    for block in blocks:
        fully_shard(block, mesh=over, reshard_after_forward=zero == 3)
    fully_shard(root, mesh=over, reshard_after_forward=zero == 3)
    root.set_requires_gradient_sync(reduce)  # type: ignore[operator]

    def step() -> None:
        root(x).sum().backward()
        root.zero_grad(set_to_none=True)

    return step


def _pipeline(payload: int, device: str, *, split: bool = False) -> Step:
    """Two stages of one small block each, ``OVERHEAD_UNITS`` micro-batches.

    1f1b, or the zero bubble schedule, in which backward is ``split``.
    """
    rank, width = dist.get_rank(), _width(payload)
    block = _Block(width, device)
    example = torch.empty(_ROWS, width, device="meta", requires_grad=rank > 0)
    sent = torch.empty(_ROWS, width, device="meta", requires_grad=True)
    stage = PipelineStage(
        block, rank, 2, torch.device(device), input_args=(example,), output_args=(sent,)
    )
    schedule = _schedule(stage, split=split)
    x = torch.rand(_ROWS * OVERHEAD_UNITS, width, device=device)

    def step() -> None:
        args = (x,) if rank == 0 else ()
        kwargs: dict[str, Any] = {"target": x} if rank == 1 else {}
        schedule.step(*args, **kwargs, return_outputs=False)
        block.zero_grad(set_to_none=True)

    return step


def _schedule(stage: PipelineStage, *, split: bool) -> Any:
    def loss_fn(y: Tensor, _: Tensor) -> Tensor:
        return y.sum()

    if split:
        return ScheduleInterleavedZeroBubble([stage], OVERHEAD_UNITS, loss_fn=loss_fn)
    return Schedule1F1B(stage, OVERHEAD_UNITS, loss_fn=loss_fn)


def _parameters(payload: int, device: str, *, split: bool) -> list[nn.Parameter]:
    size = dist.get_world_size()
    mesh = init_device_mesh(device, (size,))
    parts = [torch.rand(max(1, payload // 4), device=device) for _ in range(OVERHEAD_PARAMETERS)]
    if not split:
        return [nn.Parameter(part) for part in parts]
    return [nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)])) for part in parts]


def _read(payload: int, device: str, *, split: bool) -> Step:
    """Reads parameters and makes their gradients."""
    parameters = _parameters(payload, device, split=split)

    def step() -> None:
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
        sum(part.sum() for part in parts).backward()  # type: ignore[union-attr]
        for parameter in parameters:
            parameter.grad = None

    return step


def _update(payload: int, device: str, *, split: bool) -> Step:
    parameters = _parameters(payload, device, split=split)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return optimizer.step


@torch.no_grad()
def _clip_all(parameters: list[nn.Parameter]) -> None:
    """As the emitted program's ``clip_grad_norm_``, without the all-reduce."""
    grads = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
    squares = torch.zeros(())
    for grad in grads:
        assert grad is not None
        squares += grad.float().norm().square() / 2
    for grad in grads:
        assert grad is not None
        grad.mul_(squares.clamp(max=1.0).to(grad.dtype))


def _clip(payload: int, device: str) -> Step:
    parameters = _parameters(payload, device, split=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return partial(_clip_all, parameters)


def _crowd(_: int, device: str, *, ranks: int) -> Step:
    """Passes of blocks that caches do not hold, on so many ranks while the others wait."""
    if dist.get_rank() >= ranks:
        return lambda: None
    blocks: list[nn.Module] = [_Block(_CROWD_WIDTH, device) for _ in range(OVERHEAD_UNITS)]
    return partial(_train, blocks, torch.rand(_CROWD_ROWS, _CROWD_WIDTH, device=device))


_TOYS: dict[str, Callable[[int, str], Step]] = {
    "forward": _forward,
    "both": _both,
    "checkpoint": _checkpointed,
    "unreduced": partial(_sharded, 0, reduce=False),
    "zero0": partial(_sharded, 0),
    "zero2": partial(_sharded, 2),
    "zero3": partial(_sharded, 3),
    "pipeline": _pipeline,
    "pipeline_split": partial(_pipeline, split=True),
    "read_plain": partial(_read, split=False),
    "read_split": partial(_read, split=True),
    "update_plain": partial(_update, split=False),
    "update_split": partial(_update, split=True),
    "clip": _clip,
    "alone": partial(_crowd, ranks=1),
    "together": partial(_crowd, ranks=2),
}
