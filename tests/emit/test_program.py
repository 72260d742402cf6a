"""Whole programs: that they parse, keep to the line length, and depend on nothing but the plan."""

from __future__ import annotations

import ast
import dataclasses
import os
from pathlib import Path

import pytest

from autopar import graph_json
from autopar.emit.program import program_text, write_program
from autopar.errors import PlanFormatError
from autopar.plan import LayerPlan, Mesh
from autopar.strategies.sharding_json import encode_pattern, encode_sharding
from tests.emit.emitted import CLASS, SPLIT, WHOLE, shardings
from tests.zoo import MODELS, NAMES, reduced, traced

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def plan_of(sample_plan):
    """Two stages of a block each, with the given sharding."""

    def make(name, layout="sequence", weights=SPLIT):
        graph, classes = reduced(name)
        layers = traced(name).layers
        plans = tuple(LayerPlan(layer.name, k // 2, {}, 2 * (k % 2), "none")
                      for k, layer in enumerate(layers))  # fmt: skip
        program = {
            "graph": graph_json.encode(graph),
            "patterns": {key: encode_pattern(p) for key, p in classes.patterns.items()},
            "parts": {key: encode_pattern(p) for key, p in classes.parts.items()},
            "device": "cpu",
            "members": list(classes.members),
            "reads": [list(slots) for slots in classes.reads],
            "writes": [list(slots) for slots in classes.writes],
            "cuts": [[[c.slot, c.member, c.value] for c in classes.cuts[1]]],
            "notes": [],
            "shardings": {
                key: encode_sharding(s) for key, s in shardings(name, layout, weights).items()
            },
        }
        parameters = tuple(
            (key, tuple(p.shape), "float32") for key, p in MODELS[name]().named_parameters()
        )
        return dataclasses.replace(
            sample_plan, model=CLASS[name], mesh=Mesh(2, 1, 2), world_size=4, layers=plans,
            program=program, parameters=parameters,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("weights", [SPLIT, WHOLE], ids=["split", "whole"])
@pytest.mark.parametrize("name", NAMES)
def test_text(name, weights, plan_of):
    layout = "sequence" if weights is SPLIT else "replicate"
    text = program_text(plan_of(name, layout, weights), "package.module:workload")
    tree = ast.parse(text)
    compile(text, "program.py", "exec")
    assert max(map(len, text.splitlines())) <= 100
    assert "torch.ops.aten" not in text
    assert "autopar" not in [
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    ]
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert (f"Parallel{CLASS[name]}" in classes) == (weights is SPLIT)


@pytest.mark.parametrize(("known", "calmed"), [
    ({"device": "cpu"}, True), ({"device": "cuda"}, False), ({}, False),
], ids=["cpu", "cuda", "plan without device"])  # fmt: skip
def test_gloo_is_calmed_where_the_plan_is_for_cpu_hosts(known, calmed, plan_of):
    plan = plan_of(NAMES[0])
    program = {key: value for key, value in plan.program.items() if key != "device"} | known
    text = program_text(dataclasses.replace(plan, program=program), "package.module:workload")
    assert ("gloo_tcp_loop" in text) is calmed


@pytest.mark.parametrize(("golden", "name", "mesh"), [
    ("llama_3d", "llama", Mesh(2, 2, 2)), ("gpt_zero3", "gpt", Mesh(1, 2, 1)),
])  # fmt: skip
def test_golden(golden, name, mesh, plan_of):
    """A whole program to be read: written anew with AUTOPAR_WRITE_GOLDEN=1, then to be read."""
    plan = plan_of(name) if mesh.tp > 1 else plan_of(name, "replicate", WHOLE)
    plan = dataclasses.replace(plan, mesh=mesh, world_size=mesh.pp * mesh.dp * mesh.tp)
    if mesh.pp == 1:
        layers = tuple(dataclasses.replace(layer, stage=0, zero=3) for layer in plan.layers)
        program = {**plan.program, "cuts": [], "device": "cuda"}
        plan = dataclasses.replace(plan, layers=layers, program=program)
    text, path = program_text(plan, "package.module:workload"), GOLDEN / f"{golden}.txt"
    if os.environ.get("AUTOPAR_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_name_is_defined(plan_of):
    """No helper function is missing: every name that is read is a builtin, bound or imported."""
    import builtins

    for name in NAMES:
        tree = ast.parse(program_text(plan_of(name), "package.module:workload"))
        bound = set(dir(builtins)) | {"__file__", "__name__"}
        read = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
            elif isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        assert read <= bound, name


def test_equal_plans_give_equal_bytes(plan_of, tmp_path):
    paths = [tmp_path / folder / "train.py" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        write_program(plan_of("llama"), path, "package.module:workload")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"train.py" in paths[0].read_bytes()


@pytest.mark.parametrize(
    "broken", ["graph", "patterns", "shardings", "members", "reads", "cuts", "notes"]
)
def test_damaged_program_data(broken, plan_of):
    plan = plan_of("gpt")
    program = {key: value for key, value in plan.program.items() if key != broken}
    with pytest.raises(PlanFormatError) as caught:
        program_text(dataclasses.replace(plan, program=program))
    assert caught.value.where == "program"
    assert caught.value.hint
