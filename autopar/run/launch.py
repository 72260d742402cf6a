"""Runs a plan on this host: emits its program and starts it under torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from autopar.emit import write_program
from autopar.errors import RunError, UsageError
from autopar.plan import Plan
from autopar.run.measure import RunResult, read_observed, read_result

# What torchrun starts in place of the program to look into its steps.
OBSERVER = ("-m", "autopar.run.observe")
# torchrun gives a dead rank's peers this long to end before it kills them.
SHUTDOWN_SECONDS = 10.0
LAST_LINES = 15
WATCH_SECONDS = 0.05


def run_plan(
    plan: Plan,
    *,
    workload: str,
    steps: int = 10,
    data: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    restarts: int = 0,
    learning_rate: float | None = None,
    nodes: int = 1,
    timeout_seconds: float = 600.0,
    observe: bool = False,
) -> RunResult:
    """Trains on ranks of this host.

    Args:
        plan: what to run.
        workload: "module:function" that returns the model.
        steps: the optimizer step to train up to, those of the checkpoint included.
        data: "module:function" of (step, batch_size, rank, size); default: the example batch.
        checkpoint: directory to resume from and to save to.
        checkpoint_every: steps between checkpoints on the way.
        restarts: how often ranks are started again, behind the last checkpoint, when one has
            failed. What was measured is then of the steps since.
        learning_rate: AdamW's; default: the program's own.
        nodes: how many torchrun agents start the ranks, each its share, as nodes would. On this
            host they share its devices, so more than one is for ranks on the CPU.
        timeout_seconds: when to give up.
        observe: whether to look into a few more steps, in processes of their own so that the
            timed ones are not slowed down: see ``RunResult.observed``.

    Raises:
        RunError: a rank failed, or the run took too long.
        UsageError: restarts without checkpoints, from which they would go on.
    """
    options = {
        "--data": data, "--checkpoint": checkpoint, "--checkpoint-every": checkpoint_every,
        "--workload": workload, "--lr": learning_rate,
    }  # fmt: skip
    _check_restarts(restarts, checkpoint and checkpoint_every)
    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        program, measured = Path(folder) / "program.py", Path(folder) / "measured.json"
        write_program(plan, program, model=workload)
        command = [str(program), "--steps", str(steps), "--json", str(measured)]
        for name, value in options.items():
            command += [name, str(value)] if value is not None else []
        torchrun(command, plan.world_size, Path(folder), timeout_seconds, nodes, restarts)
        result = read_result(measured, plan)
        if observe:
            inside = Path(folder) / "observed.json"
            command = [*OBSERVER, str(program), "--out", str(inside), "--workload", workload]
            command += ["--data", data] if data else []
            torchrun(command, plan.world_size, Path(folder), timeout_seconds, nodes)
            kinds = plan.prediction.breakdown
            result = replace(result, observed=read_observed(inside), predicted_kinds=kinds)
        return result


def _check_restarts(restarts: int, saved: object) -> None:
    if restarts and not saved:
        raise UsageError(
            f"{restarts} restarts without checkpoints on the way", where="restarts",
            expected="checkpoints, from the last of which restarted ranks go on",
            hint="autopar run ... --checkpoint DIR --checkpoint-every STEPS",
        )  # fmt: skip


def torchrun(
    command: list[str], ranks: int, folder: Path, timeout_seconds: float, nodes: int = 1,
    restarts: int = 0,
) -> None:  # fmt: skip
    """Runs a program under one torchrun agent per node and leaves no process behind.

    Where a rank fails all are started again, as often as ``restarts`` says.

    Raises:
        RunError: with the first rank that failed and its error.
        UsageError: the ranks cannot be dealt out evenly.
    """
    if ranks % nodes:
        raise UsageError(f"{nodes} nodes", expected=f"a divisor of {ranks} ranks", where="nodes")
    with ExitStack() as stack:
        agents = []
        for node, options in enumerate(rendezvous(nodes)):
            share = ["--nproc-per-node", str(ranks // nodes), "--max-restarts", str(restarts)]
            launcher = [*options, *share]
            agents.append(start_agent([*launcher, *command], folder, node))
            stack.callback(end_group, agents[-1])
        codes = wait(agents, time.monotonic() + timeout_seconds)
    if codes is None:
        raise RunError(
            f"the run had not ended after {timeout_seconds:g} s",
            where=last_lines(output_of(folder, 0)),
            hint="fewer steps, or a longer timeout",
        )
    for node in (node for node, code in enumerate(codes) if code):
        raise failure(errors_of(folder, node), output_of(folder, node), ranks)


def wait(agents: list[subprocess.Popen[bytes]], deadline: float) -> list[int | None] | None:
    """Exit codes once all have ended or one has failed, None if that takes too long.

    All are watched: agents whose ranks have ended wait for minutes for one that has failed.
    """
    while time.monotonic() < deadline:
        codes = [agent.poll() for agent in agents]
        if any(codes) or None not in codes:
            return codes
        time.sleep(WATCH_SECONDS)
    return None


def rendezvous(nodes: int) -> list[list[str]]:
    """What tells each node's agent of the others; they are all on this host."""
    if nodes == 1:
        return [["--standalone"]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--nnodes", str(nodes), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [[*shared, "--node-rank", str(node)] for node in range(nodes)]


def start_agent(command: list[str], folder: Path, node: int) -> subprocess.Popen[bytes]:
    """Starts torchrun in a group of its own, so that it and all its ranks can be ended together."""
    with output_of(folder, node).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(errors_of(folder, node)),
            start_new_session=True,
        )


def output_of(folder: Path, node: int) -> Path:
    """Where what a node's ranks print goes."""
    return folder / f"output{node}.txt"


def errors_of(folder: Path, node: int) -> Path:
    """Where torchelastic records the error of a node's first rank that failed."""
    return folder / f"error{node}.json"


def environment(errors: Path) -> dict[str, str]:
    """The variables of the ranks: one thread each, as the cost model of a CPU host assumes."""
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return {
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_ERROR_FILE": str(errors),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the launcher and every rank that is still there, then waits for the launcher."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def failure(errors: Path, output: Path, ranks: int) -> RunError:
    """The error of the first rank that failed, from what torchelastic recorded."""
    text = output.read_text(encoding="utf-8", errors="replace")
    summary = text.partition("Root Cause")[2] or text
    rank = re.search(r"rank\s*:\s*(\d+)", summary)
    code = re.search(r"exitcode\s*:\s*(-?\d+)([^\n]*)", summary)
    who = f"rank {rank[1]} of {ranks}" if rank else f"one of {ranks} ranks"
    message = recorded(errors)
    if message is None:
        ended = f"exit code {code[1]}{code[2].partition(' (pid')[0]}" if code else "no exit code"
        return RunError(f"{who} ended with {ended}", where=last_lines(output))
    return RunError(f"{who} failed: {message[0]}", where=message[1])


def recorded(errors: Path) -> tuple[str, str] | None:
    """(message, place) of an error file, if there is one."""
    try:
        message = json.loads(errors.read_text(encoding="utf-8"))["message"]
    except (OSError, ValueError, KeyError):
        return None
    if isinstance(message, str):
        return message, ""
    trace = message.get("extraInfo", {}).get("py_callstack", "")
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', trace)
    file, line, function = frames[-1] if frames else ("", "", "")
    place = f"{os.path.basename(file)}:{line} in {function}" if file else ""
    return message["message"], place


def last_lines(output: Path) -> str:
    """The end of what the ranks printed."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-LAST_LINES:])
