from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.plan import Mesh, RunnerUp
from autopar.show.parts import Facts
from autopar.show.report import launch_command, report


def cells(plan, title):
    section = next(s for s in report(plan).sections if s.title == title)
    return [row for part in section.parts for row in part.rows]


def facts(plan, title):
    section = next(s for s in report(plan).sections if s.title == title)
    return dict(row for part in section.parts if isinstance(part, Facts) for row in part.rows)


def calibrated(plan):
    return replace(plan, cluster=replace(plan.cluster, calibrated=True))


def test_first_line_warns_of_an_uncalibrated_model(sample_plan):
    assert report(sample_plan).verdict.startswith("UNCALIBRATED")
    assert report(calibrated(sample_plan)).verdict.startswith("pp=2 dp=4 tp=2 takes 700 ms")


def test_step_time_with_the_interval_of_the_models_own_errors(sample_plan):
    """Predictions 10 % too low to 25 % too high: 0.7 s may be 0.56 s to 0.78 s."""
    assert "never compared" in facts(sample_plan, "Cost model")["step times"]
    error = {"p10": -0.1, "p90": 0.25, "points": 49.0}
    plan = replace(sample_plan, cluster=replace(sample_plan.cluster, step_error=error))
    assert "takes 700 ms (560 ms to 778 ms) per step" in report(plan).verdict
    assert "-10 % to +25 %" in facts(plan, "Cost model")["step times"]


def test_verdict_states_the_certificate(sample_plan):
    assert report(sample_plan).verdict.endswith("proven within 0.40 % of the optimum")
    solver = replace(sample_plan.solver, gap=0.0)
    assert report(replace(sample_plan, solver=solver)).verdict.endswith("proven optimal")


def test_memory_by_kind_with_its_share(sample_plan):
    row = cells(sample_plan, "Memory per rank")[0]
    assert row[0] == "0"
    assert row[1] == "17.6 GiB (22 %)"
    assert row[2:] == ("4.0 GiB", "2.0 GiB", "8.0 GiB", "3.0 GiB", "512.0 MiB", "102.4 MiB", "0 B")


def test_time_parts_add_up(sample_plan):
    rows = cells(sample_plan, "Time per step")
    assert rows[0] == ("compute", "500 ms", "71 %")
    assert rows[6] == ("step", "700 ms", "100 %")


def test_equal_neighbours_are_one_row(sample_plan):
    rows = cells(sample_plan, "Layers")
    assert [row[1] for row in rows] == ["blocks.0 .. blocks.2 (3)", "blocks.3 .. blocks.5 (3)"]
    assert rows[0][-1] == "Shard(0): up; Shard(1): down"


def test_baselines_fastest_first_then_the_impossible(sample_plan):
    rows = cells(sample_plan, "What you would have typed")
    assert [row[0] for row in rows] == ["fsdp", "megatron", "ddp"]
    assert rows[0][2] == "1.20 x the time"
    assert rows[2][-1] == "short by 110.0 GiB"


def test_several_impossible_baselines(sample_plan):
    base = sample_plan.baselines[0]
    plan = replace(sample_plan, baselines=(base, replace(base, name="gpipe")))
    assert len(cells(plan, "What you would have typed")) == 2


def test_runners_up_and_why_they_lost(sample_plan):
    runner = RunnerUp(Mesh(4, 4, 1), 1, "1f1b", 1, 0.82, 2**34, "0.12 s more bubble")
    (row,) = cells(replace(sample_plan, runners_up=(runner,)), "Runners-up")
    assert row[0] == "pp=4 dp=4 tp=1 microbatch_size=1 1f1b"
    assert row[-1] == "0.12 s more bubble"
    titles = [section.title for section in report(sample_plan).sections]
    assert "Runners-up" not in titles


def test_search_and_provenance(sample_plan):
    assert facts(sample_plan, "Search")["gap"] == "0.40 %"
    assert facts(sample_plan, "Search")["configurations"] == "3 solved, 40 pruned"
    assert facts(sample_plan, "Cost model")["fit error"] == "gemm 5.0 %"


def test_empty_sections_are_left_out(sample_plan):
    titles = [s.title for s in report(replace(sample_plan, notes=(), baselines=())).sections]
    assert "Notes" not in titles
    assert "What you would have typed" not in titles


@pytest.mark.parametrize(("workload", "model"), [("a:b", ""), ("", " --model MODULE:FUNCTION")])
def test_next_commands(sample_plan, workload, model):
    commands = report(replace(sample_plan, workload=workload), "my plan.json").commands
    assert commands[0] == f"autopar emit 'my plan.json' -o 'my plan_train.py'{model}"
    assert commands[1].startswith("torchrun --nnodes 2 ")
    assert commands[1].endswith(" --nproc-per-node 8 'my plan_train.py'")


def test_one_node_needs_no_rendezvous(sample_plan):
    cluster = replace(sample_plan.cluster, devices_per_node=16)
    command = launch_command(replace(sample_plan, cluster=cluster), "t.py")
    assert command == "torchrun --nproc-per-node 16 t.py"


def test_memory_of_ranks_with_several_stages(sample_plan):
    plan = replace(sample_plan, virtual_stages=2, stages=sample_plan.stages * 2)
    rows = cells(plan, "Memory per rank")
    assert [row[0] for row in rows if len(row) > 2] == ["0, 2", "1, 3"]
