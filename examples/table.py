"""Writes README.md from the table of systems and from what was measured of them.

python examples/table.py                    # writes README.md
python examples/table.py --measure [NAME]   # runs systems first, all of them by default
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        path for path in (str(HERE.parent), os.environ.get("PYTHONPATH")) if path
    )

from examples.systems import ABSENT, SYSTEMS, System, find  # noqa: E402

MEASURED = HERE / "measured.json"
README = HERE / "README.md"
STEPS = 30
# What stands behind prices of other machines than this host.
OTHER_MACHINES = {"h100-80g": " (H100)", "unequal.json": " (unequal)"}
INTRO = """\
# The systems of the field as plans

People know parallel training as a shelf of systems with scripts of their own. Here each of them
is one plan of the same planner, asked for by pins; the solver completes what they leave open.

    python examples/run.py                      # lists the systems
    python examples/run.py zero-3 --steps 20    # plans, prices, emits and trains one on this host

The models and their data are plain PyTorch files (`gpt.py`, `llama.py`, `mlp.py`, `mnist.py`,
`alexnet.py`, `rnn.py`) that know nothing of autopar. `systems.py` is the table itself; the test
`tests/multiprocess/test_examples.py` trains every row beside a single device: losses fall and are
the same (within 3 % under bf16), and the collectives are counted. `python examples/table.py
--measure` writes this file. `demo.py` shows the whole way from model to program.

## What each one is

Collectives are those of rank 0 in one step, without sums of single numbers, as the loss is; where
"per block" stands, those of one block's forward pass.
"""
PRICES = """
## What each one costs, and what autopar would choose

Median of {steps} steps, the first left out, on ranks of one host with {cores} cores (gloo), a
single run each, beside the prediction. The choice has the same model, batch, ranks and precision,
and no pins; where it is the system itself, only rounding and noise are between the two. "(H100)"
prices are those of another machine: a plan that is made for it because what the system is known
for never pays on gloo, and "(unequal)" ones of a host and a made-up one of a third of its speed:
measured times say nothing about these.

Steps of a few milliseconds are mostly overheads: measured times are {median:.2g} times the
predicted ones in the median ({least:.2g} to {most:.2g}). The choice was measured faster than the
system in {faster} of {rows} rows; where the prices of two plans differ by less than their error,
it need not be.

"""
MISSING = """
## Not to be had yet

"""


def write_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def about_row(system: System) -> list[str]:
    """What a system is."""
    pins = " ".join(f"`{word}`" if "*" in word else word for word in system.pin_words)
    where = f"{system.ranks} ranks" + (f" on {system.nodes} nodes" if system.nodes > 1 else "")
    if system.precision != "fp32":
        pins += f", `--precision {system.precision}`"
    return [
        f"`{system.name}`",
        system.about,
        f"`{system.workload}`, {where}",
        pins,
        ", ".join(
            [f"{count} {kind}" for kind, count in system.step.items()]
            + [f"{count} {kind} per block" for kind, count in system.block.items()]
        ),
    ]


def price_row(system: System, found: Mapping[str, Any] | None) -> list[str]:
    """What a system costs."""
    if found is None:
        return [f"`{system.name}`", "not measured yet", *[""] * 5]
    own, free = found["system"], found["choice"]
    mark = OTHER_MACHINES.get(system.cluster, "")
    return [
        f"`{system.name}`",
        f"{own['losses'][0]:.2f} to {own['losses'][-1]:.2f}",
        f"{milliseconds(own['predicted_seconds'])}{mark}",
        milliseconds(own["measured_seconds"]),
        free["plan"],
        f"{milliseconds(free['predicted_seconds'])}{mark}",
        milliseconds(free["measured_seconds"]),
    ]


def milliseconds(seconds: float) -> str:
    """As in "12.3 ms"."""
    return f"{1e3 * seconds:.3g} ms"


def readme(measured: Mapping[str, Any]) -> str:
    """The text of README.md."""
    abouts = write_table(
        ("system", "what it is", "runs", "pins", "collectives"), map(about_row, SYSTEMS)
    )
    prices = write_table(
        ("system", "loss", "predicted", "measured", "autopar would choose", "predicted",
         "measured"),
        (price_row(system, measured["systems"].get(system.name)) for system in SYSTEMS),
    )  # fmt: skip
    absent = write_table(("system", "why"), ABSENT.items())
    told = PRICES.format(**measured, **accuracy(measured["systems"]))
    return f"{INTRO}\n{abouts}{told}{prices}{MISSING}{absent}"


def accuracy(systems: Mapping[str, Any]) -> dict[str, float]:
    """Measured over predicted time of the systems, and in how many rows the choice is faster."""
    priced = [found for name, found in systems.items() if find(name).cluster == "cpu"]
    own = [found["system"] for found in priced]
    ratios = [each["measured_seconds"] / each["predicted_seconds"] for each in own] or [1.0]
    pairs = [(f["choice"]["measured_seconds"], f["system"]["measured_seconds"]) for f in priced]
    faster = sum(choice < system for choice, system in pairs)
    return {"median": median(ratios), "least": min(ratios), "most": max(ratios),
            "faster": faster, "rows": len(pairs)}  # fmt: skip


def measure(system: System, choices: dict[Any, Any]) -> dict[str, Any]:
    """Runs a system and what autopar would choose instead, the latter once per task."""
    from examples.run import plan_of

    task = (system.workload, system.make, system.ranks, system.nodes, system.precision,
            system.cluster)  # fmt: skip
    if task not in choices:
        choices[task] = measured_plan(system, plan_of(system, pinned=False))
    return {"system": measured_plan(system, plan_of(system)), "choice": choices[task]}


def measured_plan(system: System, plan: Any) -> dict[str, Any]:
    """What a plan is, its prediction and what a run of it measured."""
    from examples.run import choice, train

    result = train(system, plan, STEPS)
    return {
        "plan": choice(plan),
        "predicted_seconds": plan.prediction.step_seconds,
        "measured_seconds": result.median_seconds,
        "losses": [result.losses[0], result.losses[-1]],
    }


def read_measured() -> dict[str, Any]:
    """What was measured before."""
    empty = {"steps": STEPS, "cores": os.cpu_count(), "systems": {}}
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else empty


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="*", metavar="NAME")
    args = parser.parse_args(argv)
    if args.measure is not None:
        choices: dict[Any, Any] = {}
        found = read_measured()["systems"]
        for system in map(find, args.measure or [system.name for system in SYSTEMS]):
            found[system.name] = measure(system, choices)
            print(f"{system.name}: {found[system.name]}", flush=True)
        known = {system.name: found[system.name] for system in SYSTEMS if system.name in found}
        data = {"steps": STEPS, "cores": os.cpu_count(), "systems": known}
        MEASURED.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    README.write_text(readme(read_measured()), encoding="utf-8")


if __name__ == "__main__":
    main()
