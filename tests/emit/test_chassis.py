"""The text of the program: equal for equal plans, formatted, and only what is used."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys

import pytest
import torch

from autopar.emit.chassis import render
from autopar.emit.uses import HELPERS, add_partial, helpers, partial_parameters
from tests.emit.gpt_program import flow, gpt_program

MIXED = {"zero": (0, 2, 3, 3), "ends_zero": 2, "recompute": ("none", "full", "selective", "none")}
SETTINGS = [{}, {**MIXED, "precision": "bf16"}, {"zero": (3,) * 4, "ends_zero": 3}]
DEGREES = list(itertools.product((1, 2, 4), (1, 2), (1, 2)))


@pytest.fixture(scope="module")
def texts():
    programs = [gpt_program(*degrees, **setting) for degrees in DEGREES for setting in SETTINGS]
    # Blocks are split, what is around them is not.
    programs.append(gpt_program(1, 1, 2, flow=flow(range(4), 1, 1), ends_placements={}))
    return list(map(render, programs))


def test_equal_plans_give_equal_bytes(texts):
    program = gpt_program(*DEGREES[-1], **SETTINGS[-1])
    assert render(program) == render(program) == texts[-2]


def test_is_formatted_and_free_of_lint(texts, tmp_path):
    for number, text in enumerate(texts):
        (tmp_path / f"program{number}.py").write_text(text, encoding="utf-8")
    for command in (("format", "--check"), ("check", "--select", "E,F,W,I,B,UP")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]


def test_imports_only_torch_and_the_standard_library(texts):
    for text in texts:
        nodes = ast.walk(ast.parse(text))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        nodes = ast.walk(ast.parse(text))
        names += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
        roots = {name.split(".")[0] for name in names}
        assert roots - set(sys.stdlib_module_names) == {"torch"}
        assert not any(part.startswith("_") for name in names for part in name.split("."))


def test_defines_no_function_that_is_not_used(texts):
    public = {"parallelize", "main", "forward", "save", "load", "eval", "train", "clip_grad_norm_"}
    public |= {"full_state_dict", "load_full_state_dict", "forward_backward"}
    for text in texts:
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        for node in functions:
            if node.name not in public and not node.name.startswith("__"):
                assert text.count(node.name) > 1, node.name
        assert max(n.end_lineno - n.lineno + 1 for n in functions) <= 60


def test_depth_changes_constants_only():
    blocks = tuple(f"transformer.h.{i}" for i in range(80))
    deep = gpt_program(
        2,
        2,
        2,
        blocks=blocks,
        stages=((0, 40), (40, 80)),
        zero=(3,) * 80,
        recompute=("full",) * 80,
        layers=("SplitBlock",) * 80,
    )
    shallow = gpt_program(2, 2, 2, zero=(3,) * 4, recompute=("full",) * 4)
    pairs = zip(render(deep).splitlines(), render(shallow).splitlines(), strict=True)
    changed = [one.partition(" = ")[0] for one, other in pairs if one != other]
    assert changed == ["BLOCKS", "STAGES", "ZERO", "LAYERS"]


@pytest.mark.parametrize(("code", "expected"), [
    ("y = enter(x)", {"enter"}),
    ("y = all_reduce_enter(x)", {"all_reduce_enter"}),
    ("loss = sharded_cross_entropy(x, y)", {"sharded_cross_entropy", "all_reduce"}),
    ("y = x.gather(1, i) + dist.all_reduce(x) + my_enter(x)", set()),
])  # fmt: skip
def test_helpers(code, expected):
    assert helpers(code) == expected
    assert expected <= set(HELPERS)


def test_partial_parameters():
    code = "f(partial(self.norm.weight), local(self.up.weight), partial(self.seq[0].bias))"
    assert partial_parameters(code, "self") == ("norm.weight", "seq.0.bias")
    text = f'class A(nn.Module):\n    """A."""\n\n    def forward(self):\n        return {code}'
    assert '    PARTIAL = ("norm.weight", "seq.0.bias")\n\n    def forward' in add_partial(text)
    assert add_partial(add_partial(text)) == add_partial(text)


def test_partial_parameters_are_found_across_lines():
    code = (
        "x = y * partial(\n    self.norm.weight\n)\nz = partial(self.experts[0].w1), local(self.b)"
    )
    assert partial_parameters(code, "self") == ("norm.weight", "experts.0.w1")


def test_places_in_nests_and_constants():
    nested = gpt_program(
        inputs={"idx": "0", "mask": "1.mask"}, constants={"2": "0.5"}, targets={"target": "target"}
    )  # fmt: skip
    text = render(nested)
    assert nested.nested
    assert 'INPUTS = ("0", "1.mask")' in text
    assert 'CONSTANTS = {"2": 0.5}' in text
    space: dict = {}
    exec(compile(text, "program.py", "exec"), space)
    samples = space["MICROBATCHES"] * space["MICROBATCH"]
    x = torch.arange(samples)
    first, *_ = space["microbatches"]((x, {"mask": 2 * x, "note": "any"}, 0.5), 3 * x)
    assert [part[1].item() for part in first] == [1, 2, 3]
    for inputs, found in (((x, {"mask": x}, 1.5), "2=1.5"), ((x, {}, 0.5), "tensors")):
        with pytest.raises(ValueError, match=found):
            space["microbatches"](inputs, x)


def test_names_of_numbered_children():
    code = "partial(self[0].weight), partial(\n    self.mlp[2].norm.bias\n), partial(self.scale)"
    assert partial_parameters(code, "self") == ("0.weight", "mlp.2.norm.bias", "scale")


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_example_is_shared_out(samples):
    """All ranks together read the example, repeated or cut to the global batch of 8, once."""
    space = {"__name__": "program"}
    exec(compile(render(gpt_program(dp=2)), "program.py", "exec"), space)
    made = {"example_inputs": {"x": torch.arange(samples), "scale": 2}, "example_target": None}
    read = space["example_batch"](made)
    shares = [read(0, 4, rank, 2) for rank in range(2)]
    assert [(inputs["scale"], target) for inputs, target in shares] == [(2, None)] * 2
    whole = torch.cat([inputs["x"] for inputs, _ in shares])
    assert whole.tolist() == [index % samples for index in range(8)]
