"""Named dims of operations whose arguments decide which dims can be sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from autopar.graph import Op, Ref, Size, refs
from autopar.strategies.spec import (
    Names,
    Spec,
    Values,
    argument,
    combine,
    from_rule,
    name_of,
    numbered,
    present,
)

Builder = Callable[[Op, Values], Spec | None]


def pointwise(op: Op, values: Values) -> Spec:
    """Every element of the result depends on one element of each (broadcast) input."""
    out = values[op.outputs[0]]
    inputs = {n: present(numbered(values[n]), values[n]) for n in op.inputs()}
    return Spec(inputs, (present(numbered(out), out),), frozenset())


# --- permutations, new and dropped dims


def permuted(order: Callable[[Op, int], list[int]]) -> Builder:
    """The dims in the order that ``order(op, rank)`` gives."""

    def build(op: Op, values: Values) -> Spec:
        name = op.args[0].name
        names = numbered(values[name])
        out = tuple(names[i] for i in order(op, len(names)))
        return Spec({name: names}, (out,), frozenset())

    return build


def exchanged(op: Op, rank: int) -> list[int]:
    """``transpose``: two dims change places."""
    order = list(range(rank))
    first, second = (op.args[1] % rank, op.args[2] % rank) if len(op.args) > 2 else (0, 1)
    order[first], order[second] = order[second], order[first]
    return order


def moved(op: Op, rank: int) -> list[int]:
    """``movedim``: some dims go to new places, the rest keeps its order."""
    sources, targets = (
        [d % rank for d in (dims if isinstance(dims, tuple) else (dims,))] for dims in op.args[1:3]
    )
    order = [d for d in range(rank) if d not in sources]
    for target, source in sorted(zip(targets, sources, strict=True)):
        order.insert(target, source)
    return order


def unsqueeze(op: Op, values: Values) -> Spec:
    """A new dim of size one."""
    name = op.args[0].name
    names = list(numbered(values[name]))
    names.insert(op.args[1] % (len(names) + 1), "new")
    return Spec({name: numbered(values[name])}, (tuple(names),), frozenset({"new"}))


def squeeze(op: Op, values: Values) -> Spec:
    """Drops those of the given dims, or of all, that have size one."""
    value = values[op.args[0].name]
    names = numbered(value)
    dims = op.args[1] if len(op.args) > 1 else tuple(range(len(names)))
    given = {d % len(names) for d in (dims if isinstance(dims, tuple) else (dims,))}
    dropped = {names[d] for d in given if value.shape[d] == Size(1)}
    left = tuple(n for n in names if n not in dropped)
    return Spec({value.name: names}, (left,), frozenset(dropped))


def stack(op: Op, values: Values) -> Spec:
    """Equal tensors along a new dim."""
    names = numbered(values[next(refs(op.args))])
    out = list(names)
    out.insert(int(argument(op, 1, "dim", 0)) % (len(names) + 1), "new")  # type: ignore[call-overload]
    return Spec(dict.fromkeys(refs(op.args), names), (tuple(out),), frozenset({"new"}))


def one_hot(op: Op, values: Values) -> Spec:
    """A new last dim of classes."""
    name = op.args[0].name
    names = numbered(values[name])
    return Spec({name: names}, ((*names, "new"),), frozenset({"new"}))


def without(op: Op, values: Values) -> Spec:
    """``select`` and ``unbind``: one dim is taken apart."""
    name = op.args[0].name
    names = list(numbered(values[name]))
    whole = names.pop(int(argument(op, 1, "dim", 0)) % len(names))  # type: ignore[call-overload]
    outputs = (tuple(names),) * len(op.outputs)
    return Spec({name: numbered(values[name])}, outputs, frozenset({whole}))


def expand(op: Op, values: Values) -> Spec:
    """Broadcast dims may be sharded where they arise: every rank repeats the whole input."""
    name, out = op.args[0].name, values[op.outputs[0]]
    names = numbered(out)
    own = present(names[len(names) - len(values[name].shape) :], values[name])
    return Spec({name: own}, (present(names, out),), frozenset())


def repeat(op: Op, values: Values) -> Spec:
    """Dims that are repeated once pass through."""
    name, out = op.args[0].name, values[op.outputs[0]]
    names = numbered(out)
    whole = {n for n, times in zip(names, op.args[1], strict=True) if times not in (1, Size(1))}
    return Spec({name: names[-len(values[name].shape) :]}, (names,), frozenset(whole))


def repeat_interleave(op: Op, values: Values) -> Spec | None:
    """Each element along a dim several times in a row: a shard's copies form its shard."""
    if len(op.args) < 3 or op.args[2] is None:
        return None
    name = op.args[0].name
    names = numbered(values[name])
    return Spec({name: names}, (names,), frozenset())


