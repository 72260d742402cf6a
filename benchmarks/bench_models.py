"""Every model under every plan on gloo ranks of this host, against the single device.

    python benchmarks/bench_models.py [--models hf-mixtral t5] [--plans tp=2 free] [--all] [--ops]

One row per model, one column per plan. A cell is "equal" if the losses of three steps are within
1e-5 of the single device's, every first gradient and the parameters after three steps within 1e-4,
and every rank issued as many collectives of each kind as the plan foretold. Where float32 agrees
less well, the run is repeated in float64, where both have to agree a hundred times better, and the
tensors that rounding alone keeps apart are counted (tests/multiprocess/precision.py says how). A
cell is "refused" if autopar said why it makes no such plan, "failed" otherwise. All of this is told
below the table; the exit status is 1 if anything failed.

With ``--ops`` nothing runs: a row per model tells how many of its operations the sharding table
divides over two ranks, how many were divided after a trial, and how many are whole on every rank.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autopar.errors import AutoparError
from autopar.plan import Plan
from autopar.strategies.choices import origin
from autopar.strategies.spec import name_of
from autopar.trace import trace
from autopar.workload import Workload
from tests.multiprocess.models import CASES, SAMPLES, batch, build, loss_fn
from tests.multiprocess.pool import Pool
from tests.multiprocess.precision import (
    compare_beyond_rounding,
)
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    plan_freely,
    single_device,
    train,
)

ROOT = Path(__file__).resolve().parents[1]
MICROBATCH = 2
DEGREE = 2  # for which --ops divides
PLANS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp=2": (2, {"pp": 1, "dp": 2, "tp": 1, "microbatch_size": MICROBATCH}),
    "tp=2": (2, {"pp": 1, "dp": 1, "tp": 2, "microbatch_size": MICROBATCH}),
    "pp=2": (2, {"pp": 2, "dp": 1, "tp": 1, "microbatch_size": MICROBATCH}),
    "pp=2 tp=2": (4, {"pp": 2, "dp": 1, "tp": 2, "microbatch_size": MICROBATCH}),
    "dp=2 tp=2": (4, {"pp": 1, "dp": 2, "tp": 2, "microbatch_size": MICROBATCH}),
    "free": (2, {}),
}
SPLIT = {"schedule": "zero_bubble", "microbatch_size": MICROBATCH}
MORE: dict[str, tuple[int, dict[str, Any]]] = {  # for --plans
    "zero bubble": (2, {"pp": 2, "dp": 1, "tp": 1, **SPLIT}),
    "zero bubble tp=2": (4, {"pp": 2, "dp": 1, "tp": 2, **SPLIT}),
    "zero bubble dp=2": (4, {"pp": 2, "dp": 2, "tp": 1, **SPLIT}),
}
# What the issue of any model names; --all adds the others of tests/multiprocess/models.py.
NAMED = (
    "gpt2", "llama", "hf-qwen3", "hf-mixtral", "bert", "vit", "hf-gptj", "t5", "whisper",
    "hf-mamba", "mingpt", "llama2", "moe-dense", "moe-odd", "moe-loop",
)  # fmt: skip
TIMEOUT_SECONDS = 240.0


@dataclass(frozen=True)
class Cell:
    """What came of a model under a plan: a word, and what is told below the table."""

    word: str
    reason: str = ""


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=NAMED, choices=sorted(CASES))
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=[*PLANS, *MORE])
    parser.add_argument("--all", action="store_true", help="every model of the tests")
    parser.add_argument("--ops", action="store_true", help="count operations instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.ops:
        return tell_ops(sorted(CASES) if arguments.all else arguments.models)
    torch.set_num_threads(1)  # as on the ranks: equal orders of summation
    pool = Pool(ROOT, ("transformers",))
    print(f"| model | {' | '.join(arguments.plans)} |\n|---|{'---|' * len(arguments.plans)}")
    rows: dict[str, dict[str, Cell]] = {}
    for name in sorted(CASES) if arguments.all else arguments.models:
        rows[name] = {}
        for plan in arguments.plans:
            found = rows[name][plan] = cell(pool, name, plan)
            if found.reason:
                print(f"{name}, {plan}: {found.word}: {found.reason}", file=sys.stderr)
        print(f"| {name} | {' | '.join(c.word for c in rows[name].values())} |", flush=True)
    return tell(rows)


def tell_ops(names: Iterable[str]) -> int:
    """Prints how each model's operations can be divided; the exit status."""
    print("| model | operations | made of sizes | table | trial | whole | by trial or whole |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        inputs, target = batch(name, 0)
        args, kwargs = Workload(build(name), inputs).inputs()
        try:
            graph = trace(build(name), args, kwargs, target=target, loss_fn=loss_fn(name))
        except AutoparError as error:
            print(f"| {name} | refused: {error.found} | | | | | |", flush=True)
            continue
        found = [(origin(op, graph.values, DEGREE), name_of(op)) for op in graph.ops]
        count = Counter(kind for kind, _ in found)
        rare = Counter(op for kind, op in found if kind in ("trial", "none"))
        told = ", ".join(f"{number} {op}" for op, number in sorted(rare.items()))
        numbers = " | ".join(str(count[kind]) for kind in ("made", "table", "trial", "none"))
        print(f"| {name} | {len(graph.ops)} | {numbers} | {told} |", flush=True)
    return 0


def tell(rows: dict[str, dict[str, Cell]]) -> int:
    """Prints what was refused, what failed and how many there are; the exit status."""
    cells = [(name, plan, c) for name, row in rows.items() for plan, c in row.items()]
    print()
    for name, plan, found in cells:
        if found.reason:
            print(f"{name}, {plan}: {found.word}: {found.reason}")
    print(count(c.word for _, _, c in cells))
    return int(any(c.word == "failed" for _, _, c in cells))


def count(words: Iterable[str]) -> str:
    """``5 equal, 1 refused``."""
    found = list(words)
    return ", ".join(f"{found.count(word)} {word}" for word in dict.fromkeys(found))


def cell(pool: Pool, name: str, plan: str) -> Cell:
    """Plans, emits, runs and compares."""
    devices, pins = (PLANS | MORE)[plan]
    try:
        made = plan_freely(name, devices, pins)
    except AutoparError as error:
        return Cell("refused", str(error).replace("\n", "; "))
    except Exception as error:  # the table goes on
        return Cell("failed", f"planning: {type(error).__name__}: {error}")
    try:
        return run(pool, name, made, devices)
    except Exception as error:  # the table goes on
        return Cell("failed", " ".join(str(error).splitlines()[-3:]))


def run(pool: Pool, name: str, plan: Plan, devices: int) -> Cell:
    """Trains three steps on every rank and on the single device."""
    mixes = CASES[name.partition(":")[0]].mixes
    how = (plan.microbatch_size, plan.mesh.dp) if mixes else (SAMPLES, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "program.py")
        plan.emit(path, model="tests:none")
        start = partial(pool.run, devices, train, path, name, timeout=TIMEOUT_SECONDS)
        results = start()
        try:
            compare_collectives(plan, results)
            apart = compare_beyond_rounding(start, results, partial(trained, name, *how))
        except AssertionError as error:
            return Cell("failed", " ".join(str(error).split())[:300] or _line(error))
    return Cell("equal", f"in float64; kept apart by rounding: {summary(apart)}" if apart else "")


def summary(names: list[str]) -> str:
    """How many tensors, and one of them."""
    return f"{len(names)} tensors, such as {names[-1]}"


def _line(error: Exception) -> str:
    """The line that raised, of an assertion without a message."""
    return traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__


@cache
def trained(name: str, microbatch: int, dp: int, **how: Any) -> dict[str, Any]:
    """The single device's losses, gradients and parameters."""
    return single_device(name, microbatch, dp, **how)


if __name__ == "__main__":
    sys.exit(main())
