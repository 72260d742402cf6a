"""The generated part of the program: tensor-parallel layer classes and the Stage's forward."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from autopar.emit.body import Body
from autopar.emit.calls import unpackable
from autopar.emit.constants import LINE, constant, mapping
from autopar.emit.lines import wrapped
from autopar.emit.rebind import let_go, rebind, rebind_blocks
from autopar.emit.source import Namer
from autopar.emit.uses import HELPERS
from autopar.graph import Call, Graph, Ref, refs
from autopar.strategies.memory import released
from autopar.strategies.patterns import ENDS, Classes, restrict
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.spec import name_of
from autopar.strategies.states import R

RESERVED = (
    "self",
    "model",
    "index",
    "hidden",
    "layer",
    "block",
    "torch",
    "nn",
    "F",
    "dist",
    "checkpoint",
    "run",
    "outputs",
    "local",
    "MESH",
    "DEVICE",
    "DP",
    "TP",
    "MICROBATCH",
    *HELPERS,  # a variable of the same name would hide the function
)


@dataclass(frozen=True)
class LayerClass:
    """Source of one tensor-parallel layer class and what the chassis must know of it."""

    name: str
    source: str
    placements: dict[str, str]
    fused: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class StageText:
    """The pieces of ``Stage.forward``.

    ``inputs`` are the keys of the model's inputs by variable, ``context`` the statements that every
    stage runs first. ``statements`` has for every layer its code: for a block what runs block
    ``index``, for a part of the rest all of it; the last sets ``loss``.
    """

    inputs: dict[str, str]
    context: tuple[str, ...]
    statements: tuple[str, ...]
    used: frozenset[str]


@dataclass
class _Session:
    """What the pieces of one program share."""

    graph: Graph
    classes: Classes
    shardings: dict[str, Sharding]
    notes: dict[tuple[str, str], str]
    guarded: bool = False
    used: set[str] = field(default_factory=set)

    def key_of(self, pattern: Pattern) -> str:
        """The key of a pattern of blocks."""
        return next(key for key, p in self.classes.patterns.items() if p is pattern)


def layer_classes(
    graph: Graph, classes: Classes, shardings: dict[str, Sharding], class_names: dict[str, str],
    notes: dict[tuple[str, str], str],
) -> tuple[dict[str, LayerClass], set[str]]:  # fmt: skip
    """One class per pattern of blocks that is split; ``class_names`` are the user's own."""
    session = _Session(graph, classes, shardings, notes)
    count: Counter[str] = Counter()
    result = {}
    for key, pattern in classes.patterns.items():
        if key == ENDS or shardings[key].unsplit:
            continue
        base = f"Parallel{class_names[key]}"
        count[base] += 1
        name = f"{base}{count[base] if count[base] > 1 else ''}"
        result[key] = _layer_class(session, pattern, shardings[key], name)
    return result, session.used


def context_inputs(graph: Graph, pattern: Pattern, root: str = "") -> list[str]:
    """Values that the ops of a pattern read besides what it holds and what it receives.

    It holds the buffers of the module at ``root``.
    """
    made = {out for i in pattern.ops for out in graph.ops[i].outputs} | set(pattern.received)
    used = dict.fromkeys(n for i in pattern.ops for n in graph.ops[i].inputs())
    values = (graph.values[n] for n in used if n not in made)
    inside = root and f"{root}."
    foreign = {"input": True, "activation": True, "parameter": False}
    return [v.name for v in values if foreign.get(v.kind, not v.source.startswith(inside))]


def _layer_class(session: _Session, pattern: Pattern, sharding: Sharding, name: str) -> LayerClass:
    graph = session.graph
    first = session.classes.members.index(session.key_of(pattern))
    slots = session.classes.reads[first]
    namer = Namer((*RESERVED, *slots))
    extra = context_inputs(graph, pattern, pattern.name)
    arguments = [*slots, *(namer.bind(n, _argument(graph, n)) for n in extra)]
    namer.names |= dict(zip(pattern.received, slots, strict=True))
    body = Body(graph, sharding, "self", pattern.name, namer, notes=session.notes)
    body.write(pattern.ops, pattern.sent)
    results = [body.read(n, sharding.boundary[n]) for n in pattern.sent]
    session.used |= body.used
    placements, fused = parameter_tables(graph, sharding, pattern.name)
    source = [f"class {name}(nn.Module):", *_indent(_docstring(sharding))]
    source += [constant("PLACEMENTS", mapping(placements), indent=4)]
    if fused:
        text = {key: f"({dim}, {parts})" for key, (dim, parts) in fused.items()}
        source += [constant("FUSED", mapping(text), indent=4)]
    header = f"def forward({', '.join(['self', *arguments])}):"
    body.lines.append(f"return {', '.join(results)}")
    inner, renamed = rebind(body.lines, arguments, namer.bases, RESERVED)
    large = released(graph, pattern, sharding)
    dead = [variable for value, variable in namer.names.items() if value in large]
    inner = let_go(body.lines, inner, renamed, dead)
    source += ["", *_indent([header, *_indent(wrapped(_drop_copy(inner), LINE - 8))])]
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