# --- ops that need some dims whole


def whole_dims(op: Op, values: Values, dims: Iterable[int]) -> Spec:
    """Ops that work along some dims and leave the others alone: slice, cat, softmax, cumsum."""
    out = values[op.outputs[0]]
    rank = len(out.shape)
    names = numbered(out)
    inputs = dict.fromkeys(refs(op.args), names)
    whole = frozenset(names[dim % rank] for dim in dims)
    return Spec(inputs, (names,) * len(op.outputs), whole)


def along(position: int, default: int = 0) -> Builder:
    """Works along the dim or dims that the argument at ``position`` (or ``dim=``) names."""

    def build(op: Op, values: Values) -> Spec:
        dims: Any = argument(op, position, "dim", default)
        return whole_dims(op, values, dims if isinstance(dims, tuple) else (dims,))

    return build


def rolled(op: Op, values: Values) -> Spec | None:
    """Without dims the tensor is flattened first."""
    dims = argument(op, 2, "dims", ())
    return whole_dims(op, values, dims) if isinstance(dims, tuple) and dims else None


def padded(op: Op, values: Values) -> Spec:
    """Sizes in front of and behind each dim, last dim first; unpadded dims may be sharded."""
    pairs = [op.args[1][i : i + 2] for i in range(0, len(op.args[1]), 2)]
    return whole_dims(op, values, [-1 - i for i, pair in enumerate(pairs) if any(pair)])


def normalization(op: Op, values: Values) -> Spec:
    """Normalises over as many trailing dims as its second argument names."""
    names = numbered(values[op.outputs[0]])
    whole = frozenset(names[-len(op.args[1]) :])
    return Spec({op.args[0].name: names}, (names,), whole)


def group_norm(op: Op, values: Values) -> Spec:
    """(batch, channels, ...): normalises each group of channels of each sample."""
    names = _channels_first(op, values)
    parameters = {a.name: ("c",) for a in op.args[2:4] if isinstance(a, Ref)}
    return Spec(
        {op.args[0].name: names, **parameters}, (names,), frozenset(names[2:]),
        units={"c": op.args[1]},
    )  # fmt: skip


def instance_norm(op: Op, values: Values) -> Spec:
    """Normalises each channel of each sample; running statistics mix the samples."""
    names = _channels_first(op, values)
    tensors = {a.name: ("c",) for a in op.args[1:5] if isinstance(a, Ref)}
    mixes = {"b", "c"} if isinstance(op.args[3], Ref) else set()
    return Spec({op.args[0].name: names, **tensors}, (names,), frozenset({*names[2:], *mixes}))


def batch_norm(op: Op, values: Values) -> Spec:
    """Normalises each channel over the samples: without running statistics, see strategy.py."""
    names = _channels_first(op, values)
    parameters = {a.name: ("c",) for a in op.args[1:3] if isinstance(a, Ref)}
    whole = {"b", *names[2:], *({"c"} if isinstance(op.args[3], Ref) else ())}
    return Spec({op.args[0].name: names, **parameters}, (names,), frozenset(whole))


def _channels_first(op: Op, values: Values) -> Names:
    return ("b", "c", *numbered(values[op.outputs[0]])[2:])


def prelu(op: Op, values: Values) -> Spec:
    """One slope for all, or one per channel."""
    x, weight = (values[a.name] for a in op.args[:2])
    names = (*numbered(x)[:1], "c", *numbered(x)[2:]) if len(x.shape) > 1 else numbered(x)
    return Spec({x.name: names, weight.name: present(("c",), weight)}, (names,), frozenset())


def weight_norm(op: Op, values: Values) -> Spec:
    """``v * g / |v|``, the norm over all dims but one, along which g is long."""
    direction, size = (values[a.name] for a in op.args[:2])
    names = numbered(direction)
    own = names[int(argument(op, 2, "dim", 0)) % len(names)]  # type: ignore[call-overload]
    inputs = {direction.name: names, size.name: present(names, size)}
    return Spec(inputs, (names,), frozenset({*names} - {own}))


# --- reductions and losses


