"""The generated part of the program: tensor-parallel layer classes and the Stage's forward."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from autopar.emit.body import Body
from autopar.emit.chassis import constant, mapping
from autopar.emit.source import Namer
from autopar.graph import Call, Graph, refs
from autopar.strategies.patterns import Classes, restrict
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.states import R

RESERVED = (
    "self", "model", "index", "hidden", "layer", "torch", "nn", "F", "dist", "local", "partial",
    "checkpoint", "run",
)  # fmt: skip


@dataclass(frozen=True)
class LayerClass:
    """Source of one tensor-parallel layer class and what the chassis must know of it."""

    name: str
    source: str
    placements: dict[str, str]
    fused: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class StageText:
    """Lines of the Stage's forward, and the names of the inputs that it takes by keyword.

    ``call`` is the argument list with which every block is run behind ``hidden``.
    """

    inputs: dict[str, str]
    embed: tuple[str, ...]
    context: tuple[str, ...]
    calls: dict[str, str]
    head: tuple[str, ...]
    used: frozenset[str]


@dataclass
class _Session:
    """What the pieces of one program share."""

    graph: Graph
    classes: Classes
    shardings: dict[str, Sharding]
    notes: dict[tuple[str, str], str]
    used: set[str] = field(default_factory=set)


def layer_classes(
    graph: Graph, classes: Classes, shardings: dict[str, Sharding], class_names: dict[str, str],
    notes: dict[tuple[str, str], str],
) -> tuple[dict[str, LayerClass], set[str]]:  # fmt: skip
    """One class per pattern of blocks that is split; ``class_names`` are the user's own."""
    session = _Session(graph, classes, shardings, notes)
    taken: set[str] = set()
    result = {}
    for key, pattern in classes.patterns.items():
        if key == "ends" or shardings[key].unsplit:
            continue
        name = f"Parallel{class_names[key]}"
        while name in taken:
            name += "2"
        taken.add(name)
        result[key] = _layer_class(session, pattern, shardings[key], name)
    return result, session.used


def context_inputs(graph: Graph, pattern: Pattern) -> list[str]:
    """Values that the ops of a pattern read besides parameters, buffers and the hidden state."""
    made = {out for i in pattern.ops for out in graph.ops[i].outputs}
    used = dict.fromkeys(n for i in pattern.ops for n in graph.ops[i].inputs())
    made.add(pattern.received or "")
    held = {"parameter", "buffer"}
    return [n for n in used if n not in made and graph.values[n].kind not in held]


def _layer_class(session: _Session, pattern: Pattern, sharding: Sharding, name: str) -> LayerClass:
    graph, namer = session.graph, Namer(RESERVED)
    extra = context_inputs(graph, pattern)
    arguments = [namer.bind(n, readable(n)) for n in extra]
    if pattern.received:
        namer.names[pattern.received] = "hidden"
    body = Body(graph, sharding, "self", pattern.name, namer, notes=session.notes)
    body.write(pattern.ops, [pattern.sent] if pattern.sent else [])
    result = body.read(pattern.sent, sharding.boundary[pattern.sent]) if pattern.sent else ""
    session.used |= body.used
    placements, fused = parameter_tables(graph, sharding, pattern.name)
    source = [f"class {name}(Parallel):", *_indent(_docstring(sharding))]
    source += [constant("PLACEMENTS", mapping(placements), indent=4)]
    if fused:
        text = {key: f"({dim}, {parts})" for key, (dim, parts) in fused.items()}
        source += [constant("FUSED", mapping(text), indent=4)]
    header = f"def forward(self, {', '.join(['hidden', *arguments])}):"
    inner = _drop_copy([*body.lines, f"return {result}"])
    source += ["", *_indent([header, *_indent(inner)])]
    return LayerClass(name, "\n".join(source), placements, fused)


def _docstring(sharding: Sharding) -> list[str]:
    """What the layer does on the tp axis, in one sentence."""
    counts = Counter(kind for m in sharding.moves for kind in (m.move.forward,) if kind)
    counts.update(kind for s in sharding.strategies.values() for kind, _ in s.collectives)
    names = [f"{number} {kind.replace('_', '-')}" for kind, number in sorted(counts.items())]
    return [f'"""Split over tp. Forward: {", ".join(names) or "no collectives"}."""', ""]


