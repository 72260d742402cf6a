from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from autopar.errors import PlanFormatError
from autopar.plan import Memory, Plan


def test_load_returns_what_was_saved(sample_plan, tmp_path):
    sample_plan.save(tmp_path / "p.json")
    loaded = Plan.load(tmp_path / "p.json")
    assert loaded == sample_plan
    assert loaded.plan_id == sample_plan.plan_id


def test_saving_again_gives_identical_bytes(sample_plan, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    sample_plan.save(first)
    Plan.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_plan_id_follows_the_content(sample_plan):
    assert len(sample_plan.plan_id) == 12
    assert replace(sample_plan).plan_id == sample_plan.plan_id
    assert replace(sample_plan, microbatch_size=1).plan_id != sample_plan.plan_id


def test_save_to_a_missing_directory_says_so(sample_plan, tmp_path):
    with pytest.raises(PlanFormatError, match="cannot be written") as caught:
        sample_plan.save(tmp_path / "no" / "p.json")
    assert "no/p.json" in caught.value.where
    assert caught.value.hint


def test_program_must_be_plain_data(sample_plan, tmp_path):
    with pytest.raises(PlanFormatError, match="tuple") as caught:
        replace(sample_plan, program={"a": [1, (2, 3)]}).save(tmp_path / "p.json")
    assert caught.value.where == "plan.program.a[1]"
    assert list(tmp_path.iterdir()) == []


def test_memory_total_is_the_sum_of_its_kinds():
    assert Memory(1, 2, 4, 8, 16, 32).total == 63


def test_plans_are_read_without_torch(sample_plan, tmp_path):
    sample_plan.save(tmp_path / "p.json")
    code = (
        "import sys, autopar, autopar.graph\n"
        "print(autopar.load_plan(sys.argv[1]).plan_id)\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "p.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == sample_plan.plan_id


def test_memory_of_a_rank_with_two_stages(sample_plan):
    """Everything adds up but the transients, which come one by one."""
    chunk = sample_plan.stages[0]
    small = replace(chunk.prediction, memory=replace(chunk.prediction.memory, transient=1))
    stages = (chunk, chunk, replace(chunk, prediction=small), chunk)
    plan = replace(sample_plan, virtual_stages=2, stages=stages)
    one, both = chunk.prediction.memory, plan.rank_memory(0)
    assert both.activations == 2 * one.activations
    assert both.transient == one.transient
    assert both.total == 2 * one.total - one.transient