def reduction(*, mean: bool = False, summed: bool = False) -> Builder:
    """Reduces the dims of the second argument, or all; ``summed`` over shards adds up."""

    def build(op: Op, values: Values) -> Spec:
        name = op.args[0].name
        names = numbered(values[name])
        dims: Any = argument(op, 1, "dim")
        dims = dims if isinstance(dims, tuple) else (dims,)
        if dims == () or not all(isinstance(d, int) for d in dims) or _is_flag(dims):
            dims = tuple(range(len(names)))
        reduced = {names[d % len(names)] for d in dims}
        keep = len(values[op.outputs[0]].shape) == len(names)
        left = tuple("" if n in reduced else n for n in names if keep or n not in reduced)
        averaged = frozenset(reduced if mean else ())
        whole = frozenset(() if mean or summed else reduced)
        return Spec({name: names}, (left,) * len(op.outputs), whole, averaged=averaged)

    return build


def extremum(op: Op, values: Values) -> Spec | None:
    """``max`` and ``min``: of two tensors, along a dim with the place, or of everything."""
    if op.target.endswith(".other"):
        return pointwise(op, values)
    return reduction()(op, values)


def _is_flag(dims: tuple[Any, ...]) -> bool:
    """``std(x, unbiased)`` has no dims."""
    return any(isinstance(d, bool) for d in dims)


def norm(op: Op, values: Values) -> Spec:
    """``linalg_vector_norm(x, ord, dim, keepdim)``."""
    dims = op.args[2:3] if len(op.args) > 2 else ()
    moved_dims = Op(op.target, (op.args[0], *(dims or (None,))), {}, op.outputs)
    return reduction()(moved_dims, values)  # type: ignore[return-value]


def loss(position: int) -> Builder:
    """Elementwise losses; their reduction (none, mean, sum) is the argument at ``position``."""

    def build(op: Op, values: Values) -> Spec:
        inputs = {n: present(numbered(values[n]), values[n]) for n in op.inputs()}
        kind = argument(op, position, "reduction", 1)
        out = numbered(values[op.outputs[0]])
        names = frozenset(n for dims in inputs.values() for n in dims if n)
        return Spec(inputs, (out,), frozenset(), averaged=names if kind == 1 else frozenset())

    return build


# --- products


def linear(op: Op, values: Values) -> Spec:
    """A bias would be added once per partial sum."""
    whole = ("k",) if len(op.args) > 2 and isinstance(op.args[2], Ref) else ()
    return from_rule("... k, n k, n -> ... n", op, values, whole=whole)


def matmul(op: Op, values: Values) -> Spec | None:
    """Two matrices, or batches of them."""
    left, right = (values[a.name] for a in op.args)
    if len(left.shape) < 2 or len(right.shape) < 2:
        return None
    rule = "... k, k n -> ... n" if len(right.shape) == 2 else "... m k, ... k n -> ... m n"
    return from_rule(rule, op, values)


def convolution(op: Op, values: Values) -> Spec | None:
    """(batch, in, ...) with a kernel of (out, in / groups, ...).

    With groups, the channels of in- and output can be cut between groups only. Input channels
    are contracted; a bias would then be added once per partial sum.
    """
    transposed = name_of(op).startswith("conv_transpose")
    x, kernel = (values[a.name] for a in op.args[:2])
    if len(x.shape) != len(kernel.shape):
        return None
    groups = argument(op, 6, "groups", 1)
    if not isinstance(groups, int):  # one per sample, whose weights it has made
        return None
    space = tuple(f"~{i}" for i in range(len(x.shape) - 2))
    inside, outside = ("c", "n") if groups == 1 else ("g", "g")
    rows = (inside, outside) if transposed else (outside, inside)
    if groups != 1:
        rows = ("g", "own")
    inputs = {x.name: ("b", inside, *space), kernel.name: (*rows, *(f"k{s}" for s in space))}
    biased = len(op.args) > 2 and isinstance(op.args[2], Ref)
    if biased:
        inputs[op.args[2].name] = (outside,)
    whole = {*space, *(f"k{s}" for s in space), "own", *({"c"} if biased else ())}
    units = {} if groups == 1 else {"g": groups}
    return Spec(inputs, (("b", outside, *space),), frozenset(whole), units=units)


def einsum(op: Op, values: Values) -> Spec | None:
    """The equation already names the dims."""
    equation = op.args[0].replace(" ", "")
    if "." in equation:
        return None
    left, arrow, right = equation.partition("->")
    letters = [tuple(term) for term in left.split(",")]
    counts = [letter for term in letters for letter in term]
    right = right if arrow else "".join(sorted(n for n in counts if counts.count(n) == 1))
    tensors = [values[r] for r in refs(op.args[1])]
    pairs = [(t.name, present(term, t)) for t, term in zip(tensors, letters, strict=True)]
    inputs, whole = combine(pairs)
    whole |= {n for term in letters for n in term if term.count(n) > 1}
    return Spec(inputs, (tuple(right),), frozenset(whole))