def stage_text(
    graph: Graph, classes: Classes, shardings: dict[str, Sharding],
    notes: dict[tuple[str, str], str], *, guarded: bool = True,
) -> StageText:  # fmt: skip
    """The pieces of ``Stage.forward``.

    Where it is ``guarded``, parts of the code may run on different stages, and what one of them
    computes has no name in another.
    """
    session = _Session(graph, classes, shardings, notes, guarded=guarded)
    slots = {slot for layer in (*classes.reads, *classes.writes) for slot in layer}
    namer = Namer((*RESERVED, *slots))
    inputs = {}
    for key, value in graph.inputs.items():
        inputs[namer.bind(value, input_name(key))] = key
    context = _blocks_context(session, namer)
    everywhere = dict(namer.names)
    statements = []
    for number, member in enumerate(classes.members):
        own = Namer()
        own.names, own.taken = dict(everywhere if guarded else namer.names), namer.taken
        write = _part if member in classes.parts else _block
        statements.append(write(session, number, own))
        namer.names |= own.names
        namer.bases |= own.bases
    taken = (*RESERVED, *inputs, *slots)
    context, *statements = rebind_blocks([context, *statements], namer.bases, taken)
    texts = tuple("\n".join(_drop_copy(lines)) for lines in statements)
    return StageText(inputs, tuple(context), texts, frozenset(session.used))


def _part(session: _Session, number: int, namer: Namer) -> list[str]:
    """All code of a part outside the blocks: it sets the variables that it writes, or ``loss``."""
    graph, classes = session.graph, session.classes
    part = classes.parts[classes.members[number]]
    namer.names |= dict(zip(part.received, classes.reads[number], strict=True))
    last = number == len(classes.members) - 1
    sharding = restrict(session.shardings[ENDS], part, graph)
    calls = _unit_calls(graph, part) if sharding.unsplit else {}
    # Parts that depend on the stage stand behind an ``if``.
    width = LINE - (8 if last or not session.guarded else 12)
    body = Body(graph, sharding, "model", "", namer, calls, notes=session.notes, width=width)
    context = _context_lines(session, _part_context(graph, part, calls), namer)
    states = {graph.loss: R} if last else {n: sharding.boundary[n] for n in part.sent}
    body.write(part.ops, states)
    results = [body.read(name, state) for name, state in states.items()]
    targets = ["loss"] if last else classes.writes[number]
    session.used |= body.used
    assignment = f"{', '.join(targets)} = {', '.join(results)}"
    return [*context, *body.lines, *([assignment] if targets else [])]


def _part_context(graph: Graph, part: Pattern, calls: dict[int, Call]) -> list[str]:
    """Context that a part reads: by the ops that are written out, and as arguments of calls."""
    covered = {call.path for call in calls.values()}
    written = tuple(i for i in part.ops if graph.ops[i].unit not in covered)
    arguments = [n for call in calls.values() for n in _call_values(call)]
    return [*context_inputs(graph, replace(part, ops=written)), *arguments]


def _block(session: _Session, number: int, namer: Namer) -> list[str]:
    """The statement that runs block ``index``."""
    graph, classes = session.graph, session.classes
    key, reads, writes = classes.members[number], classes.reads[number], classes.writes[number]
    pattern = classes.patterns[key]
    names = namer.names | dict(zip(pattern.received, reads, strict=True))
    own = Namer()
    own.names, own.taken = names, namer.taken
    body = Body(graph, None, "model", "", own)
    if not session.shardings[key].unsplit:
        extra = context_inputs(graph, pattern, pattern.name)
        arguments = ", ".join([*reads, *(body.read(n, R) for n in extra)])
        targets = f"{', '.join(writes)} = " if writes else ""
        return [f"{targets}self.run(index, {arguments})"]
    call = graph.calls[pattern.name]
    arguments = body.arguments(call)
    wanted = dict(zip(pattern.sent, writes, strict=True))
    return assigned(f"self.run(index, {arguments})", call.outputs, wanted)


def assigned(call: str, outputs: Any, wanted: dict[str, str]) -> list[str]:
    """Statements that take the values ``wanted``, {value: variable}, out of what a call returns."""
    if not wanted:
        return [call]
    paths = {name: access for name, access in reversed(list(_paths(outputs))) if name in wanted}
    if len(paths) == 1:
        ((name, access),) = paths.items()
        return [f"{wanted[name]} = {call}{access}"]
    items = [item.name if isinstance(item, Ref) else "" for item in outputs or ()]
    if isinstance(outputs, tuple) and set(wanted) <= set(items):
        count = max(items.index(name) for name in wanted) + 1
        targets = [wanted.get(name, "_") for name in items[:count]]
        rest = ["*_"] if len(items) > count else []
        return [f"{', '.join([*targets, *rest])} = {call}"]
    return [
        f"outputs = {call}",
        *(f"{wanted[name]} = outputs{access}" for name, access in paths.items()),
    ]


