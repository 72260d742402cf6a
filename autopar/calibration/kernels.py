"""The computations that are timed, as a training step issues them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.calibration.points import Point
from autopar.calibration.sampling import seconds_per_call

Call = Callable[[], object]

_ROW = 512  # length of the rows that normalisation and softmax run over
_LAUNCH_TENSORS = 16


class Kernels:
    """Times points on one device; on a CPU with one thread, as torchrun gives every rank."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}
        self._synchronize: Call = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(self, point: Point) -> float:
        """Seconds of one operation."""
        call, operations = _BUILDERS[point.curve](self, point)
        return seconds_per_call(call, self._synchronize) / operations

    def tensor(self, slot: int, shape: tuple[int, ...], dtype: torch.dtype, grad: bool) -> Tensor:
        """A tensor of random values; tensors of different slots do not share memory."""
        size = math.prod(shape)
        buffer = self._buffers.get((slot, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.rand(size, device=self._device).to(dtype)
            self._buffers[slot, dtype] = buffer
        return buffer[:size].view(shape).detach().requires_grad_(grad)


def _gemm(kernels: Kernels, point: Point) -> tuple[Call, int]:
    m, n, k = point.shape
    name, layout = point.variant.split("/")
    dtype: torch.dtype = getattr(torch, name)
    if layout == "linear":
        x = kernels.tensor(0, (m, k), dtype, grad=False)
        return partial(F.linear, x, kernels.tensor(1, (n, k), dtype, grad=True)), 1
    left, right = kernels.tensor(0, (m, k), dtype, False), kernels.tensor(1, (k, n), dtype, False)
    if layout == "weight_gradient":
        left = kernels.tensor(0, (k, m), dtype, False).t()
    return partial(torch.mm, left, right), 1


def _attention(kernels: Kernels, point: Point) -> tuple[Call, int]:
    heads, length, head_dim = point.shape
    name, part = point.variant.split("/")
    kind, direction = part.split("_")
    dtype: torch.dtype = getattr(torch, name)
    shape = (1, heads, length, head_dim)
    query, key, value = (kernels.tensor(slot, shape, dtype, grad=True) for slot in range(3))
    call = partial(F.scaled_dot_product_attention, query, key, value, is_causal=kind == "causal")
    if direction == "forward":
        return call, 1
    return _backward(call, [query, key, value], small=heads == 1)


def _backward(call: Callable[[], Tensor], inputs: list[Tensor], small: bool) -> tuple[Call, int]:
    """The backward of ``call`` alone; small ones are issued together, as in a real backward.

    One call of the autograd engine costs more than a small kernel, and a step makes it once.
    """
    count = 16 if small else 1
    outputs = [call() for _ in range(count)]
    gradients = [torch.ones_like(output) for output in outputs]
    return partial(torch.autograd.grad, outputs, inputs, gradients, retain_graph=True), count


def _traffic(kernels: Kernels, point: Point) -> tuple[Call, int]:
    """Each tensor read or written counts: 3 for a sum and for a backward, else 2."""
    (moved,) = point.shape
    backward = point.variant.endswith("_backward")
    kind = point.variant.removesuffix("_backward")
    tensors = 3 if backward or kind == "elementwise" else 2
    elements = max(1, moved // (4 * tensors))
    shape = (elements // _ROW, _ROW) if elements >= _ROW else (1, elements)
    x = kernels.tensor(0, shape, torch.float32, grad=True)
    call = partial(_FORWARD[kind], kernels, x)
    return _backward(call, [x], small=moved < 2**20) if backward else (call, 1)


def _add(kernels: Kernels, x: Tensor) -> Tensor:
    return x + kernels.tensor(1, tuple(x.shape), torch.float32, grad=False)


def _layer_norm(kernels: Kernels, x: Tensor) -> Tensor:
    weight = kernels.tensor(2, (x.shape[1],), torch.float32, grad=True)
    return F.layer_norm(x, (x.shape[1],), weight, weight)


_FORWARD: dict[str, Callable[[Kernels, Tensor], Tensor]] = {
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


_BUILDERS: dict[str, Callable[[Kernels, Point], tuple[Call, int]]] = {
    "gemm": _gemm,
    "attention": _attention,
    "elementwise": _traffic,
    "optimizer": _update,
}
