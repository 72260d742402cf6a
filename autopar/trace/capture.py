"""From an ``nn.Module`` and a loss to one flat list of operations, through ``torch.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Size, Value
from autopar.trace.batches import merge_batches
from autopar.trace.constants import Constants
from autopar.trace.expand import expand
from autopar.trace.known import KnownValues
from autopar.trace.labels import Statement, label, statement_of
from autopar.trace.losses import UnreducedLosses, as_torch_does
from autopar.trace.model import Recorder, find_blocks, find_units, meta_copy, set_training
from autopar.trace.norms import call_plain_norms, check_momentum
from autopar.trace.opaque import (
    Opaques,
    OwnBackwards,
    ShapelessFunctions,
    UntraceableError,
    read_call,
)
from autopar.trace.private import tree_flatten_with_path, tree_map, tree_unflatten
from autopar.trace.refusals import explain
from autopar.trace.repeats import Repeat, find_repeats
from autopar.trace.stand_in import attach_stand_ins

TRACE_BATCH = 2
_NUMBERS = (torch.SymInt, torch.SymFloat, int)
_logger = logging.getLogger(__name__)


@dataclass
class Raw:
    """The trace before it is simplified: values and ops in execution order, marks included."""

    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    loss: str = ""
    blocks: tuple[str, ...] = ()
    recorder: Recorder = field(default_factory=Recorder)


class _Step(nn.Module):
    """Model and loss as one module with two inputs: (args, kwargs) and the target."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> Tensor:
        output = self.model(*args, **kwargs)
        if self.loss_fn is not None:
            return self.loss_fn(output, target)
        loss = _find_loss(output)
        if loss is None:
            kind = "a tensor" if isinstance(output, Tensor) else type(output).__name__
            raise TraceError(
                f"the model returned {kind} without a loss",
                expected="a scalar loss to train on: alone, first in a tuple, or called loss",
                where="loss_fn",
                hint="pass loss_fn=(output, target) -> scalar, or inputs with labels",
            )
        return loss


def _find_loss(output: Any) -> Tensor | None:
    """The scalar that a model without a loss function hands back as its loss."""
    if isinstance(output, Mapping):
        found = output.get("loss")
    elif isinstance(output, (tuple, list)):
        found = output[0] if output else None
    else:
        found = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) and not found.shape else None


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Any,
    loss_fn: Callable[..., Tensor] | None,
    dtype: torch.dtype,
) -> Raw:
    """Exports one training step of ``model``; see ``autopar.trace.trace`` for the arguments.

    Of blocks that are equal three are traced, and the others take over their operations. Where the
    blocks turn out not to be used equally, or where anything else goes wrong, all are traced.
    """
    check_momentum(model)
    inputs = tree_map(partial(_to_meta, dtype=dtype), (args, kwargs))
    example = (*inputs, tree_map(_to_meta, target))
    opaques = Opaques(partial(_size, where=""))
    while True:
        recorder = Recorder()
        try:
            return _capture_few(model, example, loss_fn, dtype, opaques, recorder)
        except UntraceableError as error:
            copy = set_training(meta_copy(model, dtype), model)
            _disable_cache(copy)
            found = opaques.find(copy, error.path, recorder.entered)
            if not found:
                raise
            names = ", ".join(name or "the model" for name in found)
            _logger.info("one operation each, as it cannot be traced: %s\n%s", names, error)


def _capture_few(
    model: nn.Module, example: tuple[Any, ...], loss_fn: Callable[..., Tensor] | None,
    dtype: torch.dtype, opaques: Opaques, recorder: Recorder,
) -> Raw:  # fmt: skip
    """Leaves blocks out, or traces all if that fails."""
    repeats = find_repeats(model, find_blocks(model))
    if repeats:
        try:
            return _capture(model, example, loss_fn, dtype, repeats, opaques, Recorder())
        except Exception as error:  # the same error comes up again if it is about the model
            _logger.info(
                "tracing every block, which takes longer: %s", str(error).partition("\n")[0]
            )
    return _capture(model, example, loss_fn, dtype, (), opaques, recorder)


