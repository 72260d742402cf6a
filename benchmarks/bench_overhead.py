"""Emitted programs against programs written by hand for the same plan, step by step in turns.

    python benchmarks/bench_overhead.py [--rounds 30] [--cases one tp dp pp] [--profile DIR]

Both are in the same processes on gloo ranks of this host, and a round is a step of either, so that
whatever disturbs the host hits both. The programs by hand are what torch's tutorials teach:
``parallelize_module``, ``fully_shard``, ``PipelineStage``; one rank is plain eager PyTorch.
Both clip by global norm, use the fused AdamW and know the mean loss on every rank.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gpt

BATCH, TOKENS, MICROBATCHES, WARM_UP = 4, 64, 4, 3
Step = Callable[[], float]
PINS: dict[str, dict[str, Any]] = {
    "one": {"microbatch_size": BATCH},
    "one-gpt": {"microbatch_size": BATCH},
    "dp-gpt": {"dp": 2, "zero": 3, "microbatch_size": BATCH // 2},
    "dp": {"dp": 2, "zero": 3, "microbatch_size": BATCH // 2},
    "tp": {"tp": 2, "sequence_parallel": False, "sharding": "lean", "microbatch_size": BATCH},
    "pp": {"pp": 2, "schedule": "1f1b", "microbatch_size": BATCH // MICROBATCHES},
}


def make(case: str = "") -> dict[str, Any]:
    """The workload: a model whose step takes a tenth of a second or two on one core.

    It is Hugging Face's Llama, or the example GPT, which makes no mask.
    """
    torch.manual_seed(0)
    if case.endswith("gpt"):
        model = gpt.GPT(gpt.GPTConfig(1024, TOKENS, 4, 8, 256))
        tokens = torch.randint(1024, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
        made = {"model": model, "example_inputs": (tokens,), "example_target": tokens}
        return made | {"loss_fn": gpt.loss_fn, "global_batch_size": BATCH}
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=TOKENS,
        use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    tokens = torch.randint(1024, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": tokens, "labels": tokens}
    return {"model": LlamaForCausalLM(config), "example_inputs": inputs, "global_batch_size": BATCH}


def emitted(case: str, path: str) -> Step:
    """A step of the emitted program, as its ``train`` does it."""
    spec = importlib.util.spec_from_file_location("emitted", path)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules["emitted"] = program
    spec.loader.exec_module(program)
    workload = make(case)
    parallel = program.parallelize(workload["model"])
    optimizer = program.optimizer_for(parallel, 1e-4)
    batches = program.example_batch(workload)

    def step() -> float:
        share = program.GLOBAL_BATCH // parallel.dp_size
        inputs, target = batches(0, share, parallel.dp_rank, parallel.dp_size)
        loss = parallel.forward_backward(inputs, target)
        parallel.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def by_hand(case: str) -> Step:
    """A step of the program by hand."""
    workload = make(case)
    model, inputs = workload["model"], workload["example_inputs"]
    is_gpt = case.endswith("gpt")
    tokens = inputs[0] if is_gpt else inputs["input_ids"]
    if case == "pp":
        return _pipeline(model, tokens)
    if case.startswith("dp"):
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.transformer["h"] if is_gpt else model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        tokens = tokens.chunk(2)[dist.get_rank()]
    if case == "tp":
        _tensor_parallel(model)
    optimizer = _optimizer(model)

    def step() -> float:
        if is_gpt:
            loss = gpt.loss_fn(model(tokens), tokens)
        else:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        _finish(model, optimizer)
        total = loss.detach()
        if case.startswith("dp"):
            dist.all_reduce(total)
            total /= 2
        return float(total)

    return step


def _tensor_parallel(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (2,))
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
               "mlp.up_proj")  # fmt: skip
    plan = {name: ColwiseParallel() for name in columns}
    rows = {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, {**plan, **rows})
    ends = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, ends)


class Half(nn.Module):
    """One of two pipeline stages of a Llama."""

    def __init__(self, model: Any, rank: int) -> None:
        super().__init__()
        layers = list(model.model.layers)
        half = len(layers) // 2
        self.layers = nn.ModuleList(layers[rank * half : (rank + 1) * half])
        self.rotary = model.model.rotary_emb
        self.embed = None if rank else model.model.embed_tokens
        self.norm, self.head = (model.model.norm, model.lm_head) if rank else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to the hidden state, or the hidden state to logits."""
        x = self.embed(x) if self.embed is not None else x
        places = torch.arange(x.shape[1])[None]
        tables = self.rotary(x, places)
        for layer in self.layers:
            x = layer(x, position_embeddings=tables, position_ids=places)
        return self.head(self.norm(x)) if self.head is not None else x  # type: ignore[misc]


