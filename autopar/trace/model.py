"""A copy of the user's model on ``meta``, with its module calls marked for the trace."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from autopar.errors import TraceError
from autopar.graph import Call, Ref
from autopar.trace.private import tree_flatten, tree_unflatten


@torch.library.custom_op("autopar::mark", mutates_args=())
def mark(x: Tensor, tag: str) -> Tensor:
    """An identity that survives into the exported graph and names a module's input or output."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, tag: str) -> Tensor:
    return torch.empty_like(x)


def meta_copy(model: nn.Module, dtype: torch.dtype, hollow: tuple[str, ...] = ()) -> nn.Module:
    """Copies ``model`` without its data: floating parameters become ``dtype`` tensors on ``meta``.

    ``deepcopy`` finds every tensor already in its memo, so no weight is ever allocated
    and tied parameters stay tied. The modules whose paths are in ``hollow`` are copied without
    what they hold: their own attributes are there, their parameters and submodules are not.
    """
    memo: dict[int, Any] = {}
    shells = [model.get_submodule(path) for path in hollow]
    inside = {id(module) for shell in shells for module in shell.modules()}
    for module in model.modules():
        if id(module) in inside:
            continue
        for parameter in module.parameters(recurse=False):
            kind = dtype if parameter.is_floating_point() else parameter.dtype
            like = torch.empty(parameter.shape, dtype=kind, device="meta")
            memo[id(parameter)] = nn.Parameter(like, requires_grad=parameter.requires_grad)
        for tensor in _plain_tensors(module):
            memo[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    for shell in shells:
        memo[id(shell)] = _empty_shell(shell, memo)
    return copy.deepcopy(model, memo)


def set_training(copy: nn.Module, model: nn.Module) -> nn.Module:
    """Puts the copy of (a part of) ``model`` into training, unless the user did so with the model.

    What is in evaluation there is meant to be, such as frozen batch normalisation.
    """
    return copy if model.training else copy.train()


def _empty_shell(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    shell = type(module).__new__(type(module))
    nn.Module.__init__(shell)
    own = {name: value for name, value in vars(module).items() if name not in vars(shell)}
    vars(shell).update(copy.deepcopy(own, memo))
    return shell


def _plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.buffers(recurse=False)
    yield from (value for value in vars(module).values() if isinstance(value, Tensor))


# The share of a model's parameters from which on a plain sequence of modules is worth cutting.
SUBSTANTIAL = 0.1


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that layers are made of.

    These are the children of the outermost lists of modules (``ModuleList``, ``Sequential``) in
    which some children are alike. Where none are, as in a list of stages of different widths, the
    lists inside of the children count; children without such are blocks themselves, unless
    the list holds next to nothing of the model. A model without lists has its own children as
    blocks. What has no parameters is never a block.
    """
    return tuple(_blocks("", model, SUBSTANTIAL * _size(model)) or _children(model))


def _blocks(path: str, module: nn.Module, least: float, *, listed: bool = False) -> list[str]:
    """The blocks in a module; ``listed`` says that it lies in a list that holds much."""
    named = ((f"{path}.{n}" if path else n, child) for n, child in module.named_children())
    children = {name: child for name, child in named if _size(child)}
    is_list = isinstance(module, nn.ModuleList)
    is_sequence = isinstance(module, nn.Sequential)
    whole = is_list or (is_sequence and (listed or _size(module) >= least))
    listed = listed or whole
    repeats = (is_list or is_sequence) and _alike(list(children.values()))
    if repeats or (whole and len(children) == 1):
        return list(children)
    inner = {name: _blocks(name, child, least, listed=listed) for name, child in children.items()}
    return [block for name in inner for block in inner[name] or ([name] if whole else [])]


def _children(model: nn.Module) -> list[str]:
    """Paths of the children with parameters; those of an only child instead of itself."""
    found = [(name, child) for name, child in model.named_children() if _size(child)]
    only = len(found) == 1 and _size(model) == _size(found[0][1])
    inner = _children(found[0][1]) if only else []
    return [f"{found[0][0]}.{name}" for name in inner] or [name for name, _ in found]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _alike(modules: list[nn.Module]) -> bool:
    """Whether two of the modules have at least half of their parameters in common.

    A block with a mixture of experts and one without have, and so have the first block of T5
    and the others; stages of different widths have not.
    """
    shapes = [{(n, p.shape) for n, p in m.named_parameters()} for m in modules]
    return any(2 * len(a & b) >= min(len(a), len(b)) for a, b in combinations(shapes, 2))


def find_units(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """The blocks and the largest modules that neither hold a block nor lie inside one."""
    found: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        if path and (path in blocks or not any(b.startswith(f"{path}.") for b in blocks)):
            found.append(path)
            return
        for name, child in module.named_children():
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return tuple(found)


@dataclass
class Recorder:
    """Notes how each unit was called; the graph later says which tensors these were.

    ``calls`` has every run, the second of ``encoder.layer`` as "encoder.layer#2".
    ``stack`` holds the paths of the modules that are running, so that an error can
    name the module in which the trace stopped. ``samples`` holds, for the units in ``watched``,
    the arguments as they were passed and the output as it was handed on. ``entered`` holds the
    arguments of every module's last call. ``passed``  holds, for each
    unit that is running, its arguments and what they were when it was called.
    """

    calls: dict[str, tuple[str, Any, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    watched: frozenset[str] = frozenset()
    samples: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    entered: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    passed: list[tuple[Any, Any]] = field(default_factory=list)

    def restart(self) -> None:
        """Forgets everything: the model is traced anew."""
        for notes in (self.calls, self.counts, self.samples, self.entered, self.stack, self.passed):
            notes.clear()

    def attach(self, model: nn.Module, units: tuple[str, ...]) -> None:
        """Registers the hooks on ``model``, which is a private copy and is thrown away later."""
        for path, module in model.named_modules():
            if path in units:
                module.register_forward_pre_hook(self._enter_unit(path), with_kwargs=True)
            module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
            module.register_forward_hook(lambda *_: self._leave())
            if path in units:
                module.register_forward_hook(self._leave_unit(path))

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(path)
            self.entered[path] = (args, kwargs)

        return hook

    def _leave(self) -> None:
        self.stack.pop()

    def _enter_unit(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            count = self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.watched:
                self.samples[path] = (args, kwargs), None
            run = f"{path}#{count}"
            (args, kwargs), tree = _mark_tree((args, kwargs), f"{run}:in")
            self.calls[run] = (type(module).__name__, tree, None)
            signature = inspect.signature(module.forward).parameters
            self.parameters[path] = tuple(signature)
            self.defaults[path] = {
                name: parameter.default
                for name, parameter in signature.items()
                if isinstance(parameter.default, (bool, int, float, str, type(None)))
            }
            self.passed.append(((args, kwargs), tree_flatten((args, kwargs))))
            return args, kwargs

        return hook

    def _leave_unit(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            _check_unchanged(path, type(module).__name__, *self.passed.pop())
            run = f"{path}#{self.counts[path]}"
            output, tree = _mark_tree(output, f"{run}:out")
            name, inputs, _ = self.calls[run]
            self.calls[run] = (name, inputs, tree)
            if path in self.watched:
                self.samples[path] = self.samples[path][0], output
            return output

        return hook


def _check_unchanged(path: str, name: str, arguments: Any, before: tuple[list[Any], Any]) -> None:
    """Refuses a unit that changes a list or dict that it was passed.

    Marks rebuild these containers, and so do the stages that a program cuts the model into:
    the caller would not see the change.
    """
    leaves, spec = tree_flatten(arguments)
    same = len(leaves) == len(before[0])
    same = same and all(a is b for a, b in zip(leaves, before[0], strict=True))
    if spec != before[1] or not same:
        raise TraceError(
            f"{name}.forward changes a list or dict that it is passed",
            expected="a forward that hands on what it makes by returning it",
            where=path,
            hint="return the new items, or a new list such as [*items, x]",
        )


def _mark_tree(tree: Any, tag: str) -> tuple[Any, Any]:
    """Marks each tensor of a nest; returns it so, and once more with ``Ref(tag)`` for tensors."""
    leaves, spec = tree_flatten(tree)
    marked = [
        mark(leaf, f"{tag}:{index}") if isinstance(leaf, Tensor) else leaf
        for index, leaf in enumerate(leaves)
    ]
    return tree_unflatten(marked, spec), refer(tree, tag)


def refer(tree: Any, tag: str) -> Any:
    """The nest with ``Ref("tag:3")`` for the tensor that is leaf 3."""
    leaves, spec = tree_flatten(tree)
    refs = [
        Ref(f"{tag}:{index}") if isinstance(leaf, Tensor) else leaf
        for index, leaf in enumerate(leaves)
    ]
    return tree_unflatten(refs, spec)


def module_of(run: str) -> str:
    """The path of the module that ran: "encoder.layer" for "encoder.layer#2"."""
    return run.partition("#")[0]


def as_call(path: str, recorded: tuple[str, Any, Any], names: dict[str, str],
            parameters: tuple[str, ...] = ()) -> Call | None:  # fmt: skip
    """The recorded call in terms of graph values, or None if it cannot be written as source."""
    class_name, (args, kwargs), outputs = recorded
    try:
        tree = (_plain(args, names), _plain(kwargs, names), _plain(outputs, names))
    except (KeyError, TypeError):
        return None
    return Call(path, class_name, tree[0], tree[1], tree[2], parameters)


def _plain(tree: Any, names: dict[str, str]) -> Any:
    if isinstance(tree, Ref):
        return Ref(names[tree.name])
    if isinstance(tree, (tuple, list)):
        return tuple(_plain(item, names) for item in tree)
    if isinstance(tree, dict):
        return {str(key): _plain(item, names) for key, item in tree.items()}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a {type(tree).__name__} has no source form")