def _capture(
    model: nn.Module,
    example: tuple[Any, ...],
    loss_fn: Callable[..., Tensor] | None,
    dtype: torch.dtype,
    repeats: tuple[Repeat, ...],
    opaques: Opaques,
    recorder: Recorder,
) -> Raw:
    """One trace with any number of samples, or two where the model fixes it (``len(x)``)."""

    def read(batch: int, recorder: Recorder, *, fixed: bool) -> Raw:
        inputs = tree_map(partial(_resized, batch=batch), example)
        copy = _prepared(model, dtype, repeats, opaques, recorder)
        shapeless = ShapelessFunctions(opaques)
        exported = _export(_Step(copy, loss_fn), inputs, recorder, shapeless, fixed=fixed)
        recorder.samples.clear()
        raw = Raw(blocks=find_blocks(model), recorder=recorder)
        every = model.named_parameters(remove_duplicate=False)  # by all names of tied ones
        frozen = {name for name, parameter in every if not parameter.requires_grad}
        _Reader(raw, exported, frozen).read()
        return raw

    raw = read(TRACE_BATCH, recorder, fixed=False)
    if not all(raw.values[name].shape[0].power for name in raw.inputs.values()):
        recorder.restart()
        raw = read(TRACE_BATCH, recorder, fixed=True)
        merge_batches(raw, read(TRACE_BATCH + 1, Recorder(), fixed=True), TRACE_BATCH)
    raw.ops = expand(raw.ops, raw.values, repeats)
    return raw


def _resized(leaf: Any, batch: int) -> Any:
    return leaf.new_empty((batch, *leaf.shape[1:])) if isinstance(leaf, Tensor) else leaf


def _prepared(
    model: nn.Module, dtype: torch.dtype, repeats: tuple[Repeat, ...],
    opaques: Opaques, recorder: Recorder,
) -> nn.Module:  # fmt: skip
    """A copy of the model on ``meta`` that notes its calls in ``recorder``."""
    omitted = tuple(path for repeat in repeats for path in repeat.omitted)
    copy = set_training(meta_copy(model, dtype, hollow=omitted), model)
    _disable_cache(copy)
    call_plain_norms(copy)
    units = find_units(model, find_blocks(model))
    opaques.attach(copy, _below(omitted))
    recorder.attach(copy, tuple(path for path in units if path not in omitted))
    attach_stand_ins(copy, repeats, recorder)
    return copy


