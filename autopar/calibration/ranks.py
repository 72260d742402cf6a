"""Collectives between local ranks: one process each, over the loopback interface on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.calibration.overheads import overhead_seconds
from autopar.calibration.points import SWEEPS, Point
from autopar.calibration.rows import Rows
from autopar.calibration.sampling import LEAST_ROUNDS, ROUNDS, missing
from autopar.errors import CostModelError

_START_SECONDS = 60.0
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
_SAMPLE_BYTES = 2**20  # a sample repeats a collective until about so much was sent
_LEAST_REPEATS, _MOST_REPEATS = 4, 10
_COMPUTE_WIDTH = 384  # of a product that takes about a millisecond on a core


@dataclass(frozen=True)
class Job:
    """What the ranks of one world measure, and until when by ``time.time``."""

    device: str
    device_name: str
    csv_path: Path
    size: int
    ranks: int
    deadline: float
    store: str

    def points(self) -> list[Point]:
        """The points of this group size."""
        sweep = SWEEPS[self.device]
        toys = sweep.overhead_points() if self.size == self.ranks == 2 else []
        return toys + sweep.collective_points(self.size, self.ranks)


def group_sizes(ranks: int) -> list[int]:
    """Powers of two up to ``ranks``, which is how tensor and data degrees come."""
    return [size for size in (2, 4, 8, 16) if size <= ranks]


def measure_collectives(
    csv_path: Path, device: str, device_name: str, size: int, ranks: int, seconds: float
) -> None:
    """Starts ``ranks`` processes that append their samples of groups of ``size``.

    Raises:
        CostModelError: the ranks failed, or did not end in time; none is left behind.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            device, device_name, csv_path, size, ranks, time.time() + seconds, f"{folder}/store"
        )
        if not missing(Rows(csv_path, device_name), job.points(), ROUNDS - 1):
            return
        _run(job, limit=time.monotonic() + seconds + _START_SECONDS * ranks)


def _run(job: Job, limit: float) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, job)) for rank in range(job.ranks)]
    try:
        for process in ranks:
            process.start()
        _watch(job, ranks, limit)
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()


def _watch(job: Job, ranks: Sequence[BaseProcess], limit: float) -> None:
    """Returns when every rank has ended well; one that fails ends the wait for the others."""
    while any(process.exitcode != 0 for process in ranks):
        if any(process.exitcode for process in ranks):
            reason = Path(job.store + ".error")
            raise _failed(job, reason.read_text() if reason.exists() else "a rank was killed")
        if time.monotonic() > limit:
            raise _failed(job, "no end in time")
        time.sleep(0.05)


def _failed(job: Job, found: str) -> CostModelError:
    return CostModelError(
        f"{job.ranks} local ranks could not measure their collectives: {found}",
        expected="ranks that reach each other on this host",
        where=f"calibration of {job.device_name}",
        hint="run it again, it continues where it stopped; or calibrate with --ranks 1",
    )


