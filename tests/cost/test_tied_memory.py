"""A table that embeds and scores: its first gradient waits through the backward of all blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autopar
from autopar.run.live import PeakBytes
from tests.multiprocess.programs import load_program
from tests.multiprocess.test_fidelity import these_cpus

ITEMS, WIDTH, TOKENS, SAMPLES = 4096, 32, 256, 4


class Block(nn.Module):
    """What a block computes again is its peak, behind that of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class NextItem(nn.Module):
    """Scores all items behind the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, items: Tensor) -> Tensor:
        x = self.table(items)
        for block in self.blocks:
            x = block(x)
        return F.linear(x[:, -1], self.table.weight)


def test_the_head_s_gradient_of_a_tied_table_waits(tmp_path):
    torch.manual_seed(0)
    items = torch.randint(ITEMS, (SAMPLES, TOKENS))
    target = items[:, 0].clone()
    plan = autopar.plan(
        NextItem(), 1, (items,), F.cross_entropy, target, cluster=these_cpus(),
        global_batch_size=SAMPLES, precision="fp32",
        pin={"recompute": "full", "microbatch_size": 2},
    )  # fmt: skip
    path = str(tmp_path / "program.py")
    plan.emit(path, model="tests:none")
    program = load_program(path)
    parallel = program.parallelize(NextItem())
    optimizer = program.optimizer_for(parallel, 1e-3)
    memory = PeakBytes(list(parallel.parameters()))
    for _ in range(2):
        with memory:
            parallel.forward_backward((items,), target)
            optimizer.step()
            optimizer.zero_grad()
    assert 0.98 * memory.peak <= plan.rank_memory(0).live <= 1.08 * memory.peak