def grouped_mm(op: Op, values: Values) -> Spec | None:
    """Rows of x in groups, each times a matrix of its own; how to share out groups: special.py."""
    tensors = [values[name] for name in op.inputs()]
    if [len(t.shape) for t in tensors] != [2, 3, 1]:
        return None
    names = zip((t.name for t in tensors), (("t", "k"), ("e", "k", "n"), ("e",)), strict=True)
    return Spec(dict(names), (("t", "n"),), frozenset({"t", "e"}))


def recurrent(op: Op, values: Values) -> Spec | None:
    """LSTM and GRU: samples are independent, everything else is whole."""
    if op.target.endswith(".data"):
        return None
    x = values[op.args[0].name]
    batch_first = bool(op.args[-1])
    names = ("b", "t", "i") if batch_first else ("t", "b", "i")
    states = dict.fromkeys(refs(op.args[1]), ("l", "b", "h"))
    outputs = ((*names[:2], "o"), *((("l", "b", "h"),) * (len(op.outputs) - 1)))
    return Spec({x.name: names, **states}, outputs, frozenset("tilho"))


# --- lookups


def gather(op: Op, values: Values) -> Spec:
    """``gather`` and ``scatter``: x, dim, index and source; the index may be split along dim.

    Another dim can be shared only where index and x are equally long.
    """
    x, index = values[op.args[0].name], values[op.args[2].name]
    names = numbered(x)
    dim = op.args[1] % len(names)
    scattered = name_of(op) != "gather"
    uneven = {n for n, a, b in zip(names, x.shape, index.shape, strict=True) if a != b}
    own = tuple("i" if k == dim else n for k, n in enumerate(names))
    pairs = [(x.name, names), *((r, own) for r in refs(op.args[2:]))]
    inputs, conflicts = combine(pairs)
    whole = {names[dim], *uneven, *conflicts, *({"i"} if scattered else ())}
    return Spec(inputs, (names if scattered else own,), frozenset(whole))


def index_select(op: Op, values: Values) -> Spec:
    """Rows of x along a dim, in the order of the index."""
    x, index = values[op.args[0].name], values[op.args[2].name]
    names = numbered(x)
    dim = op.args[1] % len(names)
    out = tuple("i" if k == dim else n for k, n in enumerate(names))
    return Spec({x.name: names, index.name: ("i",)}, (out,), frozenset({names[dim]}))


def index(op: Op, values: Values) -> Spec | None:
    """``x[:, i, j]``: dims without an index pass through, and so do those of the indices.

    Index tensors stand in the result where the first of them is, or in front if a ``:``
    stands between them.
    """
    x = values[op.args[0].name]
    given = [None if i is None else values[i.name] for i in op.args[1]]
    at = [k for k, i in enumerate(given) if i is not None]
    tensors = [i for i in given if i is not None]
    if not tensors or any(i.dtype == "bool" for i in tensors):
        return None
    rank = max(len(i.shape) for i in tensors)
    broadcast = tuple(f"i{rank - k}" for k in range(rank))
    names = numbered(x)
    kept = [n for k, n in enumerate(names) if k not in at]
    place = at[0] if at[-1] - at[0] + 1 == len(at) else 0
    out = (*kept[:place], *broadcast, *kept[place:])
    own = [(i.name, present(broadcast[rank - len(i.shape) :], i)) for i in tensors]
    inputs, conflicts = combine([(x.name, names), *own])
    out = present(out, values[op.outputs[0]])
    return Spec(inputs, (out,), frozenset({*(names[k] for k in at), *conflicts}))


def index_put(op: Op, values: Values) -> Spec | None:
    """``x[i, j] = y``: dims without an index pass through where y is as long in them."""
    x, source = values[op.args[0].name], values[op.args[2].name]
    read = Op(op.target, op.args[:2], {}, (source.name,))
    found = index(read, values)
    if found is None or found.outputs[0] is None or len(found.outputs[0]) != len(source.shape):
        return None
    inputs, conflicts = combine([*found.inputs.items(), (source.name, found.outputs[0])])
    indexed = {n for names in found.inputs.values() for n in names if n.startswith("i")}
    kept = {n for n in numbered(x) if n not in found.outputs[0]}
    return Spec(inputs, (numbered(x),), found.whole | conflicts | indexed | kept)


def embedding_bag(op: Op, values: Values) -> Spec:
    """Columns of the table may be split; the index belongs to all of them."""
    table = values[op.args[0].name]
    largest = values[op.outputs[3]]
    maxima: Names | None = ("", "n") if len(largest.shape) == 2 else None
    return Spec({table.name: ("r", "n")}, (("", "n"), None, None, maxima), frozenset({"r"}))