def _rank(rank: int, job: Job) -> None:
    """The work of one rank; rank 0 keeps the time."""
    torch.set_num_threads(1)
    backend = "nccl" if job.device == "cuda" else "gloo"
    if job.device == "cuda":
        torch.cuda.set_device(rank)
    elif sys.platform in _LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK[sys.platform])
    timeout = timedelta(seconds=_START_SECONDS)
    dist.init_process_group(
        backend, init_method=f"file://{job.store}", rank=rank, world_size=job.ranks, timeout=timeout
    )
    try:
        _sample_all(rank, job)
    except Exception as error:
        Path(job.store + ".error").write_text(f"rank {rank}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def _sample_all(rank: int, job: Job) -> None:
    rows = Rows(job.csv_path, job.device_name) if rank == 0 else None
    starts = range(0, job.ranks, job.size)
    groups = [dist.new_group(list(range(start, start + job.size))) for start in starts]
    mine = groups[rank // job.size]
    points = job.points()
    steps: dict[Point, Callable[[], object]] = {}
    calm_gloo()
    for number in range(ROUNDS):
        for index in _agreed(rows, points, number, job):
            point = points[index]
            dist.barrier()
            if point.curve == "overheads":
                seconds = overhead_seconds(point, job.device, steps)
            else:
                taking_part = rank < job.size * point.shape[2]
                seconds = _sample(point, mine, job.device) if taking_part else 0.0
            calm_gloo()
            if rows is not None:
                rows.add(point, seconds)


def _agreed(rows: Rows | None, points: list[Point], number: int, job: Job) -> list[int]:
    """Indices of the points to sample in this round, the same on every rank."""
    wanted: list[list[int]] = [[]]
    if rows is not None and (number < LEAST_ROUNDS or time.time() < job.deadline):
        lacking = set(missing(rows, points, number))
        wanted = [[index for index, point in enumerate(points) if point in lacking]]
    dist.broadcast_object_list(wanted, src=0)
    return wanted[0]


def _sample(point: Point, group: dist.ProcessGroup, device: str) -> float:
    payload, size, _ = point.shape
    call = _CALLS[point.variant](group, payload // 4, size, device)
    repeats = min(_MOST_REPEATS, max(_LEAST_REPEATS, _SAMPLE_BYTES // payload))
    call()
    timed = _repeated if device == "cuda" else _between_computing
    messages = 2 if point.variant == "send_recv" else 1
    return timed(call, repeats) / (repeats * messages)


def _repeated(call: Callable[[], object], repeats: int) -> float:
    """Seconds of ``repeats`` calls that a device works through one after the other."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _between_computing(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the calls alone, each behind some computing, as in a training step.

    Threads that wait for a collective on a CPU have to be woken, and ranks never arrive
    together: in a loop of nothing but collectives neither shows.
    """
    work = torch.ones(_COMPUTE_WIDTH, _COMPUTE_WIDTH)
    seconds = 0.0
    for _ in range(repeats):
        torch.mm(work, work)
        start = time.perf_counter()
        call()
        seconds += time.perf_counter() - start
    return seconds


def calm_gloo() -> None:
    """As emitted programs do on CPU hosts: see ``emit/templates/setup.py.j2``."""
    for task in os.listdir("/proc/self/task") if hasattr(os, "SCHED_BATCH") else ():
        if Path(f"/proc/self/task/{task}/comm").read_text().strip() == "gloo_tcp_loop":
            os.sched_setscheduler(int(task), os.SCHED_BATCH, os.sched_param(0))


# --- the collectives, each with ``elements`` of float32 in the full tensor ---

# torch 2.13 renamed both; the old names warn there, the new ones are unknown to 2.11.
_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Make = Callable[[dist.ProcessGroup, int, int, str], Callable[[], object]]


def _all_reduce(group: dist.ProcessGroup, elements: int, size: int, device: str) -> partial[object]:
    return partial(dist.all_reduce, torch.ones(elements, device=device), group=group)


def _all_gather(group: dist.ProcessGroup, elements: int, size: int, device: str) -> partial[object]:
    whole, part = _whole_and_part(elements, size, device)
    return partial(_GATHER, whole, part, group=group)


def _reduce_scatter(
    group: dist.ProcessGroup, elements: int, size: int, device: str
) -> partial[object]:
    whole, part = _whole_and_part(elements, size, device)
    return partial(_SCATTER, part, whole, group=group)


def _all_to_all(group: dist.ProcessGroup, elements: int, size: int, device: str) -> partial[object]:
    whole, _ = _whole_and_part(elements, size, device)
    return partial(dist.all_to_all_single, torch.empty_like(whole), whole, group=group)


def _broadcast(group: dist.ProcessGroup, elements: int, size: int, device: str) -> partial[object]:
    tensor = torch.ones(elements, device=device)
    return partial(dist.broadcast, tensor, group=group, group_src=0)


def _send_recv(group: dist.ProcessGroup, elements: int, size: int, device: str) -> partial[None]:
    return partial(_ping, torch.ones(elements, device=device), group)


def _ping(tensor: Tensor, group: dist.ProcessGroup) -> None:
    """A message there and one back, so that the sender's clock sees the receiver's end."""
    if group.rank() == 0:
        dist.send(tensor, group=group, group_dst=1)
        dist.recv(tensor, group=group, group_src=1)
    else:
        dist.recv(tensor, group=group, group_src=0)
        dist.send(tensor, group=group, group_dst=0)


def _whole_and_part(elements: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    part = torch.ones(max(1, elements // size), device=device)
    return torch.ones(part.numel() * size, device=device), part


_CALLS: dict[str, Make] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "send_recv": _send_recv,
}
