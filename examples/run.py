"""Runs a system of the table on ranks of this host, and shows its price beside the optimum.

    python examples/run.py                      # lists the systems
    python examples/run.py zero-3 --steps 20

Everything that it does can be done with `autopar plan`, `emit` and `run`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        path for path in (str(HERE.parent), os.environ.get("PYTHONPATH")) if path
    )

import autopar  # noqa: E402  (behind the path of the checkout, where it may not be installed)
from autopar.run.launch import run_plan  # noqa: E402
from autopar.run.measure import RunResult  # noqa: E402
from autopar.workload import load_workload  # noqa: E402
from examples.systems import SYSTEMS, System, find  # noqa: E402

STEPS = 30


def plan_of(system: System, *, pinned: bool = True) -> autopar.Plan:
    """The plan of a system, or the one that autopar chooses for its model and ranks."""
    reference = workload_of(system)
    work = load_workload(reference)
    return autopar.plan(
        work.model,
        system.ranks,
        work.example_inputs,
        work.loss_fn,
        work.example_target,
        cluster=system.cost_model,
        global_batch_size=work.global_batch_size,
        precision=system.precision,
        pin=dict(system.pins) if pinned else None,
        workload=reference,
    )


def workload_of(system: System) -> str:
    """FILE:FUNCTION of the model."""
    return f"{HERE / system.workload}:{system.make}"


def train(system: System, plan: autopar.Plan, steps: int) -> RunResult:
    """Emits the program of a plan and runs it under torchrun."""
    return run_plan(
        plan,
        workload=workload_of(system),
        data=f"{HERE / system.workload}:batches",
        steps=steps,
        learning_rate=system.learning_rate,
        nodes=system.nodes,
    )


def choice(plan: autopar.Plan) -> str:
    """The decisions of a plan in a few words: "pp=2 dp=1 tp=1, 1f1b, 4 x 2 samples"."""
    mesh = plan.mesh
    words = [f"pp={mesh.pp} dp={mesh.dp} tp={mesh.tp}"]
    if mesh.pp > 1:
        words.append(plan.schedule)
    sizes = dict.fromkeys(plan.shares or (plan.microbatch_size,))
    words.append(f"{plan.num_microbatches} x {' or '.join(map(str, sizes))} samples")
    for kind in ("zero", "recompute"):
        modes = dict.fromkeys(getattr(layer, kind) for layer in plan.layers)
        if set(modes) - {0, "none"}:
            words.append(f"{kind} {'/'.join(map(str, modes))}")
    return ", ".join(words)


def list_systems() -> None:
    """One line per system."""
    width = max(len(system.name) for system in SYSTEMS)
    for system in SYSTEMS:
        print(f"{system.name:{width}}  {system.ranks} ranks  {system.about}")


def show(system: System, steps: int) -> None:
    """Plan, price beside the optimum, losses, predicted against measured."""
    command = " ".join(f"--pin {shlex.quote(word)}" for word in system.pin_words)
    file = f"{system.workload}:{system.make}"
    print(f"{system.name}: {system.about}\n\n$ autopar plan {file} --world-size {system.ranks}"
          f" --cluster {system.cluster} --precision {system.precision} {command}")  # fmt: skip
    plan, free = plan_of(system), plan_of(system, pinned=False)
    for title, each in (("this system", plan), ("autopar would choose", free)):
        seconds = each.prediction.step_seconds
        print(f"  {title:20}  {1e3 * seconds:8.2f} ms a step predicted   {choice(each)}")
    result = train(system, plan, steps)
    print("\n" + "\n".join(f"step {i}: loss {x:.4f}" for i, x in enumerate(result.losses)))
    print(f"\nmeasured  {1e3 * result.median_seconds:8.2f} ms a step")
    print(f"predicted {1e3 * result.predicted_step_seconds:8.2f} ms, by {plan.cluster.name}")


def main(argv: list[str] | None = None) -> Any:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [system.name for system in SYSTEMS]
    parser.add_argument("name", nargs="?", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args(argv)
    return show(find(args.name), args.steps) if args.name else list_systems()


if __name__ == "__main__":
    main()
