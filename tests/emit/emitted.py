"""The generated parts of programs, and a way to run their text on one device."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.cluster import Cluster
from autopar.emit.layers import LayerClass, StageText, layer_classes, stage_text
from autopar.graph import Graph
from autopar.solve.intra import Weights, shard_pattern
from autopar.strategies.sharding import Sharding
from tests.zoo import block_of, reduced

# Whether blocks and ends are divided, by a price on parameters that decides it.
SPLIT, WHOLE = Weights(parameter=1e-7), Weights()
CLASS = {"gpt": "Block", "gpt2": "GPT2Block", "llama": "LlamaDecoderLayer"}


@cache
def shardings(name: str, layout: str, weights: Weights) -> dict[str, Sharding]:
    graph, classes = reduced(name)
    cluster = Cluster.load("h100-80g")
    found = {
        key: shard_pattern(graph, pattern, cluster, 2, layout, 1, weights)
        for key, pattern in classes.patterns.items()
    }
    return {key: sharding for key, sharding in found.items() if sharding is not None}


@cache
def generated(name: str, layout: str, weights: Weights) -> tuple[dict[str, LayerClass], StageText]:
    graph, classes = reduced(name)
    chosen = shardings(name, layout, weights)
    split, _ = layer_classes(graph, classes, chosen, {block_of(name): CLASS[name]}, {})
    return split, stage_text(graph, classes, chosen, {})


def texts(name: str, layout: str, weights: Weights) -> dict[str, str]:
    """Every piece of generated code by what it is."""
    split, stage = generated(name, layout, weights)
    pieces = {key: layer.source for key, layer in split.items()}
    pieces["context"] = "\n".join(stage.context)
    layers = zip(_names(reduced(name)[0]), stage.statements, strict=True)
    return pieces | dict(layers)


class Alone(nn.Module):
    """Stands for the base of split layers where tp is 1: fused parameters have their two dims."""

    FUSED: ClassVar[dict[str, tuple[int, int]]] = {}

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        for name, (dim, parts) in self.FUSED.items():
            path, _, leaf = name.rpartition(".")
            owner = self.get_submodule(path)
            fused = getattr(owner, leaf).detach().unflatten(dim, (parts, -1))
            setattr(owner, leaf, nn.Parameter(fused))


def _first(x: Tensor, **_: Any) -> Tensor:
    return x


def namespace(batch: int) -> dict[str, Any]:
    """What the generated code may name; with one rank every move is the identity."""
    moves = ("enter", "all_gather", "gather", "all_reduce", "all_reduce_enter", "reduce_scatter",
             "scatter", "narrow", "all_to_all", "local", "partial")  # fmt: skip
    return {
        **dict.fromkeys(moves, _first),
        "torch": torch, "F": F, "TP": 1, "MICROBATCH": batch, "DEVICE": torch.device("cpu"),
        "nn": SimpleNamespace(Module=Alone), "Shard": lambda dim: dim,
        "sharded_embedding": lambda index, table: F.embedding(index, table),
        "sharded_cross_entropy": F.cross_entropy,
    }  # fmt: skip


def run_text(name: str, layout: str, weights: Weights, model: nn.Module, inputs: dict[str, Tensor]
             ) -> Tensor:  # fmt: skip
    """The loss of ``model`` as the generated text computes it; changes the model."""
    graph, classes = reduced(name)
    split, stage = generated(name, layout, weights)
    space = {**namespace(2), "model": model}
    space |= {variable: inputs[key] for variable, key in stage.inputs.items()}
    exec("\n".join(stage.context), space)
    layers = zip(_names(graph), classes.members, stage.statements, strict=True)
    for layer, member, statement in layers:
        if member not in classes.parts:
            block = model.get_submodule(layer)
            if member in split:
                exec(split[member].source, space)
                block = space[split[member].name](block)
            run = SimpleNamespace(
                run=lambda index, *args, block=block, **kwargs: block(*args, **kwargs)
            )
            space |= {"index": 0, "self": run}
        exec(statement, space)
    return space["loss"]


def _names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]
