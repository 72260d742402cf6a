"""Operations whose results, or buffers, depend on which samples share a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autopar.graph import Op, Ref, Value
from autopar.strategies.spec import argument, name_of
from autopar.trace.inplace import is_inplace


def _of_the_batch(op: Op) -> bool:
    """Batch normalisation in training; with given statistics it treats each sample alone."""
    return bool(argument(op, 5, "training", False))


def updates_statistics(op: Op) -> bool:
    """Whether running the op changes buffers: running it twice is not the same as once."""
    keeps = name_of(op) in MIXING and isinstance(argument(op, 3, "running_mean"), Ref)
    return keeps and bool(argument(op, 5, "training", False))


def changed_buffers(op: Op, values: Mapping[str, Value]) -> list[str]:
    """Names of the buffers that the op, or the module whose op it is, changes.

    These are running statistics and the count of batches beside them, which is not in the graph,
    and what is changed in place.
    """
    changed: list[object] = []
    if updates_statistics(op):
        changed = [argument(op, 3, "running_mean"), argument(op, 4, "running_var")]
    elif is_inplace(op):
        changed = [op.args[0]]
    read = [values[tensor.name] for tensor in changed if isinstance(tensor, Ref)]
    names = [value.source for value in read if value.kind == "buffer"]
    means = [name for name in names if name.endswith("running_mean")]
    return names + [name.replace("running_mean", "num_batches_tracked") for name in means]


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
