"""How the training systems of published runs work, as far as their prices depend on it.

A table of facts, each from the system's sources. What is fitted stands in ``fitted.json``:
what the kernels, hosts and networks of a source reach relative to the machine's cost model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from autopar.cost.data_parallel import Traffic


@dataclass(frozen=True)
class Held:
    """Bytes per parameter that a rank holds: those of ``sharded`` are divided by the dp degree."""

    parameters: float
    gradients: float
    sharded: float


@dataclass(frozen=True)
class System:
    """One training system.

    Attributes:
        flash: whether attention is one kernel.
        gated: whether its models are Llama's, otherwise GPT's.
        tied_below: width of the MLP below which the output layer shares the embedding.
        traffic: how parameters and gradients travel, by the texts of ``sharding`` and precision,
            first match counts.
        fused_loss: whether one kernel takes the loss of logits in the dtype of the computation.
        partitioned: whether tp ranks send a share each between stages, and gather behind it.
        tp_hidden: share of the backward's tp communication that runs beside its computing.
        balanced: whether stages are cut by the FLOP of products, instead of by blocks.
        held: bytes per parameter by the text of ``sharding`` and precision, first match counts.
        counts_flops: whether its MFU counts three forward passes with full attention, without
            recomputation, so that a step time follows from it.
        recompute: what it does where the table does not say.
        loss_bytes: what its loss moves per logit beyond ``cross_entropy`` of float32.
    """

    flash: bool
    gated: bool
    tied_below: float
    traffic: tuple[tuple[str, str, Traffic], ...]
    held: tuple[tuple[str, str, Held], ...]
    fused_loss: bool = False
    partitioned: bool = False
    tp_hidden: float = 0.0
    balanced: bool = False
    counts_flops: bool = False
    recompute: str = ""
    loss_bytes: int = 0


_ALWAYS = float("inf")
_MIXED = 12.0  # master copy and two moments of Adam in float32
_LATE = Traffic(
    gather_bytes=2, reduce_bytes=2, every_microbatch=False, overlapped=False,
    accumulate_bytes=(0, 6),
)  # fmt: skip
# Gradients in bf16 are added to a buffer in float32, the first of a step too.
_LATE_FP32 = replace(_LATE, reduce_bytes=4, accumulate_bytes=(10, 10))
# nanotron (trainer.py, gradient_accumulator.py, zero.py, distributed.py of February 2025):
# DistributedDataParallel in buckets of 25 MB of bf16, float32 on the wire. With ZeRO-1 it is left
# out: behind the last backward one all-reduce of all gradients ("reduce_scatter=False"), then one
# gather whose parts are copied tensor by tensor for every rank. All gradients are clipped and set
# to 0; the update is fused, its result copied to bf16.
_NANOTRON_DDP = replace(
    _LATE_FP32, overlapped=True, bucket_bytes=50_000_000, update_bytes=34, whole_bytes=16,
)  # fmt: skip
_NANOTRON_ZERO1 = replace(
    _NANOTRON_DDP, overlapped=False, bucket_bytes=1_000_000_000, all_reduced=True, unpacked=True,
)  # fmt: skip
# Composer: DEFAULT gathers float32 and reduces in the autocast dtype, PURE keeps everything in it.
# Its DecoupledAdamW is one operation after the other.
_DEFAULT = Traffic(gather_bytes=4, reduce_bytes=2, update_bytes=80)
_PURE = replace(_DEFAULT, gather_bytes=2)
_EVERYTHING_SHARDED = Held(0.0, 0.0, 16.0)

_ZERO = (
    # DeepSpeed's bf16 optimizer accumulates gradients in float32 besides those in bf16.
    ("zero1", "bf16", Held(2.0, 6.0, _MIXED)),
    ("zero1", "", Held(2.0, 2.0, _MIXED)),
    ("", "bf16", Held(2.0, 6.0 + _MIXED, 0.0)),
    ("", "", Held(2.0, 2.0 + _MIXED, 0.0)),
)
# nanotron's loss of divided logits, taken over from Megatron, is one operation after the other:
# maximum 4, subtraction 8, exponential 8, sum 4, division 8 and in backward a product 8, where
# torch's kernels move 8 forward and 12 backward.
_SHARDED_LOSS = 20
_MEGATRON = System(
    flash=False,
    gated=False,
    tied_below=_ALWAYS,
    traffic=(("", "bf16 (fp32", _LATE_FP32), ("", "", _LATE)),
    held=_ZERO,
    partitioned=True,
)

# Texts that the framework column may hold, most specific first, with the facts.
SYSTEMS: tuple[tuple[str, System], ...] = (
    ("Megatron-DeepSpeed", _MEGATRON),
    ("Megatron-LM 2021", _MEGATRON),
    (
        "Composer FSDP",
        System(
            flash=True, gated=False, tied_below=_ALWAYS,
            traffic=(("PURE", "", _PURE), ("", "", _DEFAULT)),
            held=(("PURE", "", Held(0.0, 0.0, 8.0)), ("", "", _EVERYTHING_SHARDED)),
            fused_loss=True,  # MPT's loss_fn is "fused_crossentropy", of flash-attn
        ),
    ),
    (
        "nanotron",
        System(
            flash=True, gated=True, tied_below=10_000,
            traffic=(("zero0", "", _NANOTRON_DDP), ("", "", _NANOTRON_ZERO1)),
            held=(
                ("zero1", "", Held(2.0, 4.0, _MIXED)), ("", "", Held(2.0, 4.0 + _MIXED, 0.0)),
            ),
            # Two of four: gradients of column-parallel inputs travel beside those of weights.
            tp_hidden=0.5,
            counts_flops=True, balanced=True, recompute="none", loss_bytes=_SHARDED_LOSS,
        ),
    ),
    (
        "InternEvo",
        System(
            flash=True, gated=True, tied_below=0,
            # hybrid_zero_optim.py: "reduce_rank = None", so every gradient is all-reduced over dp.
            traffic=(("", "", replace(_LATE, overlapped=True, all_reduced=True)),),
            held=(("", "", Held(2.0, 2.0, _MIXED)),),
        ),
    ),
)  # fmt: skip

# ZeRO modes by the text of the sharding column, first match counts. ZeRO-1 is priced as
# mode 2: parameters are gathered once per step, gradients are reduced once.
ZERO = (
    ("zero3", 3), ("zero2", 2), ("zero1", 2), ("zero0", 0), ("none", 0), ("", 0),
)  # fmt: skip


def system_of(framework: str) -> System | None:
    """The facts about a framework, None if they are not known."""
    return next((system for text, system in SYSTEMS if text in framework), None)


def traffic_of(system: System, sharding: str, precision: str) -> Traffic:
    """What travels, and when."""
    return _first(system.traffic, sharding, precision)


def held_of(system: System, sharding: str, precision: str) -> Held:
    """Bytes per parameter."""
    return _first(system.held, sharding, precision)


Fact = TypeVar("Fact")


def _first(table: tuple[tuple[str, str, Fact], ...], sharding: str, precision: str) -> Fact:
    return next(fact for text, dtype, fact in table if text in sharding and dtype in precision)


FITTED = Path(__file__).with_name("fitted.json")


@dataclass(frozen=True)
class Environment:
    """Speeds of a source relative to the cost model of its device, and of its hosts.

    Its memory is that of live tensors and a reserve: ``reserve_bytes`` of contexts and fixed
    buffers, and ``reserve_share`` of the saved activations that the allocator holds besides.
    """

    products: float = 1.0
    attention_forward: float = 1.0
    attention_backward: float = 1.0
    memory: float = 1.0
    node_links: float = 1.0
    network: float = 1.0
    dispatch_seconds: float | None = None
    dispatch_whole_node: float | None = None
    overlap_slowdown: float | None = None
    reserve_bytes: float = 0.0
    reserve_share: float = 0.0


# Texts of the source and device columns, and the environment that is fitted to their rows.
ENVIRONMENTS = (
    ("ground_truth_single", "", "vtrain-single"), ("ground_truth_multi", "", "vtrain-multi"),
    ("bigscience", "", "bigscience"), ("nanotron", "", "nanotron"),
    ("llm-foundry", "A100", "llm-foundry-a100"), ("llm-foundry", "H100", "llm-foundry-h100"),
)  # fmt: skip


def environment_of(source: str, gpu: str) -> str:
    """The name of the environment of a source, "" where the machine's own cost model holds."""
    found = (name for text, device, name in ENVIRONMENTS if text in source and device in gpu)
    return next(found, "")


@lru_cache
def environments() -> dict[str, Environment]:
    """The fitted environments by name."""
    found = json.loads(FITTED.read_text(encoding="utf-8")) if FITTED.exists() else {}
    return {name: Environment(**values) for name, values in found.items()}
