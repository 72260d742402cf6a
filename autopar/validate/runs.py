"""From a row of a table to a run that can be priced, or the reason why it cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from autopar.cost.data_parallel import Traffic
from autopar.solve.problem import Configuration
from autopar.validate.models import Shape
from autopar.validate.systems import (
    ZERO,
    Held,
    System,
    environment_of,
    held_of,
    system_of,
    traffic_of,
)
from autopar.validate.table import Row

# Where a source leaves the vocabulary out, GPT-2's padded to a multiple of 128 * tp = 1,024.
USUAL_VOCABULARY = 51200


class InexpressibleError(Exception):
    """A row that says too little, or something that autopar has no words for."""


@dataclass(frozen=True)
class Machine:
    """What the row ran on.

    ``links`` network links of ``link_bytes_per_second`` per node; None: as the cost model has them.
    """

    gpu: str
    memory_gb: float
    links: int | None
    link_bytes_per_second: float | None
    environment: str = ""


@dataclass(frozen=True)
class Run:
    """A run as autopar's machinery sees it, with what was measured.

    Attributes:
        stages: blocks of each pipeline stage.
        measured_seconds: of one optimizer step, None where only a memory label is published.
        fits: whether it ran, or ran out of memory.
        memory_bytes: measured peak.
        loss_bytes: what the loss of a sample moves beyond that of the traced model.
    """

    row: Row
    shape: Shape
    layers: int
    config: Configuration
    zero: int
    recompute: str
    traffic: Traffic
    partitioned: bool
    tp_hidden: float
    held: Held
    machine: Machine
    stages: tuple[int, ...]
    measured_seconds: float | None
    fits: bool
    memory_bytes: float | None
    loss_bytes: int = 0


def read_run(row: Row) -> Run:
    """The run that a row describes.

    Raises:
        InexpressibleError: with the reason.
        UsageError: a cell that is no number.
    """
    system = system_of(row.text("framework"))
    if system is None:
        raise InexpressibleError(f"unknown framework {row.text('framework')!r}")
    _check(row)
    shape, layers = _shape(row, system)
    config = _configuration(row, shape)
    sharding, precision = row.text("sharding"), row.text("precision")
    fits = "OOM" not in row.text("mem_kind")
    seconds = None if not fits else _seconds(row, system, shape, layers)
    if seconds is None and fits:
        raise InexpressibleError("no step time published")
    _check_flops(row, shape, layers, seconds)
    return Run(
        row, shape, layers, config,
        next(zero for text, zero in ZERO if text in sharding),
        _recompute(row, system),
        replace(traffic_of(system, sharding, precision), shards=shards(sharding)),
        system.partitioned, system.tp_hidden, held_of(system, sharding, precision), _machine(row),
        _balanced(shape, layers, config.pp) if system.balanced else _stages(layers, config.pp),
        seconds, fits, _memory_bytes(row),
        system.loss_bytes * shape.tokens * shape.vocabulary,
    )  # fmt: skip


def shards(sharding: str) -> int | None:
    """Ranks among which state is divided: "zero1 over 8 GPUs"; None: all of dp."""
    found = re.search(r"(?:over|within) (\d+) GPUs", sharding)
    return int(found[1]) if found else None


def _check(row: Row) -> None:
    """What autopar does not plan, and so does not price."""
    for name, words in (("experts", "mixture of experts"), ("cp", "context parallelism")):
        if (row.count(name) or 1) > 1:
            raise InexpressibleError(words)
    if (row.count("vp") or 1) > 1:
        raise InexpressibleError("several stages per rank")
    if "fp8" in row.text("precision"):
        raise InexpressibleError("fp8")
    if row.text("confidence") == "recalled":
        raise InexpressibleError("figures recalled, not read")


def _needed(row: Row, name: str) -> int:
    value = row.count(name)
    if not value:
        raise InexpressibleError(f"{name} not published")
    return value


def _shape(row: Row, system: System) -> tuple[Shape, int]:
    hidden, heads, layers = (_needed(row, name) for name in ("hidden", "heads", "layers"))
    if hidden % heads:
        raise InexpressibleError(f"hidden size {hidden} is not divided by {heads} heads")
    vocabulary = row.count("vocab") or USUAL_VOCABULARY
    ffn = _needed(row, "ffn")
    shape = Shape(
        hidden, heads, row.count("kv_heads") or heads, ffn, vocabulary,
        _needed(row, "seq"), system.gated, system.flash, ffn < system.tied_below,
        system.fused_loss,
    )  # fmt: skip
    return shape, layers


def _configuration(row: Row, shape: Shape) -> Configuration:
    pp, dp, tp = (_needed(row, axis) for axis in ("pp", "dp", "tp"))
    world, batch = _needed(row, "n_gpus"), _needed(row, "gbs")
    if pp * dp * tp != world:
        raise InexpressibleError(f"pp * dp * tp = {pp * dp * tp} on {world} devices")
    size = _needed(row, "mbs")
    if batch % (dp * size):
        raise InexpressibleError(f"a batch of {batch} is not divided by dp * micro-batch")
    if shape.heads % tp or shape.kv_heads % tp:
        raise InexpressibleError(f"{shape.heads} heads are not divided by tp = {tp}")
    layout = "sequence" if row.text("seq_parallel").startswith("on") else "replicate"
    layout = layout if tp > 1 else "replicate"
    count = batch // (dp * size)
    schedule = "1f1b" if pp == 1 or count >= pp else "gpipe"
    return Configuration(pp, dp, tp, size, count, schedule, layout)


def _recompute(row: Row, system: System) -> str:
    text = row.text("recompute") or system.recompute
    for known in ("none", "selective", "full"):
        if text.startswith(known):
            return known
    raise InexpressibleError("recomputation not published" if not text else f"recompute {text!r}")


def _balanced(shape: Shape, layers: int, pp: int) -> tuple[int, ...]:
    """Blocks per stage as nanotron's ``build_model`` deals out blocks and head by their products.

    A stage takes blocks until all so far exceed its share, so that it includes the block that
    crosses the border; the last one has the head.
    """
    block = _block_elements(shape)
    total = layers * block + shape.hidden * shape.vocabulary
    last = [min(layers, p * total // (pp * block) + 1) for p in range(1, pp)]
    return tuple(end - start for start, end in pairwise((0, *last, layers)))


def _stages(layers: int, pp: int) -> tuple[int, ...]:
    """Blocks per stage as the systems deal them out.

    Equal parts; otherwise, as DeepSpeed does it, parts of equal numbers of blocks, embedding
    and head counted as blocks where that divides evenly, else the first stages take one more.
    """
    if layers % pp == 0:
        return (layers // pp,) * pp
    if (layers + 2) % pp == 0:
        each = (layers + 2) // pp
        return (each - 1, *[each] * (pp - 2), each - 1)
    each, more = divmod(layers, pp)
    return tuple(each + (p < more) for p in range(pp))


def _seconds(row: Row, system: System, shape: Shape, layers: int) -> float | None:
    """The step time: published, from tokens per second, or from an MFU of known convention."""
    seconds, tokens = row.number("iter_time_s"), row.number("tokens_per_s_per_gpu")
    batch, world = _needed(row, "gbs"), _needed(row, "n_gpus")
    if seconds:
        return seconds
    if tokens:
        return batch * shape.tokens / (tokens * world)
    utilisation = row.number("mfu_pct")
    peak = PEAK_FLOPS.get(row.text("gpu")[:4])
    if utilisation and peak and system.counts_flops:
        return batch * step_flops(shape, layers) / (world * peak * utilisation / 100)
    return None


# What the MFU of a source that counts FLOP is relative to.
PEAK_FLOPS = {"H100": 989.5e12, "A100": 312e12}


def step_flops(shape: Shape, layers: int) -> float:
    """FLOP of one sample: three forward passes, attention in full, no recomputation."""
    attention = 2 * shape.tokens * shape.heads * shape.head_dim
    head = shape.hidden * shape.vocabulary
    return 3 * 2.0 * shape.tokens * (layers * (_block_elements(shape) + attention) + head)


def _block_elements(shape: Shape) -> int:
    """Weights of one block."""
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    return attention + (3 if shape.gated else 2) * shape.hidden * shape.ffn


def _check_flops(row: Row, shape: Shape, layers: int, seconds: float | None) -> None:
    """A published rate that the shape, the batch and the time contradict: one of them is wrong."""
    rate = row.number("tflops_per_gpu")
    if not rate or not seconds:
        return
    again = 4 / 3 if row.text("recompute").startswith("full") else 1.0
    flops = again * step_flops(shape, layers) * _needed(row, "gbs") / _needed(row, "n_gpus")
    ratio = flops / (rate * 1e12 * seconds)
    if not 0.4 < ratio < 2.5:
        raise InexpressibleError(
            f"published TFLOP/s, step time and batch contradict each other {ratio:.1f} times"
        )


def _memory_bytes(row: Row) -> float | None:
    gibibytes = row.number("mem_gib")
    return gibibytes * 2**30 if gibibytes else None


def _machine(row: Row) -> Machine:
    memory = row.number("gpu_mem_gb")
    links, rate = network(row.text("interconnect"))
    gpu = row.text("gpu")
    return Machine(gpu, memory or 80.0, links, rate, environment_of(row.text("source"), gpu))


def network(text: str) -> tuple[int | None, float | None]:
    """Links per node and bytes per second of each: "4x 100Gb", "1600Gbps per node", "EFA"."""
    found = re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", text)
    if found:
        return int(found[1]), int(found[2]) * 1e9 / 8
    found = re.search(r"(\d+)\s*Gb(?:ps|/s)", text)
    if found:
        total = int(found[1])
        links = 8 if total >= 1600 else 4
        return links, total * 1e9 / 8 / links
    return None, None