def _below(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{path}." for path in paths)


def _disable_cache(model: nn.Module) -> None:
    """Hugging Face decoders keep a key/value cache by default, which training never reads.

    Encoder and decoder of one model have a configuration each.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]


def _to_meta(leaf: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A tensor of two samples without data. Mixed precision casts floating inputs to ``dtype``.

    The program does so where it cuts micro-batches. Neither touches the target, nor any
    input in float32.
    """
    if not isinstance(leaf, Tensor):
        return leaf
    cast = leaf.is_floating_point() and dtype != torch.float32
    kind = dtype if cast else leaf.dtype
    return torch.empty((TRACE_BATCH, *leaf.shape[1:]), dtype=kind, device="meta")


def _export(
    step: nn.Module, example: tuple[Any, ...], recorder: Recorder,
    shapeless: ShapelessFunctions, *, fixed: bool = False,
) -> ExportedProgram:  # fmt: skip
    """Runs ``torch.export`` and turns what goes wrong into an error that names the place.

    Where the number of samples is ``fixed``, it is one number throughout the trace.
    """
    free = None if fixed else {0: Dim.AUTO}
    dynamic = tree_map(lambda leaf: free if isinstance(leaf, Tensor) else None, example)
    # torch prints what it had traced so far; the error below says what matters.
    logging.disable(logging.CRITICAL)
    try:
        # What the model makes without naming a device is made where its inputs are.
        device = torch.device("meta")
        made = (Constants("meta"), UnreducedLosses(), KnownValues())
        own = (device, OwnBackwards(), shapeless, *made)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack:
            for context in own:
                stack.enter_context(context)
            return torch.export.export(step, example, dynamic_shapes=dynamic, strict=False)
    except TraceError:
        raise
    except Exception as error:  # export raises many types, all of them about the user's model
        raise explain(error, recorder.stack) from error
    finally:
        logging.disable(logging.NOTSET)


class _Reader:
    """Reads an exported graph into ``Raw``, following nested graphs."""

    def __init__(self, raw: Raw, exported: ExportedProgram, frozen: set[str]) -> None:
        self.raw, self.exported, self.frozen = raw, exported, frozen
        self.names: dict[Any, Any] = {}
        self.statements: list[Statement | None] = []

    def read(self) -> None:
        sources = _placeholder_sources(self.exported)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, *sources[node.name])
        self._walk(self.exported.graph, self.exported.graph_module, no_grad=False)
        self.raw.ops = label(self.raw.ops, self.statements)
        outputs = next(n for n in self.exported.graph.nodes if n.op == "output").args[0]
        loss = self._arg(outputs[-1])
        if not isinstance(loss, Ref) or self.raw.values[loss.name].shape != ():
            raise TraceError(
                f"the loss has shape {[s.coefficient for s in self.raw.values[loss.name].shape]}",
                expected="a scalar", where="loss_fn", hint="reduce it with .mean()",
            )  # fmt: skip
        self.raw.loss = loss.name

    def _placeholder(self, node: Any, kind: str, source: str) -> None:
        if not isinstance(node.meta.get("val"), Tensor):
            return
        self._new_value(node, node.name, node.meta["val"], kind, source)
        if kind == "input":
            self.raw.inputs[source] = node.name

    def _walk(self, graph: Any, module: nn.Module, no_grad: bool) -> None:
        for node in graph.nodes:
            if node.op == "get_attr":
                self.names[node] = getattr(module, node.target)
            elif node.op == "call_function":
                self._call(node, module, no_grad)

    def _call(self, node: Any, module: nn.Module, no_grad: bool) -> None:
        value = node.meta.get("val")
        inner = [a for a in node.args if isinstance(self._known(a), torch.fx.GraphModule)]
        if inner:
            self._inline(node, inner[0], no_grad)
        elif node.target is operator.getitem and node.args[0] in self.names:
            self.names[node] = self.names[node.args[0]][node.args[1]]
        elif isinstance(value, _NUMBERS):
            if _is_read(node):  # what a function asks before it turns out to be run whole is not
                self.names[node] = _size(value, _where(node))
        elif isinstance(value, (Tensor, tuple, list)):
            self._operation(node, value, no_grad)

    def _known(self, argument: Any) -> Any:
        return self.names.get(argument) if isinstance(argument, torch.fx.Node) else None

    def _inline(self, node: Any, inner: Any, no_grad: bool) -> None:
        """A region under ``torch.no_grad`` or ``autocast(enabled=False)`` is a graph of its own."""
        name, position = str(node.target), list(node.args).index(inner)
        region = self.names[inner]
        if "set_grad" in name:
            no_grad = not node.args[0]
        elif "autocast" not in name or node.args[2]:
            raise TraceError(
                f"the model uses the region {name}", expected="plain operations",
                where=_where(node), hint="call it outside of forward",
            )  # fmt: skip
        holes = [n for n in region.graph.nodes if n.op == "placeholder"]
        for hole, actual in zip(holes, node.args[position + 1 :], strict=True):
            self.names[hole] = self._arg(actual)
        self._walk(region.graph, region, no_grad)
        result = next(n for n in region.graph.nodes if n.op == "output").args[0]
        self.names[node] = self._arg(result)

    def _operation(self, node: Any, value: Any, no_grad: bool) -> None:
        many = isinstance(value, (tuple, list))
        outputs = [
            self._new_value(node, f"{node.name}_{i}" if many else node.name, v, "activation", "")
            for i, v in enumerate(value if many else [value])
        ]
        self.names[node] = tuple(Ref(o) for o in outputs) if many else Ref(outputs[0])
        if str(node.target).count(".") != 2:  # namespace, name, overload
            raise self._unknown(node)
        target, args = _here(str(node.target), tuple(self._arg(a) for a in node.args))
        kwargs = {k: self._arg(v) for k, v in node.kwargs.items() if k not in _DROPPED}
        op = Op(target, args, kwargs, tuple(outputs), "", _where(node), no_grad)
        self.raw.ops.append(read_call(as_torch_does(op)))
        self.statements.append(statement_of(node.meta.get("stack_trace") or ""))

    def _unknown(self, node: Any) -> UntraceableError:
        """A transformation of functions, such as ``torch.vmap``, leaves calls in the graph."""
        where = _where(node)
        error = UntraceableError(
            f"cannot trace the model: {getattr(node.target, '__name__', node.target)} is called",
            expected="operations of torch", where=where,
            hint="write torch.vmap and the like as operations on whole batches, or put them in a"
            " module of its own, which takes and returns tensors",
        )  # fmt: skip
        error.path = where.partition(" ")[0]
        return error

    def _new_value(self, node: Any, name: str, tensor: Tensor, kind: Any, source: str) -> str:
        unique = name
        while unique in self.raw.values:
            unique += "_"
        shape = tuple(_size(s, _where(node)) for s in tensor.shape)
        dtype = str(tensor.dtype).removeprefix("torch.")
        grad = kind == "parameter" and source not in self.frozen
        self.raw.values[unique] = Value(unique, shape, dtype, kind, source, grad)
        if kind != "activation":
            self.names[node] = Ref(unique)
        return unique

    def _arg(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            if argument not in self.names:
                raise TraceError(
                    f"the model computes with {argument.target} of sizes, as a number",
                    expected="sizes, or multiples of the batch size", where=_where(argument),
                    hint="compute it with tensors",
                )  # fmt: skip
            return self.names[argument]
        if isinstance(argument, (tuple, list)):
            return tuple(self._arg(a) for a in argument)
        if isinstance(argument, (torch.SymInt, torch.SymFloat)):
            return _size(argument, "")
        if isinstance(argument, (torch.dtype, torch.layout, torch.memory_format)):
            return str(argument)
        return None if isinstance(argument, torch.device) else argument


def _here(target: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """``x.to(device, dtype)`` without the device: a rank computes on its own."""
    if target == "aten.to.device":
        return "aten.to.dtype", (args[0], *args[2:])
    return target, args


_DROPPED = ("device", "pin_memory", "layout", "memory_format")


def _placeholder_sources(exported: ExportedProgram) -> dict[str, tuple[str, str]]:
    """(kind, source) of each placeholder: dotted parameter name, or the key of a user's input."""
    kinds = {"PARAMETER": "parameter", "BUFFER": "buffer"}
    sources = {}
    user = []
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind.name in kinds:
            sources[name] = (kinds[spec.kind.name], str(spec.target).removeprefix("model."))
        elif spec.kind.name == "USER_INPUT":
            user.append(name)
        else:
            raise _held(str(spec.target).removeprefix("model."))
    for name, key in zip(user, _input_keys(exported), strict=True):
        sources[name] = ("input", key)
    return sources


def _held(path: str) -> TraceError:
    """A tensor of the trace that is neither an input nor registered in a module."""
    module, _, name = path.rpartition(".")
    if name.startswith("lifted_tensor"):
        error = UntraceableError(
            "the forward makes a tensor of data that is neither a tensor nor numbers",
            expected="torch.tensor of numbers", where=module or "the model",
            hint="make tensors of NumPy arrays once, and register them with register_buffer",
        )  # fmt: skip
        error.path = module
        return error
    return TraceError(
        f"the model holds the tensor {path!r} as a plain attribute",
        expected="parameters and buffers only", where=path,
        hint="register it with register_buffer(name, tensor, persistent=False)",
    )  # fmt: skip


def _input_keys(exported: ExportedProgram) -> list[str]:
    """``args.0``, ``kwargs.labels``, ``target`` ... for the flattened inputs, in order."""
    spec = exported.call_spec.in_spec
    leaves = tree_unflatten(list(range(spec.num_leaves)), spec)
    (args, kwargs, target), _ = leaves
    keys: dict[int, str] = {}
    for prefix, tree in (("args", args), ("kwargs", kwargs), ("target", target)):
        for path, leaf in tree_flatten_with_path(tree)[0]:
            keys[leaf] = ".".join([prefix, *(str(_key(step)) for step in path)])
    return [keys[i] for i in range(spec.num_leaves)]


def _key(step: Any) -> Any:
    return getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))


