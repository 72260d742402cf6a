"""Runs under torchrun: what is measured, and how a failure is told."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from autopar.emit.chassis import render
from autopar.errors import RunError, UsageError
from autopar.run import launch
from autopar.run.launch import last_lines, run_plan, torchrun
from examples.gpt import GPT, GPTConfig
from tests.emit.gpt_program import gpt_program, parameters

pytestmark = pytest.mark.multiprocess
SCRIPT = """
import os, signal, sys, time
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    open(f"{{os.path.dirname(__file__)}}/pid{{os.environ['RANK']}}", "w").write(str(os.getpid()))
    if os.environ["RANK"] == "1":
        {action}
    time.sleep({seconds})

main()
"""


# Rank 1 dies in its third step, once: each takes two micro-batches.
MORTAL = """
import os, signal
from pathlib import Path
from examples.gpt import make as made

DIED, calls = Path(__file__).with_name("died"), []

def count(*_):
    calls.append(1)
    if len(calls) == 5 and os.environ["RANK"] == "1" and not DIED.exists():
        DIED.touch()
        os.kill(os.getpid(), signal.SIGKILL)

def make():
    workload = made()
    workload["model"].transformer.h[-1].register_forward_hook(count)
    return workload
"""


def script(folder: Path, action: str, seconds: float = 60) -> list[str]:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(action=action, seconds=seconds), encoding="utf-8")
    return [str(path)]


def alive(folder: Path) -> list[int]:
    pids = [int(path.read_text()) for path in folder.glob("pid*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_error_of_a_rank(tmp_path):
    command = script(tmp_path, 'raise ValueError("a bad batch")')
    started = time.monotonic()
    with pytest.raises(RunError) as error:
        torchrun(command, 2, tmp_path, 120)
    assert error.value.found == "rank 1 of 2 failed: ValueError: a bad batch"
    assert error.value.where.startswith("script.py:")
    assert time.monotonic() - started < 60
    assert alive(tmp_path) == []


def test_killed_rank(tmp_path):
    command = script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match=r"rank 1 of 2 .*-9"):
        torchrun(command, 2, tmp_path, 120)
    assert alive(tmp_path) == []


def test_timeout(tmp_path):
    command = script(tmp_path, "print('still here', flush=True)")
    with pytest.raises(RunError, match="had not ended after 6 s"):
        torchrun(command, 2, tmp_path, 6)
    assert alive(tmp_path) == []


def test_nodes(tmp_path):
    """An agent per node deals out its share of the ranks, and an error of either is found."""
    told = "print(*(os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'GROUP_RANK', 'WORLD_SIZE')))"
    path = tmp_path / "script.py"
    path.write_text(f"import os\n{told}\n", encoding="utf-8")
    torchrun([str(path)], 2, tmp_path, 120, nodes=2)
    for node, line in enumerate(("0 0 0 2", "1 0 1 2")):
        # torchrun's agents have their own lines there, also behind it: the store may end first.
        assert line in (tmp_path / f"output{node}.txt").read_text().splitlines()
    path.write_text("import os\nassert os.environ['RANK'] == '0', 'lost'\n", encoding="utf-8")
    with pytest.raises(RunError, match="rank 1 of 2"):
        torchrun([str(path)], 2, tmp_path, 120, nodes=2)
    with pytest.raises(UsageError, match="2 nodes"):
        torchrun([str(path)], 3, tmp_path, 120, nodes=2)


def test_last_lines(tmp_path):
    path = tmp_path / "output.txt"
    path.write_text("\n".join(map(str, range(100))))
    assert last_lines(path).splitlines() == [str(n) for n in range(85, 100)]


def write_small(plan, path, model):
    """An emitter that knows one program: the example, on two stages."""
    config = GPTConfig()
    size = config.block_size
    program = gpt_program(
        2,
        parameters=parameters(config),
        global_batch=4,
        microbatch=2,
        workload=model,
        hidden=(((("MICROBATCH", str(size), str(config.n_embd)), "float32"),),),
    )
    text = render(program).replace("torch.arange(16", f"torch.arange({size}")
    Path(path).write_text(text, encoding="utf-8")


def test_run_plan(sample_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "write_program", write_small)
    monkeypatch.chdir(Path(__file__).parents[2])
    plan = type(sample_plan)(**(vars(sample_plan) | {"world_size": 2}))
    options = {"workload": "examples.gpt:make", "data": "examples.gpt:batches"}
    options |= {"checkpoint": tmp_path / "checkpoint", "timeout_seconds": 120.0}
    first = run_plan(plan, steps=3, **options)
    assert len(first.losses) == len(first.step_seconds) == 3
    assert first.losses[2] < first.losses[0]
    assert len(first.peak_memory_bytes) == 2
    assert min(first.peak_memory_bytes) > 0
    assert first.predicted_step_seconds == plan.prediction.step_seconds
    again = run_plan(plan, steps=4, observe=True, **options)
    assert len(again.losses) == 1
    assert again.losses[0] < first.losses[0], "it went on from the checkpoint"
    assert os.listdir(tmp_path / "checkpoint")
    look_inside(again)

    (tmp_path / "mortal.py").write_text(MORTAL, encoding="utf-8")
    mortal = {"workload": f"{tmp_path / 'mortal.py'}:make", "checkpoint": tmp_path / "again"}
    killed = run_plan(plan, steps=3, checkpoint_every=1, restarts=1, **options | mortal)
    assert (tmp_path / "died").exists()
    assert killed.losses == first.losses[2:], "two steps were saved, the third was run once more"


def test_restarts_need_checkpoints(sample_plan):
    with pytest.raises(UsageError, match="2 restarts without checkpoints"):
        run_plan(sample_plan, workload="examples.gpt:make", restarts=2, checkpoint="there")


def look_inside(result):
    """Both ranks compute, and hold their stage's parameters, gradients and two moments."""
    assert len(result.observed) == 2
    state = sum(4 * 4 * math.prod(shape) for shape in stored_shapes())
    assert state < sum(rank.live_bytes for rank in result.observed) < 4 * state
    assert min(rank.computing_seconds for rank in result.observed) > 0
    measured = [kind["measured_seconds"] for kind in result.split.values()]
    assert sum(measured) == pytest.approx(result.median_seconds)


def stored_shapes():
    """Shapes of the example's parameters."""
    return [p.shape for p in GPT(GPTConfig()).parameters()]
