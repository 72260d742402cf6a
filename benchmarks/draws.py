"""Random models with random pins, for ``bench_random.py``.

Pins are drawn so that most can be had together: degrees that the model's blocks and heads allow,
zero modes that a shard degree or schedule takes. One case in eight ignores the model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from autopar import planner
from autopar.errors import AutoparError
from autopar.solve.shardings import AIMS
from autopar.solve.space import RECOMPUTE, SCHEDULES
from autopar.strategies.patterns import attention_heads
from autopar.workload import Workload
from tests.multiprocess.models import CASES, batch, build, loss_fn
from tests.multiprocess.test_fidelity import SAMPLES
from tests.traces import traced_once

# Models by family; behind a slash stands which parameters are frozen.
FAMILIES: dict[str, tuple[str, ...]] = {
    "gpt": ("gpt:4", "gpt:6", "gpt:8", "gpt:3", "gpt:4/*.wte.*", "gpt:4/*.h.0.*", "gpt:6/*.bias"),
    "gpt2": ("gpt2:4", "gpt2:6", "gpt2:5", "gpt2:4/*.wpe.*", "gpt2:4/*.attn.*"),
    "llama": ("llama:4", "llama:6", "llama:8", "llama:4/*layers.[01].*", "llama:4/*norm*"),
    "encoder-decoder": ("t5", "t5-long-decoder", "whisper", "hf-bart", "t5/encoder.*"),
    "encoders": ("bert", "vit", "hf-wav2vec2", "bert/*.embeddings.*", "vit/*.bias"),
    "experts": ("hf-mixtral", "hf-qwen3-moe", "moe-dense", "moe-odd", "hf-mixtral/*gate*"),
    "batchnorm": ("normalized", "normalized/blocks.0.*", "batchnorm-mlp", "hf-resnet",
                  "normalized/*.inner.*", "remembering", "mobilenet"),
    "convolutions": ("convolutions", "alexnet", "unet", "instances", "convolutions/features.*"),
    "recurrent": ("lstm", "lstm-lm-tied", "gru", "lstm-cells", "hf-mamba"),
    "plain": ("mlp", "alternating", "tied-autoencoder", "towers", "mlp/0.*", "alternating/*.norm*"),
    "structures": ("decoder", "recurring", "siamese", "tasks-dict", "lora", "frozen-trunk", "lists",
                   "unused"),
}  # fmt: skip
ANY = "any"  # the family of all models of the tests
# Models of which neighbouring cases are, so that each is traced for several.
TOGETHER, NAMES = 30, 6
RANKS = (2, 2, 3, 4, 4, 4, 4, 4, 6, 8)


@dataclass(frozen=True)
class Drawn:
    """A case: the model's name, ranks, samples of a step, and pins."""

    name: str
    ranks: int
    samples: int
    pins: dict[str, Any]

    def __str__(self) -> str:
        pins = " ".join(f"{kind}={value}" for kind, value in self.pins.items())
        return f"{self.name} on {self.ranks}, {self.samples} samples: {pins}"


@dataclass(frozen=True)
class Known:
    """What pins go by: the names of blocks, how many stages can begin with, numbers of heads."""

    layers: tuple[str, ...] = ()
    blocks: int = 8
    heads: tuple[int, ...] = ()


