"""Predicted against measured step time of small transformers on local gloo ranks, and the regret.

    python benchmarks/bench_accuracy.py [--rounds 4] [--steps 5] [--cluster cpu] [--models gpt ...]
    python benchmarks/bench_accuracy.py --plans FOLDER --only plan      # on a busy host
    python benchmarks/bench_accuracy.py --plans FOLDER --only measure   # on an idle one

Every plan is pinned, emitted, and trained in processes of its own, as a user's is: the threads of
other programs' groups, which wake up a hundred times a second each, made steps a tenth longer. The
rounds go through all plans in turn, so that a disturbance of the host hits all alike; what is
compared is the 10th percentile of a plan's steps. ``chosen`` is what autopar takes of its own
accord: its regret is its measured time over that of the best plan measured. Run it on an idle host.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import gpt

BATCH = 16
WARM_UP = 2


def _gpt(**sizes: int) -> dict[str, Any]:
    config = gpt.GPTConfig(**sizes)
    tokens = torch.randint(config.vocab_size, (BATCH, config.block_size))
    made = gpt.make()
    return made | {"model": gpt.GPT(config), "example_inputs": (tokens,), "example_target": tokens}


def _llama() -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    tokens = torch.randint(1024, (BATCH, 64))
    inputs = {"input_ids": tokens, "labels": tokens}
    return {"model": LlamaForCausalLM(config), "example_inputs": inputs}


MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt": _gpt,
    "gpt-wide": lambda: _gpt(n_embd=256, n_layer=6, vocab_size=1024),
    "llama": _llama,
}

ONE: dict[str, dict[str, Any]] = {
    "1 rank, 1 x 16": {"microbatch_size": 16},
    "1 rank, 4 x 4": {"microbatch_size": 4},
    "1 rank, 1 x 16, recompute": {"microbatch_size": 16, "recompute": "full"},
}
TWO: dict[str, dict[str, Any]] = {
    "dp 2, zero 0, 1 x 8": {"dp": 2, "zero": 0, "microbatch_size": 8},
    "dp 2, zero 2, 1 x 8": {"dp": 2, "zero": 2, "microbatch_size": 8},
    "dp 2, zero 3, 1 x 8": {"dp": 2, "zero": 3, "microbatch_size": 8},
    "dp 2, zero 0, 4 x 2": {"dp": 2, "zero": 0, "microbatch_size": 2},
    "dp 2, zero 2, 2 x 4": {"dp": 2, "zero": 2, "microbatch_size": 4},
    "dp 2, zero 3, 2 x 4": {"dp": 2, "zero": 3, "microbatch_size": 4},
    "dp 2, zero 0, 1 x 8, recompute": {
        "dp": 2, "zero": 0, "microbatch_size": 8, "recompute": "full",
    },
    "tp 2, replicated, 1 x 16": {"tp": 2, "sequence_parallel": False, "microbatch_size": 16},
    "tp 2, sequence, 1 x 16": {"tp": 2, "sequence_parallel": True, "microbatch_size": 16},
    "tp 2, replicated, 4 x 4": {"tp": 2, "sequence_parallel": False, "microbatch_size": 4},
    "pp 2, 1f1b, 4 x 4": {"pp": 2, "microbatch_size": 4, "schedule": "1f1b"},
    "pp 2, 1f1b, 8 x 2": {"pp": 2, "microbatch_size": 2, "schedule": "1f1b"},
    "pp 2, gpipe, 4 x 4": {"pp": 2, "microbatch_size": 4, "schedule": "gpipe"},
    "pp 2, 1f1b, 4 x 4, recompute": {
        "pp": 2, "microbatch_size": 4, "schedule": "1f1b", "recompute": "full",
    },
    "chosen": {},
}  # fmt: skip


def main() -> None:
    """Plans, runs and compares; with ``--worker`` the part of one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of each plan in each round")
    parser.add_argument("--cluster", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--json", type=Path, help="where to write every pair")
    parser.add_argument("--plans", type=Path, help="where the programs stay")
    parser.add_argument("--only", choices=("plan", "measure"), help="one half of the work")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work(*args.worker, args.steps)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.plans or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.only != "measure":
            pairs = [p for n in args.models for p in _plan_all(n, args.cluster, folder)]
            (folder / "pairs.json").write_text(json.dumps(pairs, indent=1))
        if args.only == "plan":
            return
        pairs = json.loads((folder / "pairs.json").read_text())
        _measure(pairs, args, folder)
    if args.json:
        args.json.write_text(json.dumps(pairs, indent=1))
    _print(pairs)


def _plan_all(name: str, cluster: str, folder: Path) -> list[dict[str, Any]]:
    """Writes the programs of one model; a plan that cannot be is left out and named."""
    from autopar.errors import AutoparError

    pairs = []
    for world, plans in ((1, ONE), (2, TWO)):
        for label, pins in plans.items():
            degrees = {"pp": 1, "dp": 1, "tp": 1} if pins else {}
            try:
                pairs.append(_plan(name, world, label, degrees | pins, cluster, folder))
            except AutoparError as error:
                print(f"{name}, {label}: not planned: {error}", file=sys.stderr)
    return pairs


def _plan(
    name: str, world: int, label: str, pins: dict[str, Any], cluster: str, folder: Path
) -> dict[str, Any]:
    import autopar

    torch.manual_seed(0)
    work = MODELS[name]()
    plan = autopar.plan(
        work["model"], world, work["example_inputs"], work.get("loss_fn"),
        work.get("example_target"), cluster=cluster, global_batch_size=BATCH, precision="fp32",
        pin=pins,
    )  # fmt: skip
    path = folder / f"{name}-{world}-{label}.py".replace(" ", "_").replace(",", "")
    plan.emit(path, model="none:none")
    mesh = plan.mesh
    what = f"pp {mesh.pp} dp {mesh.dp} tp {mesh.tp}, {plan.num_microbatches} x "
    what += f"{plan.microbatch_size}, zero {plan.layers[0].zero}, {plan.layers[0].recompute}"
    return {
        "model": name, "world": world, "label": label, "plan": what, "path": str(path),
        "predicted": plan.prediction.step_seconds,
    }  # fmt: skip


def _measure(pairs: list[dict[str, Any]], args: Namespace, folder: Path) -> None:
    """Adds ``measured``, the 10th percentile of the steps, to each pair."""
    seconds: list[list[float]] = [[] for _ in pairs]
    for number in range(args.rounds):
        for pair, taken in zip(pairs, seconds, strict=True):
            taken += _measured_once(pair, args.steps, folder)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    for pair, taken in zip(pairs, seconds, strict=True):
        ordered = sorted(taken)
        pair["measured"] = ordered[(len(ordered) - 1) // 10]
        pair["median"] = statistics.median(ordered)


def _measured_once(pair: dict[str, Any], steps: int, folder: Path) -> list[float]:
    """Seconds of ``steps`` steps in processes that run this plan alone."""
    from autopar.run.launch import torchrun

    found = folder / "seconds.json"
    command = [__file__, "--steps", str(steps), "--worker", pair["model"], pair["path"], str(found)]
    torchrun(command, pair["world"], folder, 300.0)
    seconds: list[float] = json.loads(found.read_text())
    return seconds


def _work(name: str, path: str, found: str, steps: int) -> None:
    """One rank of one plan."""
    seconds = _Run(name, Path(path)).steps(WARM_UP + steps)[WARM_UP:]
    if os.environ["RANK"] == "0":
        Path(found).write_text(json.dumps(seconds))


class _Run:
    """One program, loaded."""

    def __init__(self, name: str, path: Path) -> None:
        self.program = _load(path)
        torch.manual_seed(self.program.SEED)
        made = MODELS[name]()
        self.parallel = self.program.parallelize(made["model"])
        self.optimizer = self.program.optimizer_for(self.parallel, 1e-4)
        self.batches = self.program.example_batch(made)

    def steps(self, count: int) -> list[float]:
        """Seconds of ``count`` steps, timed by the program itself."""
        args = Namespace(steps=count, clip=1.0, checkpoint=None, checkpoint_every=None, keep=None)
        parts = (self.parallel, self.optimizer, self.batches, args, None)
        _, seconds = self.program.train(*parts)
        return list(seconds)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _print(pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        pair["error"] = pair["predicted"] / pair["measured"] - 1
        print(
            f"{pair['model']:9s} {pair['label']:31s} predicted {1e3 * pair['predicted']:7.1f} ms"
            f"  measured {1e3 * pair['measured']:7.1f} (median {1e3 * pair['median']:7.1f})"
            f"  {100 * pair['error']:+4.0f} %"
        )
    errors = sorted(abs(pair["error"]) for pair in pairs)
    print(
        f"{len(pairs)} pairs: median error {100 * statistics.median(errors):.1f} %,"
        f" 90th percentile {100 * errors[int(0.9 * (len(errors) - 1))]:.1f} %"
    )
    for name in dict.fromkeys(pair["model"] for pair in pairs):
        _print_regret(name, [p for p in pairs if p["model"] == name and p["world"] > 1])


def _print_regret(name: str, pairs: list[dict[str, Any]]) -> None:
    """The plan taken freely against the best measured one."""
    chosen = next((p for p in pairs if p["label"] == "chosen"), None)
    if chosen is None:
        return
    best = min(pairs, key=lambda p: p["measured"])
    regret = chosen["measured"] / best["measured"] - 1
    print(
        f"{name}: chosen {chosen['plan']}: {1e3 * chosen['measured']:.1f} ms; best {best['label']}:"
        f" {1e3 * best['measured']:.1f} ms; regret {100 * regret:.1f} %"
    )


if __name__ == "__main__":
    main()
