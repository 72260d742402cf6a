"""Operations whose results, or buffers, depend on which samples share a micro-batch."""

from __future__ import annotations

from collections.abc import Callable

from autopar.graph import Op, Ref
from autopar.strategies.spec import argument, name_of


def _of_the_batch(op: Op) -> bool:
    """Batch normalisation in training; with given statistics it treats each sample alone."""
    return bool(argument(op, 5, "training", False))


def updates_statistics(op: Op) -> bool:
    """Whether running the op changes buffers: running it twice is not the same as once."""
    keeps = name_of(op) in MIXING and isinstance(argument(op, 3, "running_mean"), Ref)
    return keeps and bool(argument(op, 5, "training", False))


# Instance normalisation treats each sample alone, but its running statistics are means over them.
MIXING: dict[str, Callable[[Op], bool]] = {
    "batch_norm": _of_the_batch,
    "instance_norm": updates_statistics,
}
# Programs take these statistics over the samples of all dp ranks.
SYNCHRONISED = frozenset({"batch_norm"})


def mixes_samples(op: Op) -> bool:
    """Whether a rank that has only some samples of a micro-batch would compute something else."""
    return name_of(op) in MIXING and MIXING[name_of(op)](op)


def is_synchronised(op: Op) -> bool:
    """Whether the op mixes samples in a way that programs extend to those of all dp ranks."""
    return name_of(op) in SYNCHRONISED and mixes_samples(op)
