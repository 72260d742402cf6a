"""Random plans of random models on gloo ranks of this host, against the single device.

    python benchmarks/bench_random.py [--seed 0] [--first 0] [--cases 50] [--only CASE] [--plan]

Each case draws (``draws.py``) a model, of some of which parameters are frozen, numbers of ranks and
samples, and pins: the degrees, the shard degree, micro-batches, schedule and stages per rank, zero
modes and recomputation (of all layers or by layer), layouts of tp, stage boundaries, host memory,
exchange of gradients. What is not drawn is the solver's. A line per case says what it is and what
came of it:

- "equal": losses of three steps, first gradients, their norm, and the parameters after three steps
  are the single device's (tests/multiprocess/precision.py), every rank issued as many collectives
  of each kind as the plan foretold, and holds as much memory, within the bounds of the tests;
- "refused": autopar said what was found, what was expected and what to try;
- "memory": all is equal, but what ranks hold is not within the bounds;
- "failed": anything else, told behind the word. Case N is drawn from the seed and N alone, so
  ``--seed S --only N`` repeats it, as long as the lists of models in ``draws.py`` stay.

With ``--plan`` nothing runs: what can be planned and written is "planned". The exit status is 1 if
anything failed or held too much.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autopar.cluster import Cluster
from autopar.errors import AutoparError
from autopar.plan import Plan
from benchmarks.draws import ANY, FAMILIES, Drawn, draw
from benchmarks.processes import decision
from tests.multiprocess.models import case_of
from tests.multiprocess.pool import Pool
from tests.multiprocess.precision import compare_beyond_rounding
from tests.multiprocess.test_fidelity import (
    compare_collectives,
    compare_memory,
    plan_freely,
    single_device,
    these_cpus,
    train,
)

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = (
    "transformers", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
TIMEOUT_SECONDS = 240.0
NORM = 1e-4


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--only", type=int, help="one case, with all of its error")
    parser.add_argument("--family", choices=[*FAMILIES, ANY])
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after these")
    parser.add_argument("--having", nargs="*", default=[], help="only cases whose line has these")
    parser.add_argument("--plan", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # as on the ranks: equal orders of summation
    pool, found, started = Pool(ROOT, LIBRARY), Counter[str](), time.monotonic()
    try_out = planned if arguments.plan else partial(run, pool)
    cases = range(arguments.first, arguments.first + arguments.cases)
    for number in cases if arguments.only is None else [arguments.only]:
        if time.monotonic() - started > arguments.seconds:
            break
        case = draw(arguments.seed, number, arguments.family)
        if not all(text in str(case) for text in arguments.having):
            continue
        print(f"{number}: {case}", end=": ", flush=True)
        on_cpus = arguments.family == ANY or case.name in FAMILIES["recurrent"]
        word, reason = outcome(try_out, case, these_cpus() if on_cpus else "h100-80g")
        found[word] += 1
        length = 100_000 if arguments.only is not None else 700
        print(f"{word}{f': {reason[:length]}' if reason else ''}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in found.items()))
    return int(found["failed"] + found["memory"] > 0)


def outcome(
    try_out: Callable[..., tuple[str, str]], case: Drawn, cluster: str | Cluster
) -> tuple[str, str]:
    """What came of a case: a word, and what is told behind it.

    Args:
        try_out: what is done with a case and its plan; raises where something is wrong.
        case: what is planned.
        cluster: for which; recurrent layers keep what those of CPUs do.
    """
    try:
        plan = plan_freely(
            case.name, case.ranks, case.pins, samples=case.samples, cluster=cluster
        )  # fmt: skip
    except AutoparError as error:
        text = str(error).replace("\n", ";")
        clean = all(part in text for part in ("expected: ", "try: "))
        return ("refused" if clean else "failed"), text
    except Exception as error:  # the next case is another
        return "failed", f"planning: {type(error).__name__}: {error}"
    try:
        return try_out(case, plan)
    except Exception as error:  # the next case is another
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{place.line}: {' '.join(str(error).split())[-2000:]}"
        return "failed", f"{decision(plan)}; {type(error).__name__} at {text}"


def planned(_: Drawn, plan: Plan) -> tuple[str, str]:
    """Writes the program, which is to be Python."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        plan.emit(str(path), model="tests:none")
        compile(path.read_text(encoding="utf-8"), "program.py", "exec")
    return "planned", ""


def run(pool: Pool, case: Drawn, plan: Plan) -> tuple[str, str]:
    """Trains three steps on every rank and on the single device, and compares."""
    mixes = case_of(case.name).mixes
    how = (plan.microbatch_size, plan.mesh.dp) if mixes else (0, 1)
    single = partial(trained, case.name, *how, samples=case.samples)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "program.py")
        plan.emit(path, model="tests:none")
        start: Callable[..., Any] = partial(
            pool.run, case.ranks, train, path, case.name, samples=case.samples,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        results = start()
        apart = compare_beyond_rounding(start, results, single)
        compare_norms(results, single())
        compare_collectives(plan, results)
        # The plan's figure is that of the fullest rank, and only a server has optimizer state.
        try:
            compare_memory(plan, results[:1] if plan.exchange == "server" else results)
        except AssertionError as error:
            return "memory", f"{decision(plan)}: {error}"
    return "equal", f"{len(apart)} tensors in float64 alone, as {apart[-1]}" if apart else ""


def compare_norms(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Every rank has the norm of all gradients."""
    norms = [gradient.double().norm() for gradient in reference["gradients"].values()]
    wanted = torch.stack(norms).norm().item()
    for rank, result in enumerate(results):
        assert abs(result["norm"] - wanted) <= NORM * wanted, (
            f"rank {rank}: norm {result['norm']}, expected {wanted}"
        )


@cache
def trained(name: str, microbatch: int, dp: int, **how: Any) -> dict[str, Any]:
    """The single device's losses, gradients and parameters."""
    return single_device(name, microbatch, dp, **how)


if __name__ == "__main__":
    sys.exit(main())
