"""What is measured: for each curve the grid that it is built from, and points held out of it.

Held-out points lie between the grid lines; they judge the curve and never enter it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product

KIB, MIB = 1024, 1024**2
COLLECTIVES = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv",
)  # fmt: skip
TRAFFIC = (
    "elementwise", "activation", "activation_backward", "normalization",
    "normalization_backward", "softmax", "softmax_backward",
)  # fmt: skip
ATTENTION = ("causal_forward", "causal_backward", "full_forward", "full_backward")
OPTIMIZERS = ("sgd", "adamw")
# What the toys behind the overheads consist of: layers, or micro-batches; and parameters.
OVERHEAD_UNITS, OVERHEAD_PARAMETERS = 8, 16
_SIZED_TOYS = ("both", "unreduced", "zero0", "zero2", "zero3")
_SMALL_TOYS = (
    "forward", "checkpoint", "pipeline", "pipeline_split", "read_plain", "read_split",
    "update_plain", "update_split", "clip", "alone", "together",
)  # fmt: skip

# The smallest call of each kind: what it takes is the cost of launching one.
GEMM_LAUNCH = (1, 8, 8)
ATTENTION_LAUNCH = (1, 1, 16)
TRAFFIC_LAUNCH = (64,)
UPDATE_LAUNCH = (1,)


@dataclass(frozen=True)
class Point:
    """One thing to time.

    Attributes:
        curve: "gemm", "attention", "elementwise", "optimizer", "host_link", "collectives" or
            "overheads".
        variant: dtype and layout ("float32/linear"), dtype and pass, kind of operation,
            optimizer, kind of collective, or what a toy does.
        shape: gemm (m, n, k); attention (batch * heads, length, head_dim); elementwise
            (bytes moved,); optimizer (elements,); host_link (bytes,); collectives (bytes, group
            size, groups); overheads (bytes of parameters, ranks).
        held_out: whether it judges the curve instead of shaping it.
    """

    curve: str
    variant: str
    shape: tuple[int, ...]
    held_out: bool = False


@dataclass(frozen=True)
class Sweep:
    """The sizes that suit one kind of device; largest products are left out of the grid."""

    gemm: dict[str, tuple[int, ...]]
    gradients: dict[str, tuple[int, ...]]
    gemm_work_limit: float
    gemm_held_out: tuple[tuple[int, int, int], ...]
    heads_by_length: dict[int, int]
    held_out_lengths: dict[int, int]
    head_dims: tuple[int, ...]
    traffic_bytes: tuple[int, ...]
    elements: tuple[int, ...]
    payload_bytes: tuple[int, ...]
    unit_bytes: tuple[int, ...]

    def compute_points(self) -> list[Point]:
        """Everything that runs on one device."""
        return [
            *self._gemm(), *self._attention(),
            *_by_size("elementwise", TRAFFIC, TRAFFIC_LAUNCH, self.traffic_bytes),
            *_by_size("optimizer", OPTIMIZERS, UPDATE_LAUNCH, self.elements),
            *_by_size("host_link", ("copy",), TRAFFIC_LAUNCH, self.traffic_bytes),
        ]  # fmt: skip

    def collective_points(self, size: int, ranks: int) -> list[Point]:
        """Collectives of one group of ``size``, and of as many groups as ``ranks`` hold."""
        grid = self.payload_bytes
        between = [_middle(a, b) for a, b in zip(grid[1:-1:2], grid[2::2], strict=False)]
        points = [
            Point("collectives", kind, (amount, size, 1), amount in between)
            for kind in COLLECTIVES
            if kind != "send_recv" or size == 2
            for amount in sorted({*grid, *between})
        ]
        together = ranks // size
        shared = [(b, size, together) for b in between] if together > 1 else []
        return points + [Point("collectives", "all_reduce", shape, True) for shape in shared]

    def overhead_points(self) -> list[Point]:
        """Steps of toys on two ranks."""
        small = self.unit_bytes[0]
        sized = product(_SIZED_TOYS, self.unit_bytes)
        return [Point("overheads", toy, (size, 2)) for toy, size in sized] + [
            Point("overheads", toy, (small, 2)) for toy in _SMALL_TOYS
        ]

    def _gemm(self) -> Iterable[Point]:
        for dtype, axis in self.gemm.items():
            for layout in LAYOUTS:
                sizes = axis if layout == "linear" else self.gradients[dtype]
                yield Point("gemm", f"{dtype}/{layout}", GEMM_LAUNCH)
                for shape in product(sizes, repeat=3):
                    if 2 * math.prod(shape) <= self.gemm_work_limit:
                        yield Point("gemm", f"{dtype}/{layout}", shape)
            for shape, layout in product(self.gemm_held_out, LAYOUTS):
                yield Point("gemm", f"{dtype}/{layout}", shape, held_out=True)

    def _attention(self) -> Iterable[Point]:
        for dtype, part in product(self.gemm, ATTENTION):
            variant = f"{dtype}/{part}"
            yield Point("attention", variant, ATTENTION_LAUNCH)
            for (length, heads), dim in product(self.heads_by_length.items(), self.head_dims):
                yield Point("attention", variant, (heads, length, dim))
            for length, heads in self.held_out_lengths.items():
                yield Point("attention", variant, (heads, length, 32), held_out=True)


LAYOUTS = ("linear", "input_gradient", "weight_gradient")


def _by_size(
    curve: str, variants: Iterable[str], launch: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterable[Point]:
    between = [_middle(a, b) for a, b in pairwise(sizes)]
    for variant in variants:
        yield Point(curve, variant, launch)
        yield from (Point(curve, variant, (size,)) for size in sizes)
        yield from (Point(curve, variant, (size,), held_out=True) for size in between)


def _middle(low: int, high: int) -> int:
    """The geometric mean, as a multiple of 64."""
    return max(64, round(math.sqrt(low * high) / 64) * 64)


# On a CPU, from the layers of a model of a few thousand parameters upwards.
CPU = Sweep(
    gemm={"float32": (16, 64, 256, 1024, 4096), "bfloat16": (16, 64, 512, 4096)},
    gradients={"float32": (16, 64, 256, 1024), "bfloat16": (16, 64, 512)},
    gemm_work_limit=2.3e9,
    gemm_held_out=(
        (32, 96, 32), (128, 128, 128), (128, 384, 128), (512, 128, 512), (2048, 192, 64),
        (512, 1536, 512), (2048, 512, 128), (768, 768, 768),
    ),
    heads_by_length={16: 32, 64: 16, 256: 8, 1024: 2},
    held_out_lengths={32: 32, 128: 8, 512: 4},
    head_dims=(16, 64, 128),
    traffic_bytes=(4 * KIB, 64 * KIB, MIB, 8 * MIB, 32 * MIB, 96 * MIB),
    elements=(KIB, 16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB),
    payload_bytes=(
        256, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB,
    ),
    unit_bytes=(2 * KIB, 128 * KIB, MIB, 4 * MIB),
)  # fmt: skip

# On a GPU, from one micro-batch of a small model to the layers of the largest.
CUDA = Sweep(
    gemm={
        "float32": (64, 256, 1024, 4096, 16384),
        "bfloat16": (64, 256, 1024, 4096, 16384),
    },
    gradients={"float32": (64, 512, 4096), "bfloat16": (64, 512, 4096)},
    gemm_work_limit=2.3e12,
    gemm_held_out=(
        (128, 384, 128), (512, 1536, 512), (768, 768, 768), (2048, 3072, 1024),
        (2048, 2048, 8192), (8192, 12288, 2048), (4096, 11008, 4096), (8192, 5120, 5120),
    ),
    heads_by_length={64: 512, 256: 256, 1024: 128, 4096: 32},
    held_out_lengths={128: 256, 512: 128, 2048: 64},
    head_dims=(32, 64, 128),
    traffic_bytes=(64 * KIB, MIB, 16 * MIB, 256 * MIB, 1024 * MIB),
    elements=(KIB, 64 * KIB, 4 * MIB, 64 * MIB),
    payload_bytes=(
        256, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB,
    ),
    unit_bytes=(2 * KIB, 4 * MIB, 64 * MIB, 256 * MIB),
)  # fmt: skip
SWEEPS = {"cpu": CPU, "cuda": CUDA}
