"""The computations that are timed, as a training step issues them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.calibration.points import Point
from autopar.calibration.sampling import seconds_per_call

Call = Callable[[], object]

_ROW = 512  # length of the rows that normalisation and softmax run over
_LAUNCH_TENSORS = 16
# A training step comes back to a tensor when tens of megabytes have passed through the caches:
# calls take turns on copies of their operands, which together are about this large.
_RING_BYTES = 48 * 2**20
_MOST_COPIES = 16
# Calls of a small backward that are issued together, and up to which bytes it is small.
_SMALL_CALLS = 16
_SMALL_BYTES = 2**20


class Kernels:
    """Times points on one device; on a CPU with one thread, as torchrun gives every rank."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}
        self._synchronize: Call = torch.cuda.synchronize if device == "cuda" else lambda: None

    def in_turn(self, make: Callable[[Turn], Call], call_bytes: int) -> Call:
        """A call that runs those which ``make`` returns for each copy of the operands in turn."""
        count = max(1, min(_MOST_COPIES, _RING_BYTES // max(1, call_bytes)))
        return _InTurn([make(Turn(self, number, count)) for number in range(count)])

    def seconds(self, point: Point) -> float:
        """Seconds of one operation."""
        call, operations = _BUILDERS[point.curve](self, point)
        return seconds_per_call(call, self._synchronize) / operations

    def tensor(
        self, slot: int, shape: tuple[int, ...], dtype: torch.dtype, grad: bool,
        copy: int = 0, copies: int = 1,
    ) -> Tensor:  # fmt: skip
        """A tensor of random values; different slots and copies do not share memory."""
        size = math.prod(shape)
        buffer = self._buffers.get((slot, dtype))
        if buffer is None or buffer.numel() < size * copies:
            buffer = torch.rand(size * copies, device=self._device).to(dtype)
            self._buffers[slot, dtype] = buffer
        return buffer[copy * size :][:size].view(shape).detach().requires_grad_(grad)


@dataclass(frozen=True)
class Turn:
    """Operands of one of the calls that take turns."""

    kernels: Kernels
    copy: int
    copies: int

    def tensor(self, slot: int, shape: tuple[int, ...], dtype: torch.dtype, grad: bool) -> Tensor:
        """As that of ``Kernels``, for this copy."""
        return self.kernels.tensor(slot, shape, dtype, grad, self.copy, self.copies)


class _InTurn:
    """Calls in turn; results stay until all have been called, as activations do."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = cycle(calls)
        self._kept: deque[object] = deque(maxlen=len(calls))

    def __call__(self) -> None:
        self._kept.append(next(self._calls)())


def _gemm(kernels: Kernels, point: Point) -> tuple[Call, int]:
    m, n, k = point.shape
    name, layout = point.variant.split("/")
    dtype: torch.dtype = getattr(torch, name)
    moved = dtype.itemsize * (m * k + k * n + m * n)
    return kernels.in_turn(lambda turn: _product(turn, (m, n, k), dtype, layout), moved), 1


def _product(turn: Turn, shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> Call:
    m, n, k = shape
    if layout == "linear":
        x = turn.tensor(0, (m, k), dtype, grad=False)
        return partial(F.linear, x, turn.tensor(1, (n, k), dtype, grad=True))
    left, right = turn.tensor(0, (m, k), dtype, False), turn.tensor(1, (k, n), dtype, False)
    if layout == "weight_gradient":
        left = turn.tensor(0, (k, m), dtype, False).t()
    return partial(torch.mm, left, right)


def _attention(kernels: Kernels, point: Point) -> tuple[Call, int]:
    heads, length, head_dim = point.shape
    name, part = point.variant.split("/")
    kind, direction = part.split("_")
    dtype: torch.dtype = getattr(torch, name)
    shape = (1, heads, length, head_dim)

    def make(turn: Turn) -> Call:
        inputs = [turn.tensor(slot, shape, dtype, grad=True) for slot in range(3)]
        query, key, value = inputs
        call = partial(
            F.scaled_dot_product_attention, query, key, value, is_causal=kind == "causal"
        )
        return call if direction == "forward" else _backward(call, inputs, small=heads == 1)

    count = _SMALL_CALLS if direction == "backward" and heads == 1 else 1
    return kernels.in_turn(make, 8 * math.prod(shape) * dtype.itemsize), count


def _backward(call: Callable[[], Tensor], inputs: list[Tensor], small: bool) -> Call:
    """The backward of ``call`` alone; small ones are issued together, as in a real backward.

    One call of the autograd engine costs more than a small kernel, and a step makes it once.
    """
    outputs = [call() for _ in range(_SMALL_CALLS if small else 1)]
    gradients = [torch.ones_like(output) for output in outputs]
    return partial(torch.autograd.grad, outputs, inputs, gradients, retain_graph=True)


def _traffic(kernels: Kernels, point: Point) -> tuple[Call, int]:
    """Each tensor read or written counts: 3 for a sum and for a backward, else 2."""
    (moved,) = point.shape
    backward = point.variant.endswith("_backward")
    kind = point.variant.removesuffix("_backward")
    tensors = 3 if backward or kind == "elementwise" else 2
    elements = max(1, moved // (4 * tensors))
    shape = (elements // _ROW, _ROW) if elements >= _ROW else (1, elements)
    small = moved < _SMALL_BYTES

    def make(turn: Turn) -> Call:
        x = turn.tensor(0, shape, torch.float32, grad=True)
        call = partial(_FORWARD[kind], turn, x)
        return _backward(call, [x], small) if backward else call

    return kernels.in_turn(make, moved), _SMALL_CALLS if backward and small else 1


def _add(turn: Turn, x: Tensor) -> Tensor:
    return x + turn.tensor(1, tuple(x.shape), torch.float32, grad=False)


def _layer_norm(turn: Turn, x: Tensor) -> Tensor:
    weight = turn.tensor(2, (x.shape[1],), torch.float32, grad=True)
    return F.layer_norm(x, (x.shape[1],), weight, weight)


_FORWARD: dict[str, Callable[[Turn, Tensor], Tensor]] = {
    "elementwise": _add,
    "activation": lambda _, x: F.gelu(x),
    "normalization": _layer_norm,
    "softmax": lambda _, x: F.log_softmax(x, -1),
}


def _update(kernels: Kernels, point: Point) -> tuple[Call, int]:
    """One step; a single element stands for the launches that every tensor costs."""
    (elements,) = point.shape
    count = _LAUNCH_TENSORS if elements == 1 else 1
    parameters = [torch.zeros(elements, device=kernels._device) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[point.variant]
    return optimizer(parameters, lr=1e-3).step, count


def _copy(kernels: Kernels, point: Point) -> tuple[Call, int]:
    """To host memory as the programs take it: pinned for a GPU, from a cache of such memory."""
    (size,) = point.shape
    cuda = kernels._device == "cuda"

    def make(turn: Turn) -> Call:
        x = turn.tensor(0, (size // 4,), torch.float32, grad=False)
        return lambda: torch.empty_like(x, device="cpu", pin_memory=cuda).copy_(x, cuda)

    return kernels.in_turn(make, 2 * size), 1


_BUILDERS: dict[str, Callable[[Kernels, Point], tuple[Call, int]]] = {
    "gemm": _gemm,
    "attention": _attention,
    "elementwise": _traffic,
    "optimizer": _update,
    "host_link": _copy,
}
