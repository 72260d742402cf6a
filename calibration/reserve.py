"""Measures what a rank's device holds besides live tensors: the curve ``reserve`` of a cost model.

    torchrun --standalone --nproc-per-node 8 calibration/reserve.py -o reserve.csv

On otherwise idle devices, for "in use" is what the driver says of the whole device. One row per
measurement: contexts (before and behind the first kernels), what each further communicator takes
(a group's first all-reduce and all-gather), and what the caching allocator holds beside live
tensors at the peak of a training step, by micro-batch. The largest of ``allocator`` over
``activations`` is ``activation_share``.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

WIDTH, TOKENS, LAYERS = 2048, 2048, 8
MICROBATCHES = (1, 2, 3, 4, 6, 8)
MESSAGE_BYTES = 64 * 2**20
Row = tuple[str, int, int]


def outside_bytes() -> int:
    """Bytes in use on the device that the caching allocator does not hold."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def contexts() -> Iterator[Row]:
    """The bare context, and with the kernels and workspaces of products and attention."""
    torch.zeros(1, device="cuda")
    yield "context", 1, outside_bytes()
    step(blocks(1), tokens(1))
    torch.cuda.empty_cache()
    yield "context with kernels", 1, outside_bytes()


def communicators() -> Iterator[Row]:
    """What the first collectives of every further group leave behind, by ranks of the group."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for size in [n for n in range(2, world + 1) if world % n == 0]:
        groups = [dist.new_group(range(a, a + size)) for a in range(0, world, size)]
        before = outside_bytes()
        message = torch.zeros(MESSAGE_BYTES // 4, device="cuda")
        dist.all_reduce(message, group=groups[rank // size])
        parts = message.new_empty(size * len(message))
        dist.all_gather_into_tensor(parts, message, group=groups[rank // size])
        torch.cuda.synchronize()
        yield "communicator", size, outside_bytes() - before


def allocator() -> Iterator[Row]:
    """At each micro-batch: bytes between live tensors at the peak, and the saved activations."""
    model = blocks(LAYERS)
    for samples in MICROBATCHES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = forward(model, tokens(samples))
        saved = torch.cuda.memory_allocated() - before
        loss.backward()
        for _ in range(3):
            step(model, tokens(samples))
        peaks = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
        yield "activations", samples, saved
        yield "allocator", samples, peaks[0] - peaks[1]


def blocks(count: int) -> nn.Module:
    """Decoder blocks in bf16, as large as those of a model of a billion parameters."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, 16, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True,
    )  # fmt: skip
    return nn.TransformerEncoder(layer, count, enable_nested_tensor=False).to(
        "cuda", torch.bfloat16
    )


def tokens(samples: int) -> Tensor:
    """Embedded tokens, [samples, TOKENS, WIDTH]."""
    return torch.randn(samples, TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that every activation is needed for."""
    mask = nn.Transformer.generate_square_subsequent_mask(TOKENS, "cuda", torch.bfloat16)
    loss: Tensor = model(x, mask=mask, is_causal=True).float().square().mean()
    return loss


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward; gradients are added up."""
    forward(model, x).backward()


def main() -> int:
    """Writes the rows of rank 0; the other ranks take part in collectives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("reserve.csv"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("found no CUDA device, expected one per rank: a CPU has no reserve", file=sys.stderr)
        return 2
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rows = [*contexts()]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl")
        rows += communicators()
    rows += allocator()
    if int(os.environ.get("RANK", "0")) == 0:
        with args.output.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("what", "ranks_or_samples", "bytes"), *rows])
        print(f"wrote {args.output}: {torch.cuda.get_device_name()}, torch {torch.__version__}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
