"""The generated forwards: their text, and what they compute."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch

from autopar.emit.layers import input_name, readable
from tests.emit.emitted import CLASS, SPLIT, WHOLE, generated, run_text, texts
from tests.zoo import MODELS, NAMES, TOKENS, VOCABULARY, reduced

LAYOUTS = ("replicate", "sequence")
GOLDEN = Path(__file__).parent / "golden"
LINE = 100


@pytest.mark.parametrize("weights", [SPLIT, WHOLE], ids=["split", "whole"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_text(name, layout, weights):
    for key, text in texts(name, layout, weights).items():
        ast.parse(text)
        assert "torch.ops" not in text, key
        if text.startswith("class"):
            assert max(map(len, text.splitlines())) <= LINE, key


@pytest.mark.parametrize("weights", [SPLIT, WHOLE], ids=["split", "whole"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_text_computes_the_loss(name, layout, weights):
    torch.manual_seed(0)
    model, (graph, _) = MODELS[name](), reduced(name)
    inputs = {key: torch.randint(VOCABULARY, (2, TOKENS)) for key in graph.inputs}
    with torch.no_grad():
        if name == "gpt":
            logits = model(inputs["args.0"])
            expected = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), inputs["target"].flatten()
            )
        else:
            expected = model(**{k.removeprefix("kwargs."): v for k, v in inputs.items()}).loss
        found = run_text(name, layout, weights, model, inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_golden(layout):
    """Written anew with AUTOPAR_WRITE_GOLDEN=1; the difference is then to be read."""
    (layer,) = generated("gpt", layout, SPLIT)[0].values()
    path = GOLDEN / f"gpt_block_{layout}.txt"
    if os.environ.get("AUTOPAR_WRITE_GOLDEN"):
        path.write_text(layer.source + "\n", encoding="utf-8")
    assert layer.source + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_class_of_a_split_block(name):
    (layer,) = generated(name, "sequence", SPLIT)[0].values()
    tree = ast.parse(layer.source).body[0]
    assert tree.name == layer.name == f"Parallel{CLASS[name]}"
    assert ast.get_docstring(tree) == ("Split over tp. Forward: 2 all-gather, 2 reduce-scatter.")
    fields = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    placed = {key.value: ast.unparse(value) for key, value in
              zip(fields["PLACEMENTS"].keys, fields["PLACEMENTS"].values, strict=True)}  # fmt: skip
    assert placed == layer.placements
    assert layer.fused.keys() <= layer.placements.keys()
    for fused, (dim, parts) in layer.fused.items():
        assert parts == 3
        assert layer.placements[fused] == f"Shard({dim + 1})"


@pytest.mark.parametrize("name", NAMES)
def test_whole_parts_are_calls_of_the_users_modules(name):
    split, stage = generated(name, "replicate", WHOLE)
    assert split == {}
    embeddings = {"llama": "embed_tokens"}.get(name, "wte")
    embedding, first, second, head = stage.statements
    assert f".{embeddings}(" in embedding
    assert "model.lm_head(" in head
    assert first == second
    assert first.startswith("hidden = self.run(")
    assert ("position_embeddings=(cos, sin)" in first) == (name == "llama")


def test_names():
    assert readable("linear_3_product") == "linear"
    assert readable("and_2_ones") == "and"
    assert readable("_1") == "_1"
    assert input_name("args.0") == "inputs"
    assert input_name("args.0.1") == "inputs_0_1"
    assert input_name("target.0") == "target_0"
    assert input_name("kwargs.x.0") == "x_0"
    assert input_name("kwargs.input_ids") == "input_ids"
    assert input_name("target") == "target"
