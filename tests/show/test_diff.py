from __future__ import annotations

from dataclasses import replace

from autopar.plan import Mesh
from autopar.show.diff import Difference, diff, diff_report


def test_equal_plans(sample_plan):
    assert diff(sample_plan, replace(sample_plan)) == []
    assert diff_report([], ("a", "b")).verdict == "The plans are equal."


def test_decisions_come_before_predictions(sample_plan):
    other = replace(
        sample_plan,
        prediction=replace(sample_plan.prediction, step_seconds=0.8),
        mesh=Mesh(pp=2, dp=2, tp=4),
        global_batch_size=128,
    )
    assert diff(sample_plan, other) == [
        Difference("decision", "mesh.dp", 4, 2),
        Difference("decision", "mesh.tp", 2, 4),
        Difference("decision", "mesh.dp_shard", 4, 2),
        Difference("input", "global_batch_size", 64, 128),
        Difference("prediction", "prediction.step_seconds", 0.7, 0.8),
    ]


def test_layers_are_compared_by_name(sample_plan):
    moved = replace(sample_plan.layers[3], stage=0)
    layers = (*sample_plan.layers[:3], moved, *sample_plan.layers[4:])
    found = diff(sample_plan, replace(sample_plan, layers=layers))
    assert found == [Difference("decision", "layers['blocks.3'].stage", 1, 0)]


def test_missing_layers_and_stages(sample_plan):
    other = replace(sample_plan, layers=sample_plan.layers[:-1], stages=sample_plan.stages[:1])
    paths = {difference.path: difference for difference in diff(sample_plan, other)}
    assert paths["layers['blocks.5']"].second is None
    assert paths["stages[1]"].second is None


def test_program_differs_as_a_whole(sample_plan):
    (found,) = diff(sample_plan, replace(sample_plan, program={}))
    assert (found.kind, found.path) == ("prediction", "program")
    assert found.first.startswith("sha256 ")


def test_solver_seconds_are_no_difference(sample_plan):
    solver = replace(sample_plan.solver, seconds=9.0)
    assert diff(sample_plan, replace(sample_plan, solver=solver)) == []


def test_report_has_one_section_per_kind(sample_plan):
    differences = diff(sample_plan, replace(sample_plan, microbatch_size=1, notes=("x" * 200,)))
    built = diff_report(differences, ("a.json", "b.json"))
    assert [section.title for section in built.sections] == ["Decisions", "Predictions"]
    assert built.verdict == "The plans differ in 2 field(s)."
    assert built.sections[0].parts[0].rows == (("microbatch_size", "2", "1"),)
    assert len(built.sections[1].parts[0].rows[0][2]) == 80
