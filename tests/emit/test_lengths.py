"""Whole programs as planned: what depth changes, and how long they are."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import autopar
from autopar.emit import program_text
from examples.gpt import GPT, GPTConfig, loss_fn
from tests.traces import traced_once

DEGREES = {"one": (1, 1, 1), "dp": (1, 2, 1), "pp": (2, 1, 1), "tp": (1, 1, 2), "3d": (2, 2, 2)}
# Lines of whole programs. 400 were wanted; docs/results.md says what the others are for.
LONGEST = {
    "llama": {"one": 424, "dp": 463, "pp": 490, "tp": 664, "3d": 693},
    "gpt": {"one": 436, "dp": 475, "pp": 545, "tp": 710, "3d": 767},
}


@cache
def text(name: str, layers: int, kind: str) -> str:
    """The program of a pinned plan; what the figures decide is pinned too."""
    pp, dp, tp = DEGREES[kind]
    pins: dict[str, Any] = {"pp": pp, "dp": dp, "tp": tp, "microbatch_size": 1, "recompute": "full"}
    pins |= {"schedule": "1f1b"} if pp > 1 else {}
    pins |= {"zero": 2} if dp > 1 else {}
    pins |= {"sequence_parallel": True} if tp > 1 else {}
    model, inputs, loss, target = workload(name, layers)
    with traced_once(f"{name} of {layers} layers"):
        plan = autopar.plan(
            model, pp * dp * tp, inputs, loss, target, cluster="h200-141g", global_batch_size=8,
            pin=pins,
        )  # fmt: skip
    return program_text(plan, "package.module:workload")


def workload(name: str, layers: int) -> tuple[nn.Module, Any, Any, Any]:
    """Model, inputs, loss function and target; wide enough for tensor parallelism to pay."""
    tokens = torch.zeros(2, 2048, dtype=torch.long)
    with torch.device("meta"):
        if name == "gpt":
            return GPT(GPTConfig(32000, 2048, layers, 32, 2048)), (tokens,), loss_fn, tokens
        config = LlamaConfig(
            vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048,
        )  # fmt: skip
        return LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}, None, None


@pytest.mark.parametrize("kind", DEGREES)
def test_depth_changes_constants_only(kind):
    shallow, deep = (text("llama", layers, kind).splitlines() for layers in (4, 80))
    changed = [one for one, other in zip(shallow, deep, strict=True) if one != other]
    assert [line.split()[0] for line in changed[:2]] == ["Plan", "Predicted:"]
    names = [re.match(r"([A-Z_]+)(, [A-Z_]+)* = ", line) for line in changed[2:]]
    assert all(names), changed


@pytest.mark.parametrize("kind", DEGREES)
@pytest.mark.parametrize("name", LONGEST)
def test_length(name, kind):
    assert len(text(name, 4, kind).splitlines()) <= LONGEST[name][kind]


def test_programs_are_formatted_and_free_of_lint(tmp_path):
    for name, kind in itertools.product(LONGEST, DEGREES):
        (tmp_path / f"{name}_{kind}.py").write_text(text(name, 4, kind), encoding="utf-8")
    for command in (("format", "--check"), ("check", "--select", "E,F,W,I,B,UP,SIM")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("kind", ["tp", "3d"])
def test_variables_have_the_names_of_the_users_source(kind):
    source = text("llama", 4, kind)
    block = source[source.index("class ParallelLlamaDecoderLayer") : source.index("LAYERS = ")]
    for name in ("query_states", "key_states", "attn_output", "variance", "hidden_states"):
        assert f"        {name} = " in block, name
    assert "forward(self, hidden, cos, sin)" in block
    assert not re.search(r"^ +(add|mul|reshape|transpose|unsqueeze)(_\d+)? = ", block, re.MULTILINE)
