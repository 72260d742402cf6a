"""Runs an emitted program under torchrun with restarts, kills its ranks, reads what it leaves."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from autopar.run.launch import end_group, output_of, rendezvous, start_agent

LOOK_SECONDS = 0.02


class Run:
    """torchrun agents on this host, and the ranks that they have started.

    Args:
        command: of one rank: the program and its arguments.
        ranks: how many there are, on all nodes.
        folder: where what they print goes.
        restarts: how often each agent starts its ranks again.
        nodes: how many agents.
    """

    def __init__(
        self, command: list[str], ranks: int, folder: Path, restarts: int = 0, nodes: int = 1
    ) -> None:
        self.program, self.size, self.folder = command[0], ranks, folder
        share = ["--nproc-per-node", str(ranks // nodes), "--max-restarts", str(restarts)]
        self.agents = [
            start_agent([*options, *share, *command], folder, node)
            for node, options in enumerate(rendezvous(nodes))
        ]

    def output(self) -> str:
        """What the ranks printed so far, over all restarts."""
        nodes = range(len(self.agents))
        return "\n".join(output_of(self.folder, node).read_text(errors="replace") for node in nodes)

    def steps(self) -> list[tuple[int, str]]:
        """(step, loss as it is printed) in the order of time, over all restarts."""
        found = re.findall(r"^step (\d+): loss (\S+),", self.output(), re.MULTILINE)
        return [(int(step), loss) for step, loss in found]

    def ranks(self) -> set[int]:
        """Process ids of the ranks that are there."""
        return {pid for agent in self.agents for pid in children(agent.pid)
                if self.program in command_line(pid)}  # fmt: skip

    def ended(self) -> bool:
        """Whether all agents have ended, or one has given up."""
        codes = [agent.poll() for agent in self.agents]
        return any(codes) or None not in codes

    def wait(self, until: Callable[[], bool], deadline: float) -> bool:
        """Whether ``until`` holds before the run ends; a deadline that is missed is an error."""
        while not until():
            if self.ended():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(self.output()[-3000:])
            time.sleep(LOOK_SECONDS)
        return True


@contextmanager
def started(*args: Any, **kwargs: Any) -> Iterator[Run]:
    """A run of which nothing is left behind the block."""
    run = Run(*args, **kwargs)
    try:
        yield run
    finally:
        for agent in run.agents:
            end_group(agent)


def children(pid: int) -> list[int]:
    """Processes that a process has started, by whichever of its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has just ended
            continue
    return found


def command_line(pid: int) -> str:
    """The command of a process, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@dataclass
class Killer:
    """Kills random ranks of a run at random moments.

    Attributes:
        run: whose ranks.
        random: what chooses.
        deadline: of the monotonic clock; when to give up.
        start_seconds: what ranks take from their start to their first step.
        step_seconds: what a step and a save take.
        gone: ranks that were there when one was killed. On several nodes the others may stay, if
            they had not met it yet: then they go on with the one that takes its place.
        steps_then: how many steps there were at that moment.
    """

    run: Run
    random: Random
    deadline: float
    start_seconds: float = 4.0
    step_seconds: float = 0.1
    gone: set[int] = field(default_factory=set)
    steps_then: int = 0

    def kill(self) -> bool:
        """Kills a rank, unless the run ends before; in one of four cases before a first step."""
        before, more = len(self.run.steps()), self.random.randrange(4)
        if not self.run.wait(lambda: self.whole(self.run.ranks()), self.deadline):
            return False
        if not self.run.wait(lambda: len(self.run.steps()) >= before + more, self.deadline):
            return False
        time.sleep(self.random.uniform(0.0, self.step_seconds if more else self.start_seconds))
        ranks, self.steps_then = self.run.ranks(), len(self.run.steps())
        if len(ranks) < self.run.size:
            return False
        self.gone |= ranks
        os.kill(self.random.choice(sorted(ranks)), signal.SIGKILL)
        return True

    def whole(self, ranks: set[int]) -> bool:
        """Whether these are all ranks, and none of them is about to follow one that was killed.

        Without that one no more than the step that it was in can end, so whoever is there still
        and has taken two goes on.
        """
        going_on = len(self.run.steps()) >= self.steps_then + 2
        return len(ranks) == self.run.size and (going_on or not ranks & self.gone)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: "model.NAME" and the optimizer's "exp_avg.NAME", ..."""
    whole = checkpoint.with_suffix(".pt")
    dcp_to_torch_save(checkpoint, whole)
    kinds = torch.load(whole, weights_only=True)
    whole.unlink()
    return {f"{kind}.{name}": t for kind, group in kinds.items() for name, t in group.items()}


def differing(one: Path, other: Path) -> list[str]:
    """Names of the tensors that are not equal, bit for bit, in two checkpoints."""
    first, second = tensors(one), tensors(other)
    return [
        n for n in sorted(first.keys() | second.keys()) if not same(first.get(n), second.get(n))
    ]


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are there and have the same type, shape and values."""
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
