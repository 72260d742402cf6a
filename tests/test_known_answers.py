"""Answers that are known, found without being told."""

from __future__ import annotations

import pytest
import torch

import autopar
from benchmarks.bench_pinned import MODELS, compare
from benchmarks.models import gpt, llama, on_meta, tokens

GIB = 2**30


def _planned(build, length, batch, devices=8, **more):
    more = {"cluster": "h100-80g", "global_batch_size": batch, **more}
    return autopar.plan(on_meta(build), devices, tokens(length), **more)


def test_megatron_with_sequence_parallelism_under_memory_pressure():
    """Column then row parallel within a node (Shoeybi et al. 2019, Korthikanti et al. 2022)."""
    plan = _planned(lambda: llama(8, 4096, 32, 8, 14336, 4096), 4096, 8, memory_limit=23 * GIB // 2,
                    pin={"zero": 2})  # fmt: skip
    assert plan.mesh.tp > 1
    assert plan.mesh.tp <= 8
    for layer in plan.layers[1:-1]:
        placed = {name.removeprefix(f"{layer.name}."): p for name, p in layer.placements.items()}
        for column in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                       "mlp.gate_proj", "mlp.up_proj"):  # fmt: skip
            assert placed[f"{column}.weight"] == ("Shard(0)",)
        for row in ("self_attn.o_proj", "mlp.down_proj"):
            assert placed[f"{row}.weight"] == ("Shard(1)",)
    assert plan.prediction.collectives.keys() >= {"all_gather", "reduce_scatter"}


def test_data_parallelism_where_a_model_fits_and_the_batch_is_large():
    plan = _planned(lambda: gpt(12, 768, 12, 1024), 1024, 512)
    assert (plan.mesh.pp, plan.mesh.dp, plan.mesh.tp) == (1, 8, 1)
    assert {layer.recompute for layer in plan.layers} == {"none"}


def test_stages_with_a_heavy_head_hold_fewer_blocks():
    """A vocabulary as heavy as several blocks: the head's stage gets what is left over."""
    plan = _planned(lambda: gpt(12, 1024, 16, 1024, 256_000), 1024, 64, 2,
                    pin={"pp": 2, "schedule": "1f1b"})  # fmt: skip
    blocks = [sum(".h." in name for name in stage.layers) for stage in plan.stages]
    assert sum(blocks) == 12
    assert blocks[1] <= blocks[0] - 2


class Embedded(torch.nn.Module):
    """An embedding that weighs as much as eighty of its blocks."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(1_000_000, 1024)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(1024, 16, 4096, 0.0, batch_first=True)
            for _ in range(8)
        )
        self.head = torch.nn.Linear(1024, 10)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_stages_with_a_heavy_embedding_hold_fewer_blocks():
    """The embedding takes the memory that blocks would: half a gibibyte less moves some of them.

    In two large micro-batches, as the gradient of the embedding is added up in each.
    """
    ids, labels = torch.ones(2, 128, dtype=torch.long), torch.ones(2, dtype=torch.long)

    def blocks_and_memory(limit):
        plan = autopar.plan(
            on_meta(Embedded), 2, (ids,), example_target=labels,
            loss_fn=torch.nn.functional.cross_entropy, cluster="h100-80g", global_batch_size=256,
            memory_limit=limit,
            pin={"pp": 2, "schedule": "1f1b", "recompute": "none", "microbatch_size": 128},
        )  # fmt: skip
        counts = [sum(name.startswith("blocks.") for name in s.layers) for s in plan.stages]
        return counts, plan.prediction.memory_bytes

    even, memory_bytes = blocks_and_memory(None)
    uneven, _ = blocks_and_memory(memory_bytes - GIB // 2)
    assert sum(uneven) == sum(even) == 8
    assert uneven[0] < even[0]
    assert uneven[0] < uneven[1]


@pytest.mark.parametrize("name", ["gpt2"])
def test_no_pinned_plan_beats_the_free_one(name):
    """A part of what ``benchmarks/bench_pinned.py`` compares."""
    free, found = compare(MODELS[name], 4, microbatches=(1, 4))
    assert len(found) >= 12
    best = min(plan.prediction.step_seconds for _, plan in found)
    assert free.prediction.step_seconds <= best * (1 + max(free.solver.gap, 0.001))