def parameter_tables(
    graph: Graph, sharding: Sharding, root: str
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """(placements, fused dims) of the sharded parameters by name relative to ``root``."""
    placements, fused = {}, {}
    for value, state in sharding.parameters.items():
        name = graph.values[value].source.removeprefix(f"{root}.")
        if state.kind == "S":
            placements[name] = f"Shard({state.dim + (not state.plain)})"
            if not state.plain:
                fused[name] = (state.dim, state.outer[0])
    return placements, fused


def stage_text(graph: Graph, classes: Classes, shardings: dict[str, Sharding],
               notes: dict[tuple[str, str], str]) -> StageText:  # fmt: skip
    """The pieces of ``Stage.forward``."""
    session = _Session(graph, classes, shardings, notes)
    namer = Namer(RESERVED)
    inputs = {}
    for key, value in graph.inputs.items():
        inputs[namer.bind(value, input_name(key))] = key
    context, calls = _blocks(session, namer)
    everywhere = dict(namer.names)
    embed = _embed(session, namer)
    namer.names = everywhere  # what the first stage alone computes has no name in the last
    head = _head(session, namer)
    return StageText(
        inputs, tuple(embed), tuple(context), calls, tuple(head), frozenset(session.used)
    )


def _embed(session: _Session, namer: Namer) -> list[str]:
    part = session.classes.parts.get("embedding")
    if part is None:
        return []
    body = _part_body(session, part, namer)
    context = _context(session, part, namer)
    body.write(part.ops, [part.sent] if part.sent else [])
    sent = part.sent or ""
    result = body.read(sent, session.shardings["ends"].boundary[sent])
    lines = [*context, *body.lines, f"hidden = {result}"]
    session.used |= body.used
    return _drop_copy(lines)


def _head(session: _Session, namer: Namer) -> list[str]:
    part = session.classes.parts.get("head")
    if part is None:
        return []
    if part.received:
        namer.names[part.received] = "hidden"
    body = _part_body(session, part, namer)
    context = _context(session, part, namer)
    body.write(part.ops, [session.graph.loss])
    result = body.read(session.graph.loss, R)
    lines = [*context, *body.lines, f"loss = {result}"]
    session.used |= body.used
    return _drop_copy(lines)


def _drop_copy(lines: list[str]) -> list[str]:
    """``x = f(...)`` then ``return x`` as one line, and no ``x = x``."""
    if re.fullmatch(r"(\w+) = \1", lines[-1]):
        return lines[:-1]
    final = re.fullmatch(r"(hidden =|loss =|return) (\w+)", lines[-1])
    if final and len(lines) > 1:
        code, _, note = lines[-2].partition("  # ")
        if code.startswith(f"{final[2]} = "):
            joined = f"{final[1]} {code.removeprefix(f'{final[2]} = ')}"
            return [*lines[:-2], f"{joined}  # {note}" if note else joined]
    return lines


def _part_body(session: _Session, part: Pattern, namer: Namer) -> Body:
    sharding = restrict(session.shardings["ends"], part, session.graph)
    calls = _unit_calls(session.graph, part) if sharding.unsplit else {}
    return Body(session.graph, sharding, "model", "", namer, calls, notes=session.notes)


def _unit_calls(graph: Graph, part: Pattern) -> dict[int, Call]:
    """Module calls that lie wholly inside the part, by the index of their first op."""
    calls = {}
    for path, call in graph.calls.items():
        inside = [i for i, op in enumerate(graph.ops) if op.unit == path]
        if inside and set(inside) <= set(part.ops):
            calls[inside[0]] = call
    return calls


def _context(session: _Session, part: Pattern, namer: Namer) -> list[str]:
    """Context that the part reads and that has no name yet."""
    return _context_lines(session, context_inputs(session.graph, part), namer)


def _context_lines(session: _Session, wanted: list[str], namer: Namer) -> list[str]:
    graph = session.graph
    maker = {out: i for i in graph.context for out in graph.ops[i].outputs}
    needed: set[int] = set()
    todo = [n for n in wanted if n in maker and n not in namer.names]
    while todo:
        index = maker[todo.pop()]
        if index not in needed:
            needed.add(index)
            todo += [n for n in graph.ops[index].inputs() if n in maker and n not in namer.names]
    body = Body(graph, None, "model", "", namer)
    lines = body.write(sorted(needed), [n for n in wanted for _ in range(2)])
    session.used |= body.used
    return lines


def _blocks(session: _Session, namer: Namer) -> tuple[list[str], dict[str, str]]:
    """Context for the blocks, and for each class the arguments of its call."""
    graph, lines, calls = session.graph, [], {}
    for key, pattern in session.classes.patterns.items():
        if key == "ends":
            continue
        if pattern.received:
            namer.names[pattern.received] = "hidden"
        call = graph.calls.get(pattern.name)
        if session.shardings[key].unsplit and call is not None:
            wanted = [n for n in _call_values(call) if n != pattern.received]
            lines += _context_lines(session, wanted, namer)
            body = Body(graph, None, "model", "", namer)
            calls[key] = body.arguments(call)
        else:
            wanted = context_inputs(graph, pattern)
            lines += _context_lines(session, wanted, namer)
            calls[key] = ", ".join(["hidden", *(namer.names[n] for n in wanted)])
    return lines, calls


def _call_values(call: Call) -> list[str]:
    return list(dict.fromkeys(refs((call.args, call.kwargs))))


def readable(name: str) -> str:
    """A graph value's name without the trace's numbering."""
    return re.sub(r"(_\d+|_ones|_triangle|_rows|_product)+$", "", name) or name


def input_name(key: str) -> str:
    """``kwargs.input_ids`` as ``input_ids``, ``args.0`` as ``input``, ``target`` as it is."""
    head, _, rest = key.partition(".")
    if head == "args":
        return "inputs" if rest == "0" else f"inputs_{rest}".replace(".", "_")
    return (rest or head).replace(".", "_")


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]
