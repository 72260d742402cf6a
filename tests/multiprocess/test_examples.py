"""Every row of the table of systems, trained beside a single device.

The loss falls, it is the single device's, and what is communicated is what the system is known for.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import autopar
from examples.systems import SYSTEMS, System, find
from tests.multiprocess.pool import load
from tests.multiprocess.programs import load_program
from tests.traces import traced_once

pytestmark = pytest.mark.multiprocess
FOLDER = Path(__file__).parents[2] / "examples"
STEPS = 8
# A sum of single numbers: the loss of the global batch, or the squares of a norm.
SCALAR_BYTES = 8


def workload(system: System) -> tuple[Any, dict[str, Any]]:
    """The module that has the data, and what it makes: the model and how it is trained."""
    module = load(str(FOLDER / system.workload))
    return module, getattr(module, system.make)()


def train(path: str, name: str) -> dict[str, Any]:
    """Runs on every rank; collectives are counted in the second step."""
    from tests.multiprocess.collectives import CountCollectives

    system, program = find(name), load_program(path)
    work, made = workload(system)
    parallel = program.parallelize(made["model"])
    optimizer = program.optimizer_for(parallel, system.learning_rate)
    counter, share = CountCollectives(), made["global_batch_size"] // parallel.dp_size
    losses, blocks = [], list[Counter[str]]()
    for step in range(STEPS):
        if hasattr(program, "share_of"):  # ranks with shares of different sizes
            batch = program.share_of(work.batches, step)
        else:
            batch = work.batches(step, share, parallel.dp_rank, parallel.dp_size)
        if step == 1:
            with counter, each_block(parallel, program, counter, blocks):
                loss = parallel.forward_backward(*batch)
        else:
            loss = parallel.forward_backward(*batch)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    large = Counter(call.kind for call in counter.calls if call.bytes > SCALAR_BYTES)
    return {"losses": losses, "kinds": counter.kinds, "step": dict(large), "blocks": blocks}


@contextmanager
def each_block(
    parallel: Any, program: Any, counter: Any, found: list[Counter[str]]
) -> Iterator[None]:
    """Adds what each forward of a block communicates, the gathers of its parameters aside."""
    started = [0]

    def enter(*_: Any) -> None:
        started[0] = len(counter.calls)

    def leave(*_: Any) -> None:
        found.append(Counter(call.kind for call in counter.calls[started[0] :]))

    stages = parallel.stages if hasattr(parallel, "stages") else [parallel.stage]
    every = (range(len(program.BLOCKS)),)
    blocks = [
        stage.model.get_submodule(program.BLOCKS[i])
        for stage in stages
        for i in getattr(program, "STAGES", every)[getattr(stage, "index", 0)]
    ]
    handles = []
    for block in blocks:
        # Behind the hook of fully_shard, which gathers the block's parameters.
        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    yield
    for handle in handles:
        handle.remove()


def single_device(system: System) -> list[float]:
    """Losses in float32."""
    work, made = workload(system)
    optimizer = torch.optim.AdamW(made["model"].parameters(), lr=system.learning_rate)
    losses = []
    for step in range(STEPS):
        inputs, target = work.batches(step, made["global_batch_size"])
        loss = loss_of(made, inputs, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def loss_of(made: dict[str, Any], inputs: Any, target: Any) -> Any:
    """The loss on one device, the model's own where there is no function for it."""
    model, function = made["model"], made.get("loss_fn")
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return function(output, target) if function else output.loss


@pytest.fixture(scope="module")
def references() -> dict[str, list[float]]:
    return {}


@pytest.fixture(autouse=True)
def _no_baselines(monkeypatch):
    """What else one could have typed is priced in other tests; here it would take minutes."""
    monkeypatch.setattr("autopar.planner.run_baselines", lambda *_, **__: ())


@pytest.mark.parametrize("name", [system.name for system in SYSTEMS])
def test_trains_as_known(ranks, tmp_path, references, name):
    system = find(name)
    _, made = workload(system)
    with traced_once(f"{system.workload}:{system.make}"):
        plan = autopar.plan(
            made.pop("model"), system.ranks, **made, cluster=system.cost_model,
            precision=system.precision, pin=dict(system.pins),
        )  # fmt: skip
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    results = ranks(system.ranks).run(train, path, name, timeout=120.0)
    if system.workload not in references:
        references[system.workload] = single_device(system)
    wanted = references[system.workload]
    assert wanted[-1] < 0.8 * wanted[0], "the loss falls visibly"
    tolerance = 1e-4 if system.precision == "fp32" else 3e-2
    for rank, result in enumerate(results):
        assert result["losses"] == pytest.approx(wanted, rel=tolerance), f"rank {rank}"
        foretold: Counter[str] = Counter()
        for stage in plan.stages[rank // (plan.mesh.dp * plan.mesh.tp) :: plan.mesh.pp]:
            foretold.update(stage.prediction.collectives)
        assert result["kinds"] == foretold, f"rank {rank}"
        if system.block:
            assert result["blocks"] == [system.block] * len(result["blocks"])
            assert result["blocks"]
    if system.step:
        assert results[0]["step"] == system.step


def test_the_pipeline_of_unequal_devices_is_unbalanced():
    system = find("unequal-pipeline")
    _, made = workload(system)
    plan = autopar.plan(made.pop("model"), 2, **made, cluster=system.cost_model,
                        pin=dict(system.pins))  # fmt: skip
    fast, slow = (sum("layers" in name for name in stage.layers) for stage in plan.stages)
    assert fast > slow


def test_command_runs_on_two_nodes(tmp_path):
    """As a user types it: plan, price beside the optimum, two torchrun agents, losses."""
    command = [sys.executable, str(FOLDER / "run.py"), "ddp-two-nodes", "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "autopar plan mlp.py:make --world-size 4" in done.stdout
    assert "autopar would choose" in done.stdout
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()
              if line.startswith("step ")]  # fmt: skip
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert "measured" in done.stdout
