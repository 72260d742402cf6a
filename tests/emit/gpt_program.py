"""The programs of `examples/gpt.py`, their generated parts written by hand."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from itertools import pairwise
from typing import Any

from autopar.emit.chassis import Loop, Part, Program
from examples.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=64, block_size=16, n_layer=4, n_head=4, n_embd=32)

BLOCK = '''class SplitBlock(nn.Module):
    """Block: heads, MLP and, between them, tokens are divided over tp."""

    PLACEMENTS = {
        "attn.c_attn.weight": Shard(1),
        "attn.c_attn.bias": Shard(1),
        "attn.c_proj.weight": Shard(1),
        "mlp.c_fc.weight": Shard(0),
        "mlp.c_fc.bias": Shard(0),
        "mlp.c_proj.weight": Shard(1),
    }
    FUSED = {"attn.c_attn.weight": (0, 3), "attn.c_attn.bias": (0, 3)}

    def forward(self, x):
        B, T, C = len(x), 16, 32
        ln_1 = F.layer_norm(x, (C,), partial(self.ln_1.weight), partial(self.ln_1.bias))
        ln_1 = all_gather(ln_1, dim=1)
        weight = local(self.attn.c_attn.weight).flatten(0, 1)
        c_attn = F.linear(ln_1, weight, local(self.attn.c_attn.bias).flatten())
        q, k, v = c_attn.view(B, T, 3, 4 // TP, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C // TP)
        c_proj = reduce_scatter(F.linear(y, local(self.attn.c_proj.weight)), dim=1)
        x = x + c_proj + partial(self.attn.c_proj.bias)
        ln_2 = F.layer_norm(x, (C,), partial(self.ln_2.weight), partial(self.ln_2.bias))
        ln_2 = all_gather(ln_2, dim=1)
        c_fc = F.linear(ln_2, local(self.mlp.c_fc.weight), local(self.mlp.c_fc.bias))
        c_proj = F.linear(F.gelu(c_fc), local(self.mlp.c_proj.weight))
        return x + reduce_scatter(c_proj, dim=1) + partial(self.mlp.c_proj.bias)'''

PLAIN_EMBED = """positions = torch.arange(16, device=DEVICE)
hidden = model.transformer.wte(idx) + model.transformer.wpe(positions)"""
PLAIN_HEAD = """logits = model.lm_head(model.transformer.ln_f(hidden))
loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())"""

SPLIT_EMBED = """positions = torch.arange(16, device=DEVICE)
wte = sharded_embedding(idx, local(model.transformer.wte.weight))
wpe = F.embedding(positions, partial(model.transformer.wpe.weight))
hidden = reduce_scatter(wte, dim=1) + narrow(wpe, dim=0)"""
SPLIT_HEAD = """weight = partial(model.transformer.ln_f.weight)
ln_f = F.layer_norm(hidden, (32,), weight, partial(model.transformer.ln_f.bias))
logits = F.linear(all_gather(ln_f, dim=1), local(model.lm_head.weight))
loss = sharded_cross_entropy(logits.flatten(0, 1), target.flatten())"""

TIED = (("transformer.wte.weight", "lm_head.weight"),)
ENDS = {
    "transformer.wte.weight": "Shard(0)",
    "transformer.wpe.weight": "Replicate()",
    "transformer.ln_f.weight": "Replicate()",
    "transformer.ln_f.bias": "Replicate()",
    "lm_head.weight": "Shard(0)",
}


def parameters(config: GPTConfig = CONFIG) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """(name, shape, dtype) of the model's parameters."""
    named = GPT(config).named_parameters()
    return tuple((name, tuple(p.shape), str(p.dtype)[6:]) for name, p in named)


def flow(blocks: Sized, stages: int, tp: int) -> tuple[Part | Loop, ...]:
    """Embedding, blocks and head."""
    first = ("transformer.wte.weight", "transformer.wpe.weight")
    last = ("transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight")
    return (
        Part(SPLIT_EMBED if tp > 1 else PLAIN_EMBED, 0, first),
        Loop(0, len(blocks), "hidden = self.run(index, hidden)"),
        Part(SPLIT_HEAD if tp > 1 else PLAIN_HEAD, stages - 1, last),
    )


def gpt_program(pp: int = 1, dp: int = 1, tp: int = 1, **changes: Any) -> Program:
    """A program for the small GPT on pp x dp x tp ranks."""
    layers = CONFIG.n_layer
    stages = pp * changes.get("virtual_stages", 1)
    cuts = [layers * stage // stages for stage in range(stages + 1)]
    dtype = "bfloat16" if changes.get("precision") == "bf16" else "float32"
    shape = ("MICROBATCH", "16 // TP", "32") if tp > 1 else ("MICROBATCH", "16", "32")
    program = Program(
        title=f"GPT on {pp * dp * tp} ranks: {pp} stages x {dp} data x {tp} tensor parallel",
        summary=("Predicted: 12.5 ms and 100.0 MiB on the largest rank (cost model cpu).",),
        pp=pp,
        dp=dp,
        tp=tp,
        global_batch=8,
        microbatch=8 // dp // 2,
        inputs={"idx": "idx"},
        blocks=tuple(f"transformer.h.{i}" for i in range(layers)),
        stages=tuple(pairwise(cuts)),
        zero=(0,) * layers,
        recompute=("none",) * layers,
        layers=("SplitBlock" if tp > 1 else None,) * layers,
        parameters=parameters(),
        context="",
        flow=flow(changes.get("blocks", range(layers)), stages, tp),
        classes=(BLOCK,) if tp > 1 else (),
        ends_placements=ENDS if tp > 1 else {},
        tied=TIED,
        shared={"transformer.wte.weight": (0, pp - 1)} if pp > 1 else {},
        cuts=(("hidden",),) * (stages - 1),
        hidden=(((shape, dtype),),) * (stages - 1),
        predicted_step_seconds=0.0125,
        predicted_memory_bytes=100 * 2**20,
        workload="examples.gpt:make",
        tokens_per_sample=16,
    )
    return replace(program, **changes)
