"""The body of a generated ``forward``: ops and state moves as lines of Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from autopar.emit.calls import call_arguments
from autopar.emit.lines import comment
from autopar.emit.modules import assignments, function_of
from autopar.emit.source import (
    HELPED,
    Namer,
    Writer,
    dimension,
    group,
    literal,
    local_dimensions,
    move_arguments,
    spelled,
)
from autopar.graph import Call, Graph, Op, Ref, Size, Value, refs
from autopar.strategies.rules import POINTWISE, RANDOM
from autopar.strategies.sharding import Moved, Sharding
from autopar.strategies.spec import argument, name_of
from autopar.strategies.states import R, State, V
from autopar.strategies.strategy import Strategy
from autopar.trace.inplace import is_inplace
from autopar.trace.opaque import OpaqueCall

# An expression longer than this gets a line and a name of its own.
LONGEST_INLINE = 60
LONGEST_ARITHMETIC = 40
# Of a method's lines.
WIDTH = 92
_VIEWS = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "transpose", "permute", "t", "unsqueeze",
    "squeeze", "expand", "slice", "select", "to", "_to_copy", "neg", "tril", "ones",
})  # fmt: skip
_PRODUCTS = frozenset({"linear", "matmul", "mm"})


@dataclass
class Body:
    """Writes the ops of one layer, in order, reading every value in the state its op needs.

    Attributes:
        graph: the graph that the ops belong to.
        sharding: their strategies; None for code that is replicated (context).
        owner: how parameters are reached, e.g. ``self`` in a layer's class.
        root: dotted path of the module that ``owner`` is; parameters are named relative to it.
        namer: variable names, shared between bodies of one function.
        calls: user's module calls to write instead of their ops, by index of their first op.
        used: names of the program's helper functions that the text calls.
        notes: comment for each move, by (value, target state).
        width: of a line; a longer expression is taken apart where it can be.
    """

    graph: Graph
    sharding: Sharding | None
    owner: str
    root: str
    namer: Namer
    calls: dict[int, Call] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    width: int = WIDTH
    lines: list[str] = field(default_factory=list)
    inline: dict[tuple[str, State], str] = field(default_factory=dict)
    moved: dict[tuple[str, State], str] = field(default_factory=dict)
    _unit: str = ""
    _uses: Counter[str] = field(default_factory=Counter)
    _biased: set[str] = field(default_factory=set)
    _readers: dict[str, Op] = field(default_factory=dict)
    _inlined: dict[str, int] = field(default_factory=dict)
    _made_states: dict[str, State] | None = None

    def write(self, indices: Iterable[int], wanted: Iterable[str] = ()) -> list[str]:
        """Statements for the ops, not yet broken; ``wanted`` are values that code behind reads."""
        order = self._alive(list(indices), wanted)
        self._readers = {n: self.graph.ops[i] for i in order for n in self.graph.ops[i].inputs()}
        self._uses = self._count_uses(order, wanted)
        self._biased = self._products_with_bias(order)
        skipped = {i for i in order if self._covered(i)}
        for index in order:
            if index in self.calls:
                self._call(self.calls[index])
            elif index not in skipped:
                self._op(index)
        return self.lines

    def _alive(self, order: list[int], wanted: Iterable[str]) -> list[int]:
        """The ops without those whose results nothing reads and that change nothing."""
        read = {n for call in self.calls.values() for n in refs((call.args, call.kwargs))} | {
            *wanted
        }
        kept = []
        for index in reversed(order):
            op = self.graph.ops[index]
            effects = is_inplace(op) or name_of(op) in RANDOM | {"opaque"}
            if effects or self._covered(index) or not read.isdisjoint(op.outputs):
                kept.append(index)
                read.update(op.inputs())
        return kept[::-1]

    def read(self, value: str, state: State) -> str:
        """The expression for ``value`` in ``state``; writes the move to it if there is one."""
        item = self.graph.values[value]
        if item.kind == "parameter":
            return self._parameter(item, state)
        if item.kind == "buffer":
            self.inline[value, R] = self.namer.names.get(value) or self._path(item.source)
        made = self._made().get(value, R)
        move = None if made == state else self._move(value, state)
        if move is None:
            return self.inline.get((value, made)) or self.namer.names[value]
        if (value, state) not in self.moved:
            self._write_move(move, made)
        return self.moved[value, state]

    def _made(self) -> dict[str, State]:
        if self.sharding is None:
            return {}
        if self._made_states is None:
            self._made_states = self.sharding.made(self.graph.ops)
            for move in self.sharding.moves:
                self._made_states.setdefault(move.value, move.source)
        return self._made_states

    def _move(self, value: str, state: State) -> Moved | None:
        moves = self.sharding.moves if self.sharding else ()
        return next((m for m in moves if (m.value, m.target) == (value, state)), None)

    def _write_move(self, move: Moved, made: State) -> None:
        source = self.inline.get((move.value, made)) or self.namer.names[move.value]
        function = move.move.function
        self.used.add(function)
        arguments = move_arguments(move)
        leaf = self.graph.values[move.value].source.rpartition(".")[2]
        base = self.namer.names.get(move.value) or leaf or move.value
        name = self.namer.fresh(f"{base}_{_SUFFIX[move.target.kind]}")
        self.namer.bases[name] = self.namer.bases.get(base, base)
        note = self.notes.get((move.value, str(move.target)), "")
        self._line(f"{name} = {function}({source}{arguments})", note)
        self.moved[move.value, move.target] = name

    def _op(self, index: int) -> None:
        op = self.graph.ops[index]
        self._unit = op.unit
        if name_of(op) == "batch_norm":
            self._count_batch(op)
        self.used |= {HELPED[name_of(op)]} if name_of(op) in HELPED else set()
        text = self._text(op, index)
        if self._single(op) and not self._draws(op, text, index) and self._may_inline(op, text):
            self.inline[op.outputs[0], self._outputs(index)[0]] = text
            self._inlined[op.outputs[0]] = index
        else:
            self._assign(op, text, index)

    def _strategy(self, index: int) -> Strategy | None:
        return self.sharding.strategies[index] if self.sharding else None

    def _outputs(self, index: int) -> tuple[State, ...]:
        strategy = self._strategy(index)
        return strategy.outputs if strategy else (R,) * len(self.graph.ops[index].outputs)

    def _text(self, op: Op, index: int) -> str:
        """The right-hand side for an op."""
        strategy = self._strategy(index)
        states = dict(strategy.inputs) if strategy else {}
        shapes = {o: (o, s) for o, s in zip(op.outputs, self._outputs(index), strict=True)}
        writer = Writer(
            self.graph.values,
            lambda name: self._operand(op, name, states.get(name, R)),
            lambda name: self._local(*shapes[name]),
        )
        if name_of(op) == "opaque":
            return self._module(op)
        special = strategy.special if strategy else ""
        text = _SPECIAL[special](self, op, states, writer) if special else writer.expression(op)
        return self._biased_linear(op, text)

    def _operand(self, op: Op, name: str, state: State) -> str:
        """What an op reads; under ``torch.no_grad`` no gradient flows into it."""
        stops = op.no_grad and self.graph.values[name].requires_grad
        return f"{group(self.read(name, state))}.detach()" if stops else self.read(name, state)

    def _products_with_bias(self, order: list[int]) -> set[str]:
        """Products that the next op only adds a bias to, in the state in which they are made."""
        found = set()
        for index in order:
            op = self.graph.ops[index]
            if name_of(op) != "add" or op.kwargs or not all(isinstance(a, Ref) for a in op.args):
                continue
            product, bias = op.args[0].name, self.graph.values[op.args[1].name]
            states = dict(self.sharding.strategies[index].inputs) if self.sharding else {}
            moved = self._move(product, states.get(product, R)) is not None
            if bias.kind == "parameter" and len(bias.shape) == 1 and not moved:
                found.add(product)
        return found

    def _biased_linear(self, op: Op, text: str) -> str:
        """``F.linear(x, w) + b`` as ``F.linear(x, w, b)``."""
        product, plus, bias = text.rpartition(" + ")
        joined = name_of(op) == "add" and product.startswith("F.linear(") and plus
        whole = joined and product.endswith(")") and op.args[0].name in self._biased
        return f"{product[:-1]}, {bias})" if whole else text

    def _module(self, op: Op) -> str:
        """A call of a module or function that could not be traced."""
        call = OpaqueCall.of(op)
        given = [literal(a, lambda name: self.read(name, R)) for a in call.args]
        for key, a in call.kwargs.items():
            given.append(f"{key}={literal(a, lambda name: self.read(name, R))}")
        function = function_of(call.path)
        if not function and self.sharding is not None and not self.sharding.unsplit:
            return self._helper("run_whole", self._path(call.path), *given)
        return f"{function or self._path(call.path)}({', '.join(given)})"

    def average(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """The mean of equal shards, of which the ranks' results add up to the mean of all."""
        return f"{group(writer.expression(op))} / TP"

    def sharded_embedding(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """A lookup in the rows of a table that this rank holds."""
        table, index = (self.read(a.name, states[a.name]) for a in op.args[:2])
        return self._helper("sharded_embedding", index, table)

    def sharded_cross_entropy(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """The loss of logits sharded over their classes."""
        logits, target = (self.read(a.name, states[a.name]) for a in op.args[:2])
        return self._helper("sharded_cross_entropy", logits, target, ignore_index=_ignored(op))

    def rows_cross_entropy(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """The loss of the rows that this rank holds, as its part of the loss of all."""
        logits, target = (self.read(a.name, states[a.name]) for a in op.args[:2])
        outer = Size(*states[op.args[0].name].outer)
        options = {
            "blocks": None if outer == Size(1) else dimension(outer),
            "ignore_index": _ignored(op),
            "label_smoothing": argument(op, 5, "label_smoothing", 0.0) or None,
            "mean": None if argument(op, 3, "reduction", 1) == 1 else False,
        }
        return self._helper("rows_cross_entropy", logits, target, **options)

    def sharded_experts(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """The product of each row with the matrix of its expert, by the ranks that hold them."""
        x, weight, ends = (self.read(name, states[name]) for name in op.inputs())
        return self._helper("grouped_mm", x, weight, ends, 'MESH.get_local_rank("tp")')

    def sharded_batch_norm(self, op: Op, states: dict[str, State], writer: Writer) -> str:
        """The normalisation of a shard of the channels."""
        read = [self.read(a.name, states[a.name]) if a else "None" for a in op.args[:5]]
        x, weight, bias, mean, variance = read
        training = "self.training" if op.args[5] else "False"
        return self._helper(
            "sharded_batch_norm", x, mean, variance, weight, bias, training,
            str(op.args[6]), str(op.args[7]),
        )  # fmt: skip

    def _count_batch(self, op: Op) -> None:
        """What the user's module does beside the normalisation."""
        mean = op.args[3]
        if isinstance(mean, Ref) and op.args[5]:
            self.used.add("count_batch")
            owner = self._path(self.graph.values[mean.name].source).rpartition(".")[0]
            self._line(f"count_batch({owner})", "")

    def _helper(self, function: str, *args: str, **options: Any) -> str:
        """A call of one of the program's own functions; options that are None are left out."""
        self.used.add(function)
        given = [f"{key}={value}" for key, value in options.items() if value is not None]
        return f"{function}({', '.join([*args, *given])})"

    def _single(self, op: Op) -> bool:
        return len(op.outputs) == 1 and self._uses[op.outputs[0]] == 1

    def _draws(self, op: Op, text: str, index: int) -> bool:
        """Whether an op draws random numbers for a shard."""
        sharded = self._outputs(index)[0].kind == "S"
        return name_of(op) in RANDOM and sharded and "training" in text

    def _assign(self, op: Op, text: str, index: int) -> None:
        """A statement for an op; operands get names of their own until it fits on a line."""
        if is_inplace(op) and not self._uses[op.outputs[0]]:
            self._line(text, "")
            return
        bases = self._bases(op)
        room = self.width - len(f"{', '.join(bases)} = ")
        while len(text) > room and self._name_longest(op):
            text = self._text(op, index)
        names = [self.namer.bind(o, base) for o, base in zip(op.outputs, bases, strict=True)]
        if name_of(op) == "opaque":
            self._take_apart(op, names, text)
            return
        note = self._shape_note(op, op.outputs[0], self._outputs(index)[0])
        random = self._draws(op, text, index)
        if random:
            self.used.add("shard_rng")
            self.lines.append("with shard_rng():")
        self._line(f"{', '.join(names)} = {text}", note, indent=4 if random else 0)

    def _take_apart(self, op: Op, names: list[str], text: str) -> None:
        """Statements for all that a module returns."""
        call = OpaqueCall.of(op)
        read = [name if self._uses[o] else "_" for o, name in zip(op.outputs, names, strict=True)]
        whole = "" if isinstance(call.results, int) else self.namer.fresh("returned")
        lines = assignments(call.results, read, text, whole)
        if op.no_grad:
            self.lines.append("with torch.no_grad():")
        note = self._shape_note(op, op.outputs[0], R) if len(names) == 1 else ""
        for line in lines:
            self._line(line, note if line == lines[-1] else "", indent=4 if op.no_grad else 0)

    def _name_longest(self, op: Op) -> bool:
        """Gives a name to the longest operand that stands in the expression of an op."""
        known = [n for n in op.inputs() if n in self._inlined and n not in self._biased]
        texts = {n: self.inline.get((n, self._made().get(n, R)), "") for n in known}
        texts = {n: text for n, text in texts.items() if len(text) > 1}
        if not texts:
            return False
        longest = max(texts, key=lambda name: len(texts[name]))
        del self.inline[longest, self._made().get(longest, R)]
        index = self._inlined.pop(longest)
        inner = self.graph.ops[index]
        self._assign(inner, self._text(inner, index), index)
        return True

    def _bases(self, op: Op) -> list[str]:
        """The user's variables for what an op makes, or names after the module or operation."""
        base = self._base_name(op)
        if name_of(op) in _VIEWS and len(op.outputs) == 1:
            base = self._viewed(op) or base
        plain = [base] if len(op.outputs) == 1 else [f"{base}_{i}" for i in range(len(op.outputs))]
        labels = op.labels or ("",) * len(plain)
        return [label or base for label, base in zip(labels, plain, strict=True)]

    def _takes_over(self, reader: Op, op: Op) -> bool:
        """Whether what reads a variable is assigned to it again, or is a view or copy of it."""
        copies = name_of(reader) in _VIEWS and not reader.labels
        return reader.labels == op.labels or copies

    def _viewed(self, op: Op) -> str:
        """The variable of which an op makes a view or a copy, also where it has been inlined."""
        if not op.args or not isinstance(op.args[0], Ref):
            return ""
        source = op.args[0].name
        inner = self.graph.ops[self._inlined[source]] if source in self._inlined else None
        if inner is not None and (inner.labels or name_of(inner) not in _VIEWS):
            return inner.labels[0] if inner.labels else ""
        if inner is not None:
            return self._viewed(inner)
        name = self.namer.names.get(source, "")
        return self.namer.bases.get(name, name)

    def _may_inline(self, op: Op, text: str) -> bool:
        """Whether the text stays in the expression that uses it.

        Short views and arithmetic do, and a product whose bias is added next; not what the user
        has a variable for, unless the reader is assigned to the same one.
        """
        name, reader = name_of(op), self._readers.get(op.outputs[0])
        if name in _PRODUCTS:
            return op.outputs[0] in self._biased
        if op.labels and not (reader and self._takes_over(reader, op)):
            return False
        limit = LONGEST_INLINE if name in _VIEWS else LONGEST_ARITHMETIC
        return len(text) <= limit and (name in _VIEWS or name in POINTWISE - RANDOM)

    def _base_name(self, op: Op) -> str:
        """The module's own name for products and normalisations, the operation's otherwise."""
        if name_of(op) == "opaque":
            return OpaqueCall.of(op).path.rpartition(".")[2] or "output"
        read = (self.graph.values[n] for n in op.inputs())
        sources = [spelled(self.graph, v.source, op.unit) for v in read if v.kind == "parameter"]
        for source in sources:
            parts = [p for p in source.split(".")[:-1] if not p.isdigit()]
            if parts:
                return parts[-1]
        base = name_of(op).strip("_")
        return _BASES.get(base, base)

    def _call(self, call: Call) -> None:
        """``x = self.model.wte(idx)``, as the user's model does."""
        self._line(f"{self._targets(call)} = {self._path(call.path)}({self.arguments(call)})", "")

    def arguments(self, call: Call) -> str:
        """The arguments of a module call as source."""
        return call_arguments(call, lambda value: self.read(value, R))

    def _targets(self, call: Call) -> str:
        path = call.path.partition("#")[0]
        base = [p for p in path.split(".") if not p.isdigit()][-1:] or ["x"]
        text = self._target(call.outputs, base[0])
        return text[1:-1] if text.startswith("(") and not text.endswith(",)") else text

    def _target(self, outputs: Any, base: str) -> str:
        if isinstance(outputs, Ref):
            return self.namer.bind(outputs.name, base)
        if not isinstance(outputs, tuple):
            return "_"
        items = [self._target(item, base) for item in outputs]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"

    def _covered(self, index: int) -> bool:
        """Whether the op belongs to a module call that is written as a call."""
        return self.graph.ops[index].unit in {c.path for c in self.calls.values()}

    def _count_uses(self, order: list[int], wanted: Iterable[str]) -> Counter[str]:
        """How often the text of each value would be repeated: once per read, once per move."""
        uses: Counter[str] = Counter(list(wanted))
        moves: set[tuple[str, State]] = set()
        for index in order:
            op = self.graph.ops[index]
            states = dict(self.sharding.strategies[index].inputs) if self.sharding else {}
            for name, times in Counter(refs((op.args, op.kwargs))).items():
                state = states.get(name, R)
                if self._move(name, state) is None:
                    uses[name] += times
                elif (name, state) not in moves:
                    moves.add((name, state))
                    uses[name] += 1
        for index in self.calls:
            uses.update(self.graph.ops[index].inputs())
        return uses

    def _parameter(self, value: Value, state: State) -> str:
        path = self._path(spelled(self.graph, value.source, self._unit))
        if self.sharding is None or self.sharding.unsplit:
            return path
        function = "partial" if state == V else "local"
        self.used.add(function)
        text = f"{function}({path})"
        return text if state.plain or state.kind != "S" else (
            f"{text}.flatten({state.dim}, {state.dim + 1})"
        )  # fmt: skip

    def _path(self, source: str) -> str:
        """``self.attn.c_attn.weight``; numbered children are indexed."""
        source = source.partition("#")[0]  # of a module that runs several times
        relative = source.removeprefix(f"{self.root}.") if self.root else source
        text = self.owner
        for part in relative.split(".") if relative else ():
            text += f"[{part}]" if part.isdigit() else f".{part}"
        return text

    def _local(self, value: str, state: State) -> tuple[str, ...]:
        return local_dimensions(self.graph.values[value], state)

    def _shaped_like_operand(self, op: Op) -> bool:
        """Whether an operand that has a line with its shape has the shape of the result."""
        shape = self.graph.values[op.outputs[0]].shape
        return any(
            self.graph.values[name].shape == shape
            for name in op.inputs()
            if name in self.namer.names and name not in self._inlined
        )

    def _shape_note(self, op: Op, value: str, state: State) -> str:
        item = self.graph.values[value]
        if not item.shape or not item.requires_grad:
            return ""
        if name_of(op) in POINTWISE and state.kind != "P" and self._shaped_like_operand(op):
            return ""
        shape = ", ".join(self._local(value, state))
        shape = shape.replace("MICROBATCH", "B").replace(" // TP", "/TP").replace(" * ", "*")
        return f"({shape}){_NOTES.get(state.kind, '')}"

    def _line(self, text: str, note: str, indent: int = 0) -> None:
        self.lines.append(" " * indent + comment(text, note))


def _ignored(op: Op) -> Any:
    """The class that does not count, where it is not the usual one."""
    ignored = argument(op, 4, "ignore_index", -100)
    return None if ignored == -100 else ignored


_SPECIAL: dict[str, Callable[[Body, Op, dict[str, State], Writer], str]] = {
    "average": Body.average,
    "sharded_embedding": Body.sharded_embedding,
    "sharded_cross_entropy": Body.sharded_cross_entropy,
    "rows_cross_entropy": Body.rows_cross_entropy,
    "sharded_batch_norm": Body.sharded_batch_norm,
    "sharded_experts": Body.sharded_experts,
}
_BASES = {
    "scaled_dot_product_attention": "attention", "cross_entropy_loss": "loss",
    "split_with_sizes": "split",
    **dict.fromkeys(("grouped_mm", "grouped_mm_fallback"), "expert_rows"),
}  # fmt: skip
_NOTES = {"P": ", partial sums", "D": ", rows of this rank's experts"}
_SUFFIX = {"R": "full", "V": "full", "S": "shard"}
