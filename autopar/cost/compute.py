"""Seconds of computations on one device: a roofline with measured efficiencies.

Every price is ``max(flops / (peak * efficiency(shape)), bytes / bandwidth(bytes)) + launch``
(the roofline of Williams, Waterman and Patterson, 2009, with both roofs dependent on size).
On a CPU the curves hold one thread on one core of an idle host: multiply by
``Cluster.computing_slowdown`` when other ranks compute. Every function raises ``CostModelError``
for a dtype or kind that the cost model has no curve for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autopar.cluster import Cluster
from autopar.cost.curves import Table
from autopar.errors import CostModelError
from autopar.graph import DTYPE_BYTES

# Matrix products of the score matrix's size: scores and their use with the values in forward;
# in backward the scores again and the gradients of values, weights, queries and keys.
_ATTENTION_PRODUCTS = {False: 2, True: 5}
_CACHE = 1 << 16


@dataclass(frozen=True)
class Rounds:
    """How a device deals the tiles of a result out to its multiprocessors.

    They work in rounds, of which the last is partly empty: ``wasted`` is the share of its empty
    places that is lost (1: all, 0: the idle ones help). ``tiles`` are the sizes to choose from,
    each with the rate that it reaches: small ones reuse less of what they load (NVIDIA, Matrix
    Multiplication Background, on tile and wave quantization).
    """

    multiprocessors: int
    wasted: float
    tiles: tuple[tuple[int, int, float], ...]

    def filled(self, m: int, n: int, batch: int = 1) -> float:
        """Share of the rate that the best tiles for ``batch`` results of (m, n) reach."""
        return max(self._reached(m, n, batch, *tile) for tile in self.tiles)

    def _reached(self, m: int, n: int, batch: int, rows: int, columns: int, share: float) -> float:
        down, across = _ceil(m, rows), _ceil(n, columns)
        edges = m * n / (down * rows * across * columns)  # tiles stick out of the result
        return share * edges * self._busy(batch * down * across)

    def _busy(self, tiles: int) -> float:
        empty = _ceil(tiles, self.multiprocessors) * self.multiprocessors - tiles
        return tiles / (tiles + self.wasted * empty)


def _ceil(size: int, part: int) -> int:
    return -(-size // part)


@dataclass(frozen=True)
class _Rate:
    """Units of work per second by shape, and the seconds that one call takes besides."""

    table: Table
    launch_seconds: float
    alignment: tuple[tuple[int, float], ...] = ()
    rounds: Rounds | None = None

    def filled(self, m: int, n: int, batch: int) -> float:
        """Share of the rate that is left by the last round; the table has it if none are given."""
        return self.rounds.filled(m, n, batch) if self.rounds else 1.0

    def aligned(self, *sizes: int) -> float:
        """Share of the rate that sizes divisible by a small power of two only keep."""
        worst = min(size & -size for size in sizes)
        return next((share for least, share in self.alignment if worst <= least), 1.0)


# The parts of complex numbers.
COMPLEX = {"complex64": "float32", "complex128": "float64"}


@lru_cache(_CACHE)
def gemm_seconds(
    cluster: Cluster, m: int, n: int, k: int, dtype: str, batch: int = 1, *, gradient: bool = False
) -> float:
    """Seconds of ``batch`` products of (m, k) and (k, n) matrices issued as one call.

    The gradient of either factor is one more product, with the sizes exchanged. It reads its
    factors in other orders, which costs or spares some of the time. A complex product is four real
    ones.
    """
    if dtype in COMPLEX:
        return gemm_seconds(cluster, m, n, k, COMPLEX[dtype], 4 * batch, gradient=gradient)
    work = 2.0 * batch * m * n * k
    if not work:
        return 0.0
    rate = _gemm(cluster, dtype, gradient)
    moved = batch * (m * k + k * n + m * n) * DTYPE_BYTES[dtype]
    share = rate.aligned(m, n, k) * rate.filled(m, n, batch)
    compute = work / (rate.table.at(m, n, k) * share)
    return max(compute, _memory_seconds(cluster, moved)) + rate.launch_seconds


@lru_cache(_CACHE)
def attention_seconds(
    cluster: Cluster, *, batch: int, heads: int, query_length: int, key_length: int,
    head_dim: int, dtype: str, causal: bool, backward: bool,
) -> float:  # fmt: skip
    """Seconds of ``F.scaled_dot_product_attention`` on (batch, heads, length, head_dim).

    Forward is 2 products of ``2 * batch * heads * query_length * key_length * head_dim`` FLOP,
    backward 5 of them, as the scores are not kept (Dao et al., FlashAttention, 2022); a causal
    mask halves both. Without keys or queries it costs 0.
    """
    if not batch * heads * query_length * key_length:
        return 0.0
    rate = _attention(cluster, dtype, causal, backward)
    product = 2.0 * batch * heads * query_length * key_length * head_dim / (2 if causal else 1)
    work = _ATTENTION_PRODUCTS[backward] * product
    rows = batch * heads * head_dim * (query_length + key_length)
    moved = (4 if backward else 2) * rows * DTYPE_BYTES[dtype]
    length = (query_length * key_length) ** 0.5
    compute = work / rate.table.at(length, head_dim)
    return max(compute, _memory_seconds(cluster, moved)) + rate.launch_seconds


@lru_cache(_CACHE)
def elementwise_seconds(cluster: Cluster, bytes_moved: int, kind: str = "elementwise") -> float:
    """Seconds of an operation bound by memory that reads and writes ``bytes_moved`` in all.

    ``kind`` is "elementwise" (sums, products, copies), or, where the arithmetic shows,
    "activation" (GELU and the like), "normalization", "softmax" or one of these three
    with ``_backward`` appended.
    """
    if bytes_moved <= 0:
        return 0.0
    rate = _traffic(cluster, kind)
    return bytes_moved / rate.table.at(bytes_moved) + rate.launch_seconds


@lru_cache(_CACHE)
def optimizer_seconds(
    cluster: Cluster, elements: int, optimizer: str | int, tensors: int = 1
) -> float:
    """Seconds in which one rank updates ``elements`` float32 parameters held in ``tensors``.

    ``optimizer`` is "sgd", "adamw" or the bytes of state per parameter; the last is priced by
    its traffic: parameter and state are read and written, the gradient is read.
    """
    if elements <= 0:
        return 0.0
    if isinstance(optimizer, int):
        rate = _traffic(cluster, "elementwise")
        moved = elements * (3 * DTYPE_BYTES["float32"] + 2 * optimizer)
        return moved / rate.table.at(moved) + tensors * rate.launch_seconds
    rate = _update(cluster, optimizer)
    return elements / rate.table.at(elements) + tensors * rate.launch_seconds


def _memory_seconds(cluster: Cluster, bytes_moved: int) -> float:
    return bytes_moved / _traffic(cluster, "elementwise").table.at(bytes_moved)


# --- tables, prepared once per cluster ---


@lru_cache
def _gemm(cluster: Cluster, dtype: str, gradient: bool) -> _Rate:
    """Of gradients a table of their own, or a share of the rate of all others."""
    curve = cluster.of_dtype("gemm", dtype)
    own = curve.get("gradient", curve) if gradient else curve
    share = curve.get("gradient_share", 1.0) if gradient and own is curve else 1.0
    table = Table.of([own[axis] for axis in "mnk"], _scaled(own["efficiency"], own["peak_flops"]))
    steps = curve.get("alignment", {"elements": [], "efficiency": []})
    pairs = zip(steps["elements"], steps["efficiency"], strict=True)
    rounds = _rounds(curve["rounds"]) if "rounds" in curve else None
    return _Rate(table.scaled(share), own["launch_seconds"], tuple(pairs), rounds)


def _rounds(curve: dict[str, Any]) -> Rounds:
    tiles = tuple((tile["rows"], tile["columns"], tile["share"]) for tile in curve["tiles"])
    return Rounds(curve["multiprocessors"], curve["wasted"], tiles)


@lru_cache
def _attention(cluster: Cluster, dtype: str, causal: bool, backward: bool) -> _Rate:
    name = f"{'causal' if causal else 'full'}_{'backward' if backward else 'forward'}"
    curve = cluster.of_dtype("attention", dtype)[name]
    rates = _scaled(curve["efficiency"], cluster.peak_flops(dtype))
    return _Rate(Table.of([curve["length"], curve["head_dim"]], rates), curve["launch_seconds"])


@lru_cache
def _traffic(cluster: Cluster, kind: str) -> _Rate:
    curve = _known(cluster, "elementwise", kind)
    return _Rate(Table.of([curve["bytes"]], curve["bytes_per_second"]), curve["launch_seconds"])


@lru_cache
def _update(cluster: Cluster, optimizer: str) -> _Rate:
    curve = _known(cluster, "optimizer", optimizer)
    table = Table.of([curve["elements"]], curve["elements_per_second"])
    return _Rate(table, curve["launch_seconds"])


def _known(cluster: Cluster, curve: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] | None = cluster.curves[curve].get(key)
    if found is None:
        raise CostModelError(
            f"no {curve} curve {key!r}",
            expected=f"one of {', '.join(cluster.curves[curve])}",
            where=f"cost model {cluster.name}",
            hint="name one of these, or give the optimizer as its bytes of state per parameter",
        )
    return found


def _scaled(nest: Any, factor: float) -> Any:
    return [_scaled(item, factor) for item in nest] if isinstance(nest, list) else nest * factor
