"""Ctrl-C, as a real signal to a process that plans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A shell's background jobs, and what they start, ignore SIGINT; Python then installs no handler.
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
FOUND = """
import json, time, autopar
from examples.gpt import loss_fn
from tests.zoo import gpt, tokens

def progress(done, total, best, bound):
    if best is not None:
        print("found", flush=True)
        time.sleep(60)

plan = autopar.plan(gpt(), 8, (tokens(),), loss_fn, tokens(), cluster="h100-80g",
                    global_batch_size=16, gap=0.0, progress=progress)
report = plan.solver
print(json.dumps([report.status, report.gap, report.bound, report.objective, plan.mesh.pp]))
"""
NOTHING_YET = """
import sys, time
from autopar.cli import main

def workload():
    print("found", flush=True)
    time.sleep(60)

sys.modules["slow"] = sys.modules["__main__"]
sys.exit(main(["plan", "slow:workload", "--world-size", "8", "--cluster", "h100-80g"]))
"""


def interrupted(script: str) -> tuple[int, str, str]:
    """Sends SIGINT behind the first line of output; (return code, later output, errors)."""
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENS + script], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "found\n"
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=50)
    return child.returncode, output, errors


def test_the_plan_that_there_is_comes_back_with_its_gap():
    code, output, errors = interrupted(FOUND)
    assert code == 0, errors
    status, gap, bound, objective, _ = json.loads(output)
    assert status in ("interrupted", "optimal"), "optimal only where the first plan meets its bound"
    assert 0 <= bound <= objective
    assert abs(gap - (1 - bound / objective)) < 1e-9


def test_without_a_plan_it_is_said():
    code, _, errors = interrupted(NOTHING_YET)
    assert code == 130
    assert errors.endswith("autopar: interrupted\n")
    assert "Traceback" not in errors
