"""The free plan against every pinned plan: all degrees x micro-batches x recomputation.

    python benchmarks/bench_pinned.py [--devices 4 8] [--only bert]

Prints for each model and number of devices how many pinned plans there are, how many of them fit,
and the best of them beside the free plan, in seconds of the simulated step. A free plan that is
slower than a pinned one by more than the gap it claims is an error; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import gpt, llama, on_meta, tokens

BATCH = 32
GAP = 0.001


@dataclass(frozen=True)
class Model:
    """A model, its inputs and what else ``autopar.plan`` is told."""

    build: Callable[[], Any]
    inputs: Callable[[], Any]
    more: Callable[[], dict[str, Any]] = dict


def bert() -> Any:
    """BERT base."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig())


def t5() -> Any:
    """T5 base."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(d_model=768, d_kv=64, num_heads=12, d_ff=3072, num_layers=12,
                 decoder_start_token_id=0)
    )  # fmt: skip


def own() -> Any:
    """The example GPT at GPT-2's size."""
    from examples.gpt import GPT, GPTConfig

    return GPT(GPTConfig(50304, 1024, 12, 12, 768))


def own_loss() -> dict[str, Any]:
    """What the example is trained on."""
    from examples.gpt import loss_fn

    return {"loss_fn": loss_fn, "example_target": tokens(1024)["labels"]}


MODELS = {
    "gpt2": Model(lambda: gpt(12, 768, 12, 1024), lambda: tokens(1024)),
    "llama": Model(lambda: llama(8, 2048, 16, 8, 7168, 2048), lambda: tokens(2048)),
    "bert": Model(bert, lambda: tokens(512)),
    "own gpt": Model(own, lambda: (tokens(1024)["input_ids"],), own_loss),
    "t5": Model(t5, lambda: tokens(512, decoder=True)),
}


@contextlib.contextmanager
def shared_work() -> Iterator[None]:
    """Plans of one model share its trace and shardings, which no pin touches; no baselines."""
    from unittest.mock import patch

    from autopar import planner

    traces, shardings = _kept(planner.trace), _kept(planner.Shardings)
    with (
        patch.object(planner, "trace", traces),
        patch.object(planner, "Shardings", shardings),
        patch.object(planner, "run_baselines", lambda *_, **__: ()),
    ):
        yield


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``function`` returned when it was called first."""
    results: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not results:
            results.append(function(*args, **kwargs))
        return results[0]

    return call


def pins(devices: int, microbatches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Every factorisation, micro-batch, recomputation and number of ranks that divide state.

    Some of them no plan can honour.
    """
    for pp, tp in itertools.product(divisors(devices), divisors(devices)):
        if devices % (pp * tp) == 0:
            dp = devices // (pp * tp)
            for size, recompute, shard in itertools.product(
                microbatches, ("none", "full"), divisors(dp)
            ):
                yield {"pp": pp, "dp": dp, "tp": tp, "microbatch_size": size,
                       "recompute": recompute, "dp_shard": shard}  # fmt: skip


def divisors(number: int) -> list[int]:
    """All of them, 1 and the number included."""
    return [d for d in range(1, number + 1) if number % d == 0]


def compare(
    model: Model, devices: int, microbatches: tuple[int, ...] = (1, 2, 4, 8)
) -> tuple[Any, list[tuple[Any, Any]]]:
    """The free plan, and the pinned plans that exist with their pins."""
    import autopar

    module, found = on_meta(model.build), []

    def plan(pin: dict[str, Any] | None) -> Any:
        return autopar.plan(
            module, devices, model.inputs(), cluster="h100-80g", global_batch_size=BATCH, pin=pin,
            gap=GAP, **model.more(),
        )  # fmt: skip

    with shared_work():
        free = plan(None)
        for pin in pins(devices, microbatches):
            with contextlib.suppress(autopar.errors.AutoparError):
                found.append((pin, plan(pin)))
    return free, found


def main() -> int:
    """Compares and prints; 1 if a pinned plan is faster than the free one by more than its gap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--only", choices=list(MODELS))
    args = parser.parse_args()
    beaten = 0
    for name in [args.only] if args.only else MODELS:
        for devices in args.devices:
            free, found = compare(MODELS[name], devices)
            pin, best = min(found, key=lambda pair: pair[1].prediction.step_seconds)
            ours, theirs = (plan.prediction.step_seconds for plan in (free, best))
            lost = theirs < ours * (1 - max(free.solver.gap, GAP))
            beaten += lost
            print(f"{name} on {devices}: free {1e3 * ours:.3f} ms (gap {100 * free.solver.gap:.2f}"
                  f" %), best of {len(found)} pinned {1e3 * theirs:.3f} ms with {pin}"
                  f"{': BEATEN' if lost else ''}", flush=True)  # fmt: skip
    return int(beaten > 0)


if __name__ == "__main__":
    raise SystemExit(main())
