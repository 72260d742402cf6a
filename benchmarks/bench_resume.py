"""One training run under several plans, and the start that all plans of a model have.

    python benchmarks/bench_resume.py [--only runs|starts] [--models gpt.py llama.py]

A run goes from plan to plan and from 1 to 2, 4 and 2 ranks through checkpoints. What each plan
saves right after it has loaded must be what was saved, bit for bit; its losses are compared with
one device that is never interrupted. Then every plan of the table of systems starts from a model
on meta: all starts must be equal, bit for bit. The exit status is 1 if something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn as nn

import autopar
from autopar.workload import load_workload
from examples.systems import SYSTEMS
from tests.multiprocess.pool import Pool, load
from tests.multiprocess.programs import load_program
from tests.multiprocess.restarts import differing

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PLANNED: dict[str, Any] = {"precision": "fp32", "cluster": "cpu"}
STEPS, TOLERANCE, LEARNING_RATE = 5, 1e-5, 1e-3
ONE: dict[str, Any] = {"pp": 1, "dp": 1, "tp": 1}
LEGS = (
    ONE,
    {**ONE, "dp": 2, "zero": 3, "microbatch_size": 2},
    {**ONE, "pp": 2, "dp": 2, "zero": 2, "microbatch_size": 1, "schedule": "1f1b"},
    {**ONE, "tp": 2},
    {**ONE, "pp": 2, "microbatch_size": 2, "recompute": "full"},
    {**ONE, "tp": 2, "dp": 2, "zero": 0},
    ONE,
)


def emit(model: str, pins: dict[str, Any], path: Path, make: str = "make", **more: Any) -> int:
    """Writes the program of a pinned plan; how many ranks it has."""
    work = load_workload(f"{EXAMPLES / model}:{make}")
    size = pins["pp"] * pins["dp"] * pins["tp"]
    plan = autopar.plan(
        work.model, size, work.example_inputs, work.loss_fn, work.example_target,
        global_batch_size=work.global_batch_size, pin=pins, **{**PLANNED, **more},
    )  # fmt: skip
    plan.emit(str(path), model="none:none")
    return size


# ---- on ranks


def leg(path: str, model: str, first: int, source: str, again: str, save: str) -> list[float]:
    """Loads, saves what was loaded, trains ``STEPS`` steps and saves; the losses."""
    work, program = load(str(EXAMPLES / model)), load_program(path)
    torch.manual_seed(0)
    parallel = program.parallelize(work.make()["model"])
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=LEARNING_RATE)
    if source:
        parallel.load(source, optimizer)
        parallel.save(again, optimizer)
    losses = []
    for step in range(first, first + STEPS):
        share = program.GLOBAL_BATCH // parallel.dp_size
        batch = work.batches(step, share, parallel.dp_rank, parallel.dp_size)
        losses.append(parallel.forward_backward(*batch).item())
        optimizer.step()
        optimizer.zero_grad()
    parallel.save(save, optimizer)
    return losses


def start(path: str, model: str, make: str) -> dict[str, str]:
    """A hash of each parameter as a plan starts it from meta."""
    made = getattr(load(str(EXAMPLES / model)), make)()["model"]
    state = load_program(path).parallelize(on_meta(made)).full_state_dict()
    return {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in state.items()}


def on_meta(model: nn.Module) -> nn.Module:
    """The model with its parameters on meta, tied ones tied; its buffers are made by its code."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(module, name, made.setdefault(parameter, nn.Parameter(empty)))
    return model


# ---- here


def single_device(model: str) -> list[float]:
    """Losses of a run that is never interrupted, in plain PyTorch."""
    work = load(str(EXAMPLES / model))
    torch.manual_seed(0)
    made = work.make()
    optimizer = torch.optim.AdamW(made["model"].parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(STEPS * len(LEGS)):
        (inputs,), target = work.batches(step, made["global_batch_size"])
        loss = made["loss_fn"](made["model"](inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def resumed(pool: Pool, model: str, folder: Path) -> bool:
    """Prints a row per leg; whether all is as it should be."""
    wanted, saved, good = single_device(model), "", True
    print(f"\n{model}: loss {wanted[0]:.3f} to {wanted[-1]:.3f} in {len(wanted)} steps\n")
    print("| plan | ranks | tensors that differ | losses differ by |\n| --- | --- | --- | --- |")
    for number, pins in enumerate(LEGS):
        program = folder / f"leg{number}.py"
        size, again, save = emit(model, pins, program), folder / f"a{number}", folder / f"s{number}"
        first = STEPS * number
        losses = pool.run(size, leg, str(program), model, first, saved, str(again), str(save))[0]
        different = differing(Path(saved), again) if saved else []
        pairs = zip(losses, wanted[first:], strict=False)
        error = max(abs(found - right) / right for found, right in pairs)
        words = " ".join(f"{key}={value}" for key, value in pins.items())
        print(f"| {words} | {size} | {len(different) if saved else 'start'} | {error:.1e} |")
        good, saved = good and not different and error <= TOLERANCE, str(save)
    return good


def started(pool: Pool, folder: Path) -> bool:
    """Prints a row per model of the table of systems; whether all plans of each start equally."""
    print("\n| model | plans | parameters | that differ |\n| --- | --- | --- | --- |")
    good = True
    for model, make in dict.fromkeys((system.workload, system.make) for system in SYSTEMS):
        states = []
        plans: list[tuple[dict[str, Any], dict[str, Any]]] = [(ONE, {})]
        for system in SYSTEMS:
            if (system.workload, system.make) == (model, make):
                more = {"precision": system.precision, "cluster": system.cost_model}
                plans.append((ONE | dict(system.pins), more))
        for number, (pins, more) in enumerate(plans):
            program = folder / f"{make}{number}.py"
            size = emit(model, pins, program, make, **more)
            states.append(pool.run(size, start, str(program), model, make, timeout=120.0)[0])
        different = {n for state in states for n in states[0] if state[n] != states[0][n]}
        print(f"| {model} | {len(plans)} | {len(states[0])} | {len(different)} |", flush=True)
        good = good and not different
    return good


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("runs", "starts"))
    parser.add_argument("--models", nargs="*", default=["llama.py", "gpt.py"], help="of the runs")
    args = parser.parse_args()
    pool, good = Pool(ROOT), True
    with tempfile.TemporaryDirectory(prefix="autopar-resume-") as folder:
        for model in args.models if args.only != "starts" else ():
            place = Path(folder, model)
            place.mkdir()
            good = resumed(pool, model, place) and good
        if args.only != "runs":
            good = started(pool, Path(folder)) and good
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
