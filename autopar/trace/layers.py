"""Cuts the flat list of operations into layers: the blocks, and the code around them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from autopar.graph import Call, Layer, Op, Value, refs
from autopar.trace.inplace import is_inplace
from autopar.trace.model import Recorder, as_call, module_of
from autopar.trace.opaque import moved
from autopar.trace.simplify import substitute
from autopar.trace.together import buffers_used, joined

Values = dict[str, Value]
# What stands before the first block and behind the last.
EMBEDDING, HEAD = "embedding", "head"


def assign_units(ops: list[Op], recorder: Recorder) -> list[Op]:
    """Gives each op the run of a module that it was recorded in.

    That is the module's path, with "#2" behind it for the second run of one that has several.
    """
    spans: dict[str, list[int]] = {}
    for index, op in enumerate(ops):
        if op.target == "autopar.mark.default":
            spans.setdefault(op.args[1].split(":")[0], []).append(index)
    names = {run: _run_name(run, recorder) for run in spans}
    owner = {i: names[run] for run, s in spans.items() for i in range(s[0], s[-1] + 1)}
    return [dataclasses.replace(op, unit=owner.get(i, "")) for i, op in enumerate(ops)]


def _run_name(run: str, recorder: Recorder) -> str:
    path = module_of(run)
    return path if recorder.counts.get(path) == 1 else run


def collect_calls(ops: list[Op], recorder: Recorder, same: dict[str, str]) -> dict[str, Call]:
    """The runs of modules, in terms of the values that remain after simplification."""
    tags = {}
    for op in ops:
        if op.target == "autopar.mark.default":
            name = op.outputs[0]
            while name in same:
                name = same[name]
            tags[op.args[1]] = name
    calls = {}
    for run, recorded in recorder.calls.items():
        name, parameters = _run_name(run, recorder), recorder.parameters.get(module_of(run), ())
        call = as_call(name, recorded, tags, parameters)
        if call is not None:
            defaults = recorder.defaults.get(module_of(run), {})
            calls[name] = dataclasses.replace(call, defaults=defaults)
    return calls


def build_layers(ops: list[Op], values: Values, blocks: tuple[str, ...], calls: dict[str, Call],
                 tied: tuple[tuple[str, ...], ...] = ()
                 ) -> tuple[tuple[Layer, ...], tuple[int, ...]]:  # fmt: skip
    """Returns the layers in execution order and the indices of the context ops.

    A block is a layer if its call says all that goes in and out. The code around the blocks is cut
    wherever one stands, and so are the runs of other blocks, which belong to it. Layers that use a
    buffer that one of them changes are joined (``together.py``).
    """
    used, changed = buffers_used(ops, values)
    learned = _depends_on_parameters(ops, values, used, changed) | _unread_changes(ops)
    chosen = _callable_blocks(ops, values, blocks, calls, learned, tied)
    separate = _groups(ops, chosen, set(blocks) - chosen, learned)
    groups = joined(separate, used, chosen, HEAD)
    own = {path: calls[path] for path in chosen if groups.get(path) == separate[path]}
    flow = _flow(groups, ops, values, own, learned)
    layers = tuple(
        _layer(name, tuple(group), ops, values, own.get(name), flow)
        for name, group in groups.items()
    )
    return layers, _context(ops, own, learned)


def _depends_on_parameters(ops: list[Op], values: Values, used: dict[int, set[str]],
                           changed: dict[int, set[str]]) -> set[int]:  # fmt: skip
    """Ops that read what parameters make, or buffers that such ops change, earlier or later."""
    tainted = {name for name, value in values.items() if value.kind == "parameter"}
    found: set[int] = set()
    learned: set[str] = set()
    before = -1
    while before < len(found):
        before = len(found)
        for index, op in enumerate(ops):
            if tainted.intersection(op.inputs()) or learned & used[index]:
                tainted.update(op.outputs)
                found.add(index)
                learned |= changed.get(index, set())
    return found


def _unread_changes(ops: list[Op]) -> set[int]:
    """Changes of buffers that nothing reads, such as counters: a layer has to make them."""
    read = {name for op in ops for name in op.inputs()}
    return {i for i, op in enumerate(ops) if is_inplace(op) and not read.intersection(op.outputs)}


def _callable_blocks(ops: list[Op], values: Values, blocks: tuple[str, ...],
                     calls: dict[str, Call], learned: set[int],
                     tied: tuple[tuple[str, ...], ...]) -> set[str]:  # fmt: skip
    """Blocks that exchange learned values with the rest through their call alone.

    They read parameters of their own alone, which nobody else reads, and the loss is made outside
    of them.
    """
    names = {name: group for group in tied for name in group}
    maker = {out: ops[i].unit for i in learned for out in ops[i].outputs}
    given = {path: set(refs((c.args, c.kwargs))) for path, c in calls.items()}
    returned = {path: set(refs(c.outputs)) for path, c in calls.items()}
    broken = {ops[-1].unit}
    for op in ops:
        for name in op.inputs():
            value, source = values[name], maker.get(name, op.unit)
            if value.kind == "parameter":
                spelled = names.get(value.source, (value.source,))
                if not all(n.startswith(f"{op.unit}.") for n in spelled):
                    broken |= {op.unit, *_holders(spelled, blocks)}
            elif source != op.unit:
                broken |= {source} if name not in returned.get(source, ()) else set()
                broken |= {op.unit} if name not in given.get(op.unit, ()) else set()
    found = {ops[i].unit for i in learned} & set(blocks) & calls.keys()
    return found - broken


def _holders(names: tuple[str, ...], blocks: tuple[str, ...]) -> set[str]:
    """The blocks that hold a parameter under one of its names."""
    return {block for block in blocks if any(n.startswith(f"{block}.") for n in names)}


def _groups(ops: list[Op], blocks: set[str], others: set[str], learned: set[int]
            ) -> dict[str, list[int]]:  # fmt: skip
    """Op indices of each layer: blocks by path, the code around them by its place.

    ``others`` are blocks that are no layers: from each of their runs on the code is another layer,
    which goes by the run. Such a name is in parentheses, and so is a place where a block of
    the user's has its name.
    """
    groups: dict[str, list[int]] = {}
    standing = [i for i in learned if ops[i].unit in blocks or module_of(ops[i].unit) in others]
    first, last = min(standing, default=0), max(standing, default=-1)
    begun: dict[str, None] = {}
    place, since = EMBEDDING if standing else HEAD, 0
    glue = 0
    for index, op in enumerate(ops):
        if op.unit in blocks:
            begun[op.unit] = None
            groups.setdefault(op.unit, []).append(index)
        elif index in learned:
            run = f"({op.unit})"
            if index > last:
                place = HEAD
            elif module_of(op.unit) in others and run not in groups:
                place, since = run, len(begun)
            elif index > first and since != len(begun):
                glue += 1
                place, since = f"glue.{glue}", len(begun)
            groups.setdefault(f"({place})" if place in blocks else place, []).append(index)
    return groups


def _context(ops: list[Op], blocks: dict[str, Call], learned: set[int]) -> tuple[int, ...]:
    """Ops that depend on no parameter and are read outside of the block that they stand in."""
    maker = {out: i for i, op in enumerate(ops) if i not in learned for out in op.outputs}
    found = {i for i, op in enumerate(ops) if i not in learned and op.unit not in blocks}
    reads = [(op.unit, n) for op in ops for n in op.inputs()]
    reads += [(path, n) for path, c in blocks.items() for n in refs((c.args, c.kwargs))]
    found.update(maker[n] for unit, n in reads if n in maker and ops[maker[n]].unit != unit)
    for index in reversed(range(len(ops))):
        if index in found:
            found.update(maker[n] for n in ops[index].inputs() if n in maker)
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Flow:
    """Learned activations between layers: what each receives and sends, and which are chained."""

    received: dict[str, tuple[str, ...]]
    sent: dict[str, tuple[str, ...]]
    chained: frozenset[str]


def _flow(groups: dict[str, list[int]], ops: list[Op], values: Values, calls: dict[str, Call],
          learned: set[int]) -> _Flow:  # fmt: skip
    order = {name: number for number, name in enumerate(groups)}
    maker = {
        out: name for name, group in groups.items() for i in group if i in learned
        for out in ops[i].outputs
    }  # fmt: skip
    received: dict[str, tuple[str, ...]] = {}
    readers: dict[str, list[int]] = defaultdict(list)
    main: set[str] = set()
    for name, group in groups.items():
        call = calls.get(name)
        passed = refs((call.args, call.kwargs)) if call else ()
        read = dict.fromkeys([*passed, *(n for i in group for n in ops[i].inputs())])
        received[name] = tuple(n for n in read if maker.get(n, name) != name)
        main.update(_main(received[name], call))
        for value in received[name]:
            readers[value].append(order[name])
    sent: dict[str, tuple[str, ...]] = {
        name: tuple(o for i in group for o in ops[i].outputs if o in readers)
        for name, group in groups.items()
    }
    chained = frozenset(
        value for value, by in readers.items()
        if by == [order[maker[value]] + 1] and value in main
        and values[value].requires_grad and len(values[value].shape) > 1
    )  # fmt: skip
    return _Flow(received, sent, chained)


def _main(received: tuple[str, ...], call: Call | None) -> tuple[str, ...]:
    """What a layer may receive as its hidden state: of a block its first argument."""
    passed = list(refs((call.args, call.kwargs))) if call else []
    return tuple(n for n in received if call is None or n == passed[0])


def _layer(name: str, group: tuple[int, ...], ops: list[Op], values: Values, call: Call | None,
           flow: _Flow) -> Layer:  # fmt: skip
    inside = {out for i in group for out in ops[i].outputs}
    received, sent = flow.received[name], flow.sent[name]
    used = dict.fromkeys([*(n for i in group for n in ops[i].inputs()), *received])
    parameters = tuple(values[n].source for n in used if values[n].kind == "parameter")
    inputs = tuple(n for n in used if n not in inside and not _is_own(values[n], name))
    outputs = (*sent, *sorted(n for n in inside if values[n].shape == () and n not in sent))
    place = name.strip("()")
    kind: Any = "block" if call else place if place in (EMBEDDING, HEAD) else "glue"
    kind = "run" if kind == "glue" and place != name else kind
    chained = flow.chained.intersection((*received, *sent))
    local = {n: f"received{received.index(n)}" if n in received else n for n in inputs}
    return Layer(
        name, kind, group, _signature(name, group, ops, values, local, call, sent, chained),
        parameters, inputs, outputs, received, sent, chained,
    )  # fmt: skip


def _is_own(value: Value, path: str) -> bool:
    """Whether a layer holds the value: all parameters that it reads, buffers of its module."""
    own = value.kind == "buffer" and value.source.startswith(f"{path}.")
    return own or value.kind == "parameter"


def _signature(path: str, group: tuple[int, ...], ops: list[Op], values: Values,
               local: dict[str, str], call: Call | None, sent: tuple[str, ...],
               chained: frozenset[str]) -> str:  # fmt: skip
    """Hash of the layer's ops with names made local: equal layers have equal signatures.

    Context such as masks keeps its name: layers that read different masks differ.
    """
    arguments = substitute((call.args, call.kwargs), local) if call else None
    inputs = [[local[n], _describe(values[n]), n in chained] for n in local]
    rows: list[Any] = [inputs, repr(arguments)]
    for index in group:
        op = ops[index]
        for name in op.inputs():
            value = values[name]
            if value.kind in ("parameter", "buffer") and name not in local:
                local[name] = value.source.removeprefix(f"{path}.") + str(_describe(value))
        for out in op.outputs:
            local[out] = f"v{len(local)}"
        arguments = substitute((moved(op, path, ""), op.kwargs), local)
        rows.append([op.target, repr(arguments), op.no_grad])
    rows.append([[local[n], n in chained] for n in sent])
    rows.append(repr(substitute(call.outputs, local)) if call else None)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _describe(value: Value) -> list[Any]:
    return [value.dtype, [[s.coefficient, s.power] for s in value.shape], value.requires_grad]
