"""Imports the program of a plan into the running process, for ``autopar.parallelize``."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from autopar.emit import program_text
from autopar.errors import AutoparError, RunError
from autopar.plan import Plan
from autopar.run.whole import add_whole_states


def load_program(plan: Plan) -> ModuleType:
    """The emitted program of ``plan`` as a module: the same text that ``plan.emit`` writes.

    Called by every rank; one of them writes it.

    Raises:
        RunError: the plan cannot be emitted.
    """
    name = f"autopar_program_{plan.plan_id}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(shared_text(plan, path.name), encoding="utf-8")
        return import_program(path)


def shared_text(plan: Plan, file_name: str) -> str:
    """The program's text, written by rank 0 and handed to all others.

    Through the process group if there is one already. Else through the store in which ranks meet,
    for the program joins the group itself, apart from ranks of earlier attempts. In the store these
    may have left the text of this very plan, which is the same.
    """
    if plan.world_size == 1:
        return program_text(plan, file_name=file_name)
    if dist.is_initialized():
        found = [_outcome(plan, file_name) if dist.get_rank() == 0 else ""]
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.broadcast_object_list(found)
        return _text(found[0])
    store, rank, world = next(rendezvous("env://"))
    key = f"autopar program {plan.plan_id}"
    if rank > 0:
        outcome = store.get(key).decode()
        store.set(f"{key} read by {rank}", "")
    else:
        outcome = _outcome(plan, file_name)
        store.set(key, outcome)
        # Without torchrun the store goes with this process.
        store.wait([f"{key} read by {peer}" for peer in range(1, world)])
    return _text(outcome)


_FAILED = "# not emitted: "


def _outcome(plan: Plan, file_name: str) -> str:
    """The program, or why there is none, so that nobody waits for it."""
    try:
        return program_text(plan, file_name=file_name)
    except AutoparError as error:
        return f"{_FAILED}{error}"


def _text(outcome: str) -> str:
    if outcome.startswith(_FAILED):
        raise RunError(
            f"the program cannot be emitted: {outcome.removeprefix(_FAILED)}", where="rank 0",
            hint="plan this model again",
        )  # fmt: skip
    return outcome


def import_program(path: str | os.PathLike[str]) -> ModuleType:
    """The module at ``path``; the model of a program also has ``full_state_dict`` then."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "ParallelModel"):
        add_whole_states(module)
    return module
