"""Runs a sharded pattern for all ranks in one process, moves and gradients included."""

from __future__ import annotations

import torch
from torch import Tensor

from autopar.graph import Graph
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.states import R, State
from autopar.trace.interpret import run
from tests.strategies.collectives import Moving
from tests.strategies.simulate import (
    BATCH,
    check_whole,
    cut,
    cut_gradient,
    draw,
    run_ranks,
)

Parts = list[Tensor]


def whole_inputs(graph: Graph, pattern: Pattern) -> dict[str, Tensor]:
    """Random values for all that a pattern reads and does not make; context is computed."""
    env = {}
    sizes = (v.shape[0].coefficient for v in graph.values.values() if "wte" in v.source
             or "embed_tokens" in v.source or "lm_head" in v.source)  # fmt: skip
    vocabulary = next(sizes, 2)
    for value in graph.values.values():
        if value.kind in ("input", "parameter", "buffer") or value.name in pattern.received:
            drawn = draw([s.at(BATCH) for s in value.shape], value.dtype, vocabulary)
            env[value.name] = drawn.requires_grad_(value.requires_grad)
    for index in graph.context:
        op = graph.ops[index]
        env.update(zip(op.outputs, run(op, env, BATCH, "cpu"), strict=True))
    return env


def run_whole(graph: Graph, pattern: Pattern, env: dict[str, Tensor]) -> dict[str, Tensor]:
    env = dict(env)
    for index in pattern.ops:
        op = graph.ops[index]
        env.update(zip(op.outputs, run(op, env, BATCH, "cpu"), strict=True))
    return env


class Ranks:
    """The state of all ranks while a sharded pattern runs."""

    def __init__(self, graph: Graph, pattern: Pattern, sharding: Sharding) -> None:
        self.graph, self.pattern, self.sharding = graph, pattern, sharding
        self.made = dict.fromkeys(graph.values, R) | sharding.made(graph.ops)
        self.made |= sharding.parameters
        self.made |= {name: sharding.boundary[name] for name in pattern.received}
        self.held: dict[tuple[str, State], Parts] = {}

    def put(self, name: str, whole: Tensor) -> Parts:
        parts = cut(whole.detach(), self.made[name], self.sharding.tp)
        parts = [part.clone().requires_grad_(whole.requires_grad) for part in parts]
        self.held[name, self.made[name]] = parts
        return parts

    def read(self, name: str, state: State) -> Parts:
        if (name, state) not in self.held:
            move = next(m for m in self.sharding.moves if (m.value, m.target) == (name, state))
            assert move.source == self.made[name]
            source = self.held[name, move.source]
            self.held[name, state] = list(
                Moving.apply(move.move.function, move.source, state, *source)
            )
        return self.held[name, state]

    def run(self) -> None:
        for index in self.pattern.ops:
            op, strategy = self.graph.ops[index], self.sharding.strategies[index]
            needs = {name: self.read(name, state) for name, state in strategy.inputs}
            tensors = [{n: parts[r] for n, parts in needs.items()} for r in range(self.sharding.tp)]
            results = run_ranks(op, strategy, self.graph.values, tensors)
            for k, (name, state) in enumerate(zip(op.outputs, strategy.outputs, strict=True)):
                self.held[name, state] = [result[k] for result in results]


def check_pattern(graph: Graph, pattern: Pattern, sharding: Sharding) -> None:
    """Asserts that outputs and the gradients of all inputs equal those of one device."""
    env = whole_inputs(graph, pattern)
    expected = run_whole(graph, pattern, env)
    ranks = Ranks(graph, pattern, sharding)
    inputs = {name: ranks.put(name, whole) for name, whole in env.items()}
    ranks.run()
    ends = [(name, sharding.boundary[name]) for name in pattern.sent]
    ends += [(graph.loss, R)] if graph.loss in ranks.made and graph.loss in expected else []
    wholes, parts, whole_grads, part_grads = [], [], [], []
    for name, state in ends:
        found = ranks.read(name, state)
        check_whole([part.detach() for part in found], state, expected[name].detach(), "P")
        gradient = torch.randn_like(expected[name])
        wholes, whole_grads = [*wholes, expected[name]], [*whole_grads, gradient]
        parts += found
        part_grads += cut_gradient(gradient, state, sharding.tp)
    torch.autograd.backward(wholes, whole_grads)
    torch.autograd.backward(parts, part_grads)
    for name, whole in env.items():
        if whole.grad is not None:
            grads = [part.grad for part in inputs[name]]
            check_whole(grads, ranks.made[name], whole.grad, "V")