def _pipeline(model: Any, tokens: Tensor) -> Step:
    rank = dist.get_rank()
    half = Half(model, rank)
    stage = PipelineStage(half, rank, 2, torch.device("cpu"))

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=loss_fn)
    optimizer = _optimizer(half)

    def step() -> float:
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(tokens)
        else:
            schedule.step(target=tokens, losses=losses)
        total = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        dist.all_reduce(total)
        _finish(half, optimizer, stages=True)
        return float(total)

    return step


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
    whole = [p for p in model.parameters() if not isinstance(p, DTensor)]
    groups = [{"params": group} for group in (sharded, whole) if group]
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


def _finish(model: nn.Module, optimizer: torch.optim.Optimizer, *, stages: bool = False) -> None:
    """Clips by the global norm, as torchtitan does it, and steps."""
    squares = torch.zeros(())
    for group in optimizer.param_groups:
        norm = nn.utils.get_total_norm([p.grad for p in group["params"]])
        squares += (norm.full_tensor() if isinstance(norm, DTensor) else norm).square()
    if stages:
        dist.all_reduce(squares)
    for group in optimizer.param_groups:
        nn.utils.clip_grads_with_norm_(group["params"], 1.0, squares.sqrt())
    optimizer.step()
    optimizer.zero_grad()


def measure(case: str, path: str, rounds: int, out: Path, profile: str) -> None:
    """One rank: steps of both in turns; rank 0 writes (seconds, losses) of each."""
    ours = emitted(case, path)
    if not dist.is_initialized():  # a program for one rank in float32 joins no group
        dist.init_process_group("gloo")
    theirs = by_hand(case)
    taken: tuple[list[float], list[float]] = ([], [])
    for round_ in range(WARM_UP + rounds):
        losses = []
        # Whoever comes second finds the caches full of the other: they take turns in that too.
        for which in (0, 1) if round_ % 2 else (1, 0):
            dist.barrier()
            start = time.perf_counter()
            losses.append((which, (ours, theirs)[which]()))
            if round_ >= WARM_UP:
                taken[which].append(time.perf_counter() - start)
        one, other = (value for _, value in sorted(losses))
        assert abs(one - other) < 1e-4 * abs(other), f"{case} step {round_}: {one} is not {other}"
    if profile:
        for name, step in (("emitted", ours), ("by_hand", theirs)):
            with torch.profiler.profile() as profiler:
                step()
            table = profiler.key_averages().table("self_cpu_time_total", row_limit=25)
            Path(profile, f"{case}_{name}_{dist.get_rank()}.txt").write_text(table)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(taken))


def compare(case: str, args: argparse.Namespace) -> None:
    """Plans, emits, measures and prints one case."""
    import autopar
    from autopar.run.launch import torchrun

    pins = PINS[case]
    ranks = pins.get("dp", 1) * pins.get("tp", 1) * pins.get("pp", 1)
    workload = make(case)
    plan = autopar.plan(
        workload["model"], ranks, workload["example_inputs"], workload.get("loss_fn"),
        workload.get("example_target"), cluster="cpu", precision="fp32", global_batch_size=BATCH,
        pin=pins,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        program, out = Path(name) / "program.py", Path(name) / "out.json"
        plan.emit(program, model="bench_overhead:make")
        command = [__file__, "--worker", case, str(program), str(out), "--rounds", str(args.rounds)]
        torchrun([*command, "--profile", args.profile], ranks, Path(name), 600.0)
        ours, theirs = json.loads(out.read_text())
    print(f"{case:7s}", flush=True, end="")
    for label, of in (("10th percentile", _tenth), ("median", statistics.median)):
        one, other = of(ours), of(theirs)
        print(f" {label} {1e3 * one:7.2f} / {1e3 * other:7.2f} ms = {one / other:.3f}", end="")
    print(flush=True)


def _tenth(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cases", nargs="*", default=list(PINS))
    parser.add_argument("--profile", default="", metavar="DIR")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case, path, out = args.worker
        measure(case, path, args.rounds, Path(out), args.profile)
        return
    for case in args.cases:
        compare(case, args)


if __name__ == "__main__":
    main()