def draw(seed: int, number: int, family: str | None = None) -> Drawn:
    """Case ``number`` of the seed."""
    rng = random.Random(f"{seed}:{number}")
    name = rng.choice(names(seed, number // TOGETHER, family))
    known = Known() if rng.random() < 0.125 else look_at(name)
    ranks = rng.choice(RANKS)
    pp, dp, tp = rng.choice(factorisations(ranks, known))
    samples = SAMPLES if SAMPLES % dp == 0 else 12
    pins: dict[str, Any] = {"pp": pp, "dp": dp, "tp": tp}
    if rng.random() < 0.1:
        del pins[rng.choice(list(pins))]
    pins |= schedule(rng, known, pp)
    pins |= microbatches(rng, samples // dp, pp, pins.get("schedule"))
    if pp == tp == 1 and dp > 1 and rng.random() < 0.15:
        pins |= {"exchange": rng.choice(("ring", "server"))}
    else:
        pins |= state(rng, dp)
    pins |= of_layers(rng, known, pins)
    if tp > 1 and rng.random() < 0.5:
        pins["sequence_parallel"] = rng.random() < 0.5
    if tp > 1 and rng.random() < 0.3:
        pins["sharding"] = rng.choice(list(AIMS))
    return Drawn(name, ranks, samples, pins)


def names(seed: int, group: int, family: str | None) -> list[str]:
    """The models of a group of cases."""
    rng = random.Random(f"{seed}:{group}")
    if family == ANY:
        return rng.sample(sorted(CASES), NAMES)
    some = [family] * NAMES if family else rng.sample(list(FAMILIES), NAMES)
    return [rng.choice(FAMILIES[each]) for each in some]


@cache
def look_at(name: str) -> Known:
    """What the model's trace, which planning uses as well, tells; nothing where it has none."""
    inputs, target = batch(name, 0)
    args, kwargs = Workload(build(name), inputs).inputs()
    try:
        with traced_once(name):
            graph = planner.trace(
                build(name), args, kwargs, target=target, loss_fn=loss_fn(name), precision="fp32"
            )
    except AutoparError:
        return Known()
    blocks = sum(layer.kind in ("block", "run") for layer in graph.layers)
    heads = attention_heads(graph)
    names = tuple(layer.name for layer in graph.layers if layer.kind == "block")
    return Known(names, max(blocks, 1), heads)


def factorisations(ranks: int, known: Known) -> list[tuple[int, int, int]]:
    """Every (pp, dp, tp) that the model allows, or data parallelism alone."""
    some = range(1, ranks + 1)
    return [
        (p, d, t)
        for p in some
        for d in some
        for t in some
        if p * d * t == ranks and p <= known.blocks and not any(n % t for n in known.heads)
    ]


def schedule(rng: random.Random, known: Known, pp: int) -> dict[str, Any]:
    """The order of passes, and the stages."""
    if pp == 1:
        return {}
    pins: dict[str, Any] = {}
    deep = [v for v in (2, 2, 2, 3, 4) if v * pp <= known.blocks]
    if rng.random() < 0.8:
        pins["schedule"] = rng.choice((*SCHEDULES, *["interleaved_1f1b"] * (2 if deep else 0)))
    if pins.get("schedule") in SCHEDULES[2:] and deep and rng.random() < 0.6:
        pins["virtual_stages"] = rng.choice(deep)
    elif pins.get("schedule") in SCHEDULES[:2] and rng.random() < 0.4:
        cuts = sorted(rng.choices(range(known.blocks + 1), k=pp - 1))
        pins["stages"] = [b - a for a, b in zip([0, *cuts], [*cuts, known.blocks], strict=True)]
    return pins


def microbatches(rng: random.Random, share: int, pp: int, order: str | None) -> dict[str, int]:
    """How a rank's share of the samples is divided; of some schedules pp divides the parts."""
    counts = [count for count in range(1, share + 1) if share % count == 0]
    if order in SCHEDULES[2:]:
        counts = [count for count in counts if count % pp == 0] or counts
    elif order == "1f1b":
        counts = [count for count in counts if count >= pp] or counts
    count, kind = rng.choice(counts), rng.choice(("microbatch_size", "num_microbatches", ""))
    return {kind: share // count if kind == "microbatch_size" else count} if kind else {}


def state(rng: random.Random, dp: int) -> dict[str, Any]:
    """How dp ranks share state, and what of it is in host memory."""
    pins: dict[str, Any] = {}
    shards = [s for s in range(2, dp) if dp % s == 0]
    if shards and rng.random() < 0.7:
        pins["dp_shard"] = rng.choice(shards)
    if rng.random() < 0.2:
        pins["offload"] = rng.choice(("optimizer", "activations", "all"))
    return pins


def of_layers(rng: random.Random, known: Known, pins: dict[str, Any]) -> dict[str, Any]:
    """Zero modes and recomputation."""
    zeros: tuple[int, ...] = (0, 1, 2, 3, 3)
    modes: tuple[str, ...] = (*RECOMPUTE, "full")
    if "dp_shard" in pins:
        zeros = zeros[1:]
    if pins.get("schedule") == "zero_bubble":
        zeros, modes = zeros[:-2], ("none",)
    if pins.get("offload") in ("activations", "all"):
        modes = ("none",)
    found = {}
    if "exchange" not in pins and rng.random() < 0.7:
        found["zero"] = by_layer(rng, known, zeros)
    if rng.random() < 0.6:
        found["recompute"] = by_layer(rng, known, modes)
    return found


def by_layer(rng: random.Random, known: Known, values: tuple[Any, ...]) -> Any:
    """One value for all layers, or several for some of them."""
    if not known.layers or rng.random() < 0.5:
        return rng.choice(values)
    chosen = rng.sample(known.layers, rng.randint(1, len(known.layers)))
    pins = {name: rng.choice(values) for name in chosen}
    return pins | ({"*": rng.choice(values)} if rng.random() < 0.5 else {})
