"""Runs a function on n gloo ranks of this host.

Each job has processes of its own, because torch caches device meshes beyond the life of their
process groups. They are forked from a server that imported torch once, which takes a fraction
of a second; a job that fails or does not end in time leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

PRELOAD = (
    "torch",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor",
    "torch.utils.checkpoint",
)
GRACE_SECONDS = 2.0


class RankError(AssertionError):
    """A rank raised, died or did not end in time; the message holds its traceback."""


class Pool:
    """Starts ranks.

    Args:
        root: directory put on the ranks' ``sys.path``.
        preload: further modules that the server imports once for all ranks.
    """

    def __init__(self, root: Path, preload: tuple[str, ...] = ()) -> None:
        self.root = root
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*PRELOAD, *preload])

    def run(
        self,
        size: int,
        function: Callable[..., Any],
        *args: Any,
        timeout: float = 60.0,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls ``function(*args, **kwargs)`` on every one of ``size`` ranks; results by rank.

        Raises:
            RankError: a rank raised or died, or the job took longer than ``timeout`` seconds.
        """
        file = sys.modules[function.__module__].__file__
        call = (file, function.__qualname__, args, kwargs)
        workers = []
        with tempfile.TemporaryDirectory() as folder:
            try:
                for rank in range(size):
                    ours, theirs = self.context.Pipe()
                    job = (str(self.root), rank, size, str(Path(folder) / "store"), call)
                    process = self.context.Process(target=work, args=(theirs, job), daemon=True)
                    process.start()
                    theirs.close()
                    workers.append((process, ours))
                return collect([pipe for _, pipe in workers], time.monotonic() + timeout)
            finally:
                for process, pipe in workers:
                    process.kill()
                    process.join()
                    pipe.close()


def collect(pipes: list[Connection], deadline: float) -> list[Any]:
    """What each rank answers, in order."""
    waiting: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(pipes)}
    results: list[Any] = [None] * len(pipes)
    failures: dict[int, str] = {}
    while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            rank = waiting.pop(pipe)
            failed, results[rank] = receive(pipe)
            if failed:
                failures[rank] = results[rank]
                # The peers now wait for a rank that is gone: they may still report, no more.
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if failures or waiting:
        raise RankError(explain(failures, sorted(waiting.values()), len(pipes)))
    return results


def receive(pipe: Any) -> tuple[bool, Any]:
    """(failed, result or traceback) of one rank."""
    try:
        return pickle.loads(pipe.recv_bytes())  # type: ignore[no-any-return]
    except EOFError:
        return True, "the process died without a Python error"


def explain(failures: dict[int, str], waiting: list[int], size: int) -> str:
    """The tracebacks by rank, and which ranks never answered."""
    lines = [f"rank {rank} of {size}:\n{text}" for rank, text in sorted(failures.items())]
    if waiting:
        lines.append(f"ranks {waiting} of {size} did not end in time")
    return "\n".join(lines)


def work(pipe: Connection, job: tuple[Any, ...]) -> None:
    """A rank's life: does its job and sends (failed, result or traceback)."""
    try:
        answer = (False, perform(*job))
    except BaseException:
        answer = (True, traceback.format_exc())
    # Not pipe.send: it would hand tensors over in shared memory that ends with this process.
    pipe.send_bytes(pickle.dumps(answer))
    # Not the usual way out: threads of a group whose peer has died would be waited for.
    pipe.close()
    os._exit(0)


def perform(root: str, rank: int, size: int, store: str, call: tuple[Any, ...]) -> Any:
    """Runs the call inside a process group, with the variables that torchrun would set."""
    import torch
    import torch.distributed as dist

    sys.path.insert(0, root)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = dist.FileStore(store, size)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=files, rank=rank, world_size=size, timeout=limit)
    file, name, args, kwargs = call
    function: Any = load(file)
    for part in name.split("."):
        function = getattr(function, part)
    result = function(*args, **kwargs)
    # A rank that leaves early takes its connections along.
    dist.barrier()
    return result


def load(file: str) -> ModuleType:
    """The module at ``file``, whether or not it lies in a package."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module
