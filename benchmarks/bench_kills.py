"""Ranks killed at random moments, over the table of systems, under torchrun with restarts.

    python benchmarks/bench_kills.py --kills 200 [--systems ddp zero-3] [--record kills.jsonl]

Each system trains twice: undisturbed, and with one of its ranks killed (SIGKILL) again and again:
while ranks start, in the middle of a step, in a save. A kill has been recovered from if the losses
of all steps, repeated ones included, and the last checkpoint with the optimizer's state are those
of the undisturbed run, bit for bit. `--record` appends each run, `--from` goes on behind the runs
of another call, `--total` adds up what was recorded. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.run import HERE, plan_of, workload_of
from examples.systems import SYSTEMS, System, find
from tests.multiprocess.restarts import Killer, Run, differing, started

KILLS_PER_RUN = 10
STEPS_PER_KILL = 5
SECONDS_PER_KILL = 60.0
# Agents of several nodes restart on their own. Ranks that start while one of the other node, which
# has not noticed yet, is about to end may lose it while they connect, and are started once more.
RESTARTS_PER_KILL = 3


def disturb(system: System, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Trains a system with and without kills; what came of it."""
    program = folder / "program.py"
    plan_of(system).emit(str(program), model=workload_of(system))
    steps = STEPS_PER_KILL * kills + 1
    # Ranks in excess of the cores start, and step, by turns.
    patience = SECONDS_PER_KILL * max(1.0, system.ranks / (os.cpu_count() or 1))
    with training(system, program, steps, folder / "plain", 0) as run:
        finish(run, patience)
        wanted = dict(run.steps())
    begun, restarts = time.monotonic(), kills * (RESTARTS_PER_KILL if system.nodes > 1 else 1)
    with training(system, program, steps, folder / "killed", restarts) as run:
        killer = Killer(run, Random(seed), begun + patience * kills)
        done = sum(killer.kill() for _ in range(kills))
        finish(run, patience)
        losses = run.steps()
    last = Path("saved", f"step-{steps}")
    different = differing(folder / "plain" / last, folder / "killed" / last)
    different += [f"loss of step {step}" for step, loss in losses if wanted[step] != loss]
    different += [f"step {step} is lost" for step in wanted.keys() - dict(losses).keys()]
    return {
        "system": system.name, "seed": seed, "kills": done, "steps": steps,
        "steps_again": len(losses) - steps, "seconds": round(time.monotonic() - begun, 1),
        "different": different,
    }  # fmt: skip


@contextmanager
def training(
    system: System, program: Path, steps: int, folder: Path, restarts: int
) -> Iterator[Run]:
    """A run of the program that saves behind every step."""
    folder.mkdir()
    options = {
        "--steps": steps, "--data": f"{HERE / system.workload}:batches", "--checkpoint-every": 1,
        "--checkpoint": folder / "saved", "--keep": 2, "--lr": system.learning_rate,
    }  # fmt: skip
    command = [str(program), *(str(part) for option in options.items() for part in option)]
    with started(command, system.ranks, folder, restarts, system.nodes) as run:
        yield run


def finish(run: Run, seconds: float) -> None:
    """Waits for the end.

    Raises:
        RuntimeError: ranks failed more often than they were killed.
    """
    run.wait(lambda: False, time.monotonic() + seconds)
    if any(agent.wait(seconds) for agent in run.agents):
        raise RuntimeError(run.output()[-5000:])


def total(rows: list[dict[str, Any]]) -> int:
    """Prints the sums over runs; the exit status."""
    kills, different = sum(row["kills"] for row in rows), [row for row in rows if row["different"]]
    names = {row["system"] for row in rows}
    print(
        f"{kills} kills in {len(rows)} runs of {len(names)} systems: {len(different)} runs differ;"
        f" {sum(row['steps_again'] for row in rows)} steps repeated,"
        f" {sum(row['seconds'] for row in rows) / max(kills, 1):.1f} s per kill"
    )
    return int(bool(different))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--each", type=int, default=KILLS_PER_RUN, help="kills of one run")
    parser.add_argument("--systems", nargs="+", default=[system.name for system in SYSTEMS])
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then no further run")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="appends each run")
    parser.add_argument("--total", type=Path, metavar="FILE.jsonl", help="only adds up")
    args = parser.parse_args()
    if args.total:
        return total([json.loads(line) for line in args.total.read_text().splitlines()])
    rows, begun = [], time.monotonic()
    for number in range(args.first, args.first + -(-args.kills // args.each)):
        if time.monotonic() - begun > args.seconds:
            break
        name = args.systems[number % len(args.systems)]
        with tempfile.TemporaryDirectory(prefix="autopar-kills-") as folder:
            rows.append(disturb(find(name), args.each, number, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
        if args.record:
            with args.record.open("a") as file:
                print(json.dumps(rows[-1]), file=file)
    return total(rows)


if __name__ == "__main__":
    sys.exit(main())