def _paths(tree: Any, access: str = "") -> Iterator[tuple[str, str]]:
    """(value, subscripts) of every value in a nest."""
    if isinstance(tree, Ref):
        yield tree.name, access
    elif isinstance(tree, tuple):
        for index, item in enumerate(tree):
            yield from _paths(item, f"{access}[{index}]")
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _paths(item, f'{access}["{key}"]')


def _drop_copy(lines: list[str]) -> list[str]:
    """``x = f(...)`` then ``return x`` as one line, and no ``x = x``."""
    if lines and re.fullmatch(r"(\w+) = \1", lines[-1]):
        return lines[:-1]
    final = re.fullmatch(r"(\w+ =|return) (\w+)", lines[-1]) if lines else None
    if final and len(lines) > 1:
        code, _, note = lines[-2].partition("  # ")
        if code.startswith(f"{final[2]} = "):
            joined = f"{final[1]} {code.removeprefix(f'{final[2]} = ')}"
            return [*lines[:-2], f"{joined}  # {note}" if note else joined]
    return lines


def _unit_calls(graph: Graph, part: Pattern) -> dict[int, Call]:
    """Module calls that can stand for all ops of theirs, by the index of the first."""
    own, context = set(part.ops), set(graph.context)
    made = {out for i in own | context for out in graph.ops[i].outputs} | set(part.received)
    units: dict[str, list[int]] = {}
    for index, op in enumerate(graph.ops):
        units.setdefault(op.unit, []).append(index)
    calls = {}
    for path, call in graph.calls.items():
        inside = units.get(path, [])
        mine = [i for i in inside if i in own]
        known = all(
            n in graph.values and (graph.values[n].kind != "activation" or n in made)
            for n in _call_values(call)
        )
        told = unpackable(call.outputs) and not _taken(graph, part, call, set(mine))
        whole = set(inside) <= own | context and not _foreign(graph, call, inside)
        if mine and whole and known and told:
            calls[mine[0]] = call
    return calls


def _foreign(graph: Graph, call: Call, inside: list[int]) -> set[str]:
    """Values that a call reads though it is not passed them and the module does not hold them.

    ``torch.func.functional_call`` puts others in the place of what a module holds: called as it
    is, the module would read its own.
    """
    names = {name: group for group in graph.tied for name in group}
    path = call.path.partition("#")[0]
    made = {out for i in inside for out in graph.ops[i].outputs}
    read = {n: graph.values[n] for i in inside for n in graph.ops[i].inputs() if n not in made}
    held = {
        n for n, value in read.items() if value.kind in ("parameter", "buffer")
        and any(a.startswith(f"{path}.") for a in names.get(value.source, (value.source,)))
    }  # fmt: skip
    return read.keys() - held - set(_call_values(call))


def _taken(graph: Graph, part: Pattern, call: Call, inside: set[int]) -> set[str]:
    """Values that are made in a call and read outside of it, which hooks do, and not returned."""
    made = {out for i in inside for out in graph.ops[i].outputs}
    read = {n for i in part.ops if i not in inside for n in graph.ops[i].inputs()}
    return made.intersection((*part.sent, graph.loss, *read)) - set(refs(call.outputs))


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


def _blocks_context(session: _Session, namer: Namer) -> list[str]:
    """The context that blocks read; every stage computes it."""
    graph, lines = session.graph, []
    for key, pattern in session.classes.patterns.items():
        if key == ENDS:
            continue
        wanted = context_inputs(graph, pattern, pattern.name)
        if session.shardings[key].unsplit:
            received = set(pattern.received)
            wanted = [n for n in _call_values(graph.calls[pattern.name]) if n not in received]
        lines += _context_lines(session, wanted, namer)
    return lines


def _call_values(call: Call) -> list[str]:
    return list(dict.fromkeys(refs((call.args, call.kwargs))))


def _argument(graph: Graph, name: str) -> str:
    """The argument of a layer by which it gets a value; a buffer's own name."""
    value = graph.values[name]
    return value.source.rpartition(".")[2] if value.kind == "buffer" else spoken(graph, name)


def spoken(graph: Graph, name: str) -> str:
    """The user's variable for a value or for what it is a cast of, or a readable name."""
    makers = {out: op for op in graph.ops for out in op.outputs}
    source: str | None = name
    while source in makers:
        op = makers[source]
        label = dict(zip(op.outputs, op.labels, strict=False)).get(source)
        if label:
            return label
        cast = name_of(op) in ("to", "_to_copy", "expand", "unsqueeze") and op.args
        source = op.args[0].name if cast and isinstance(op.args[0], Ref) else None
    return readable(name)


def readable(name: str) -> str:
    """A graph value's name without the trace's numbering."""
    return re.sub(r"(_\d+|_ones|_triangle|_rows|_product)+$", "", name) or name


def input_name(key: str) -> str:
    """``kwargs.input_ids`` as ``input_ids``, ``target.0`` as ``target_0``, ``target`` as it is."""
    head, _, rest = key.partition(".")
    if head == "args":
        return "inputs" if rest == "0" else f"inputs_{rest}".replace(".", "_")
    name = (rest or head).replace(".", "_")
    return name if name.isidentifier() else f"{head}_{name}"


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]
