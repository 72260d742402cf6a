"""Dropout under tensor parallelism: ranks stay equal, recomputation repeats its masks."""

from __future__ import annotations

import pytest
import torch

import autopar
from examples.gpt import GPT, GPTConfig, loss_fn
from tests.multiprocess.models import SAMPLES, TOKENS, VOCABULARY, batch
from tests.multiprocess.programs import load_program
from tests.traces import traced_once

pytestmark = pytest.mark.multiprocess


def make() -> GPT:
    torch.manual_seed(3)
    return GPT(GPTConfig(VOCABULARY, TOKENS, 3, n_head=4, n_embd=32, dropout=0.2))


def train(path: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and this rank's copy of the replicated norm weights."""
    parallel = load_program(path).parallelize(make())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    losses = []
    for step in range(3):
        loss = parallel.forward_backward(*batch("gpt", step))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    norms = {n: p.to_local().detach() for n, p in parallel.named_parameters() if "ln_1" in n}
    return losses, norms


def run(ranks, path, **pins):
    inputs, target = batch("gpt", 0)
    with traced_once("gpt with dropout"):
        plan = autopar.plan(
            make(), 2, inputs, loss_fn, target, cluster="h100-80g", global_batch_size=SAMPLES,
            precision="fp32", pin={"tp": 2, **pins},
        )  # fmt: skip
    plan.emit(path, model="tests:none")
    assert "with shard_rng():" in path.read_text()
    return ranks(2).run(train, str(path))


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_ranks_agree_and_recomputation_repeats_the_masks(ranks, tmp_path, sequence_parallel):
    kept = run(ranks, tmp_path / "kept.py", recompute="none", sequence_parallel=sequence_parallel)
    again = run(ranks, tmp_path / "again.py", recompute="full", sequence_parallel=sequence_parallel)
    for (losses, norms), (other_losses, other_norms) in [kept, again]:
        assert losses == other_losses
        assert all(torch.equal(norms[name], other_norms[name]) for name in norms)
    assert kept[0][0] == pytest.approx(again[0][0], rel=1e-6)