def _is_read(number: Any) -> bool:
    """Whether an operation on tensors reads a number, or one that is computed from it."""
    for user in number.users:
        value = user.meta.get("val")
        plain = isinstance(value, (*_NUMBERS, torch.SymBool))
        if _is_read(user) if plain else value is not None:
            return True
    return False


def _size(value: Any, where: str) -> Size:
    """A dimension, or a number computed from some, as ``coefficient * batch ** power``."""
    if isinstance(value, int):
        return Size(value)
    # ``float(x.shape[0])`` is the size in a function of torch's.
    expression = value.node.expr.replace(
        lambda inner: type(inner).__name__ == "ToFloat", lambda inner: inner.args[0]
    ).replace(
        lambda inner: type(inner).__name__ == "IntTrueDiv",
        lambda inner: inner.args[0] / inner.args[1],
    )
    coefficient, rest = expression.as_coeff_Mul()
    if rest == 1:
        return Size(int(coefficient))
    if rest.is_symbol and coefficient.is_integer and value.node.has_hint():
        return Size(int(coefficient), 1)
    kind = TraceError if value.node.has_hint() else UntraceableError
    error = kind(
        f"a size is {expression}", expected="a multiple of the batch size", where=where,
        hint="keep samples of a batch apart: dim 0 of every input is the batch"
        if value.node.has_hint()
        else "a shape must not depend on the values of a tensor: write torch.where for x[mask]",
    )  # fmt: skip
    if isinstance(error, UntraceableError):
        error.path = where.partition(" ")[0]
    raise error


def _where(node: Any) -> str:
    """Module path and source line of an operation, for messages."""
    stack = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
    path = stack[-1].removeprefix("model").lstrip(".") if stack else ""
    lines = [ln.strip() for ln in (node.meta.get("stack_trace") or "").splitlines()]
    files = [ln for ln in lines if ln.startswith("File ")]
    if not files:
        return path
    parts = files[-1].split('"')
    return f"{path} ({os.path.basename(parts[1])}:{parts[2].split('line ')[1].split(',')[0]})"
