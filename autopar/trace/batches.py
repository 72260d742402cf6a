"""Traces of a model that fixes the number of samples, one with it and one with another.

``len(x)`` and some functions of torch's make a plain number of the batch dim. What differs between
the traces grows with it: sizes, and numbers among the arguments of operations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from autopar.errors import TraceError
from autopar.graph import Op, Size

HINT = "write x.shape[0] for len(x), and no loop over samples"


def merge_batches(small: Any, large: Any, batch: int) -> None:
    """Gives the trace with ``batch`` samples the sizes that the one with one more tells.

    Args:
        small: ``capture.Raw`` of the one, which is changed.
        large: that of the other.
        batch: samples of ``small``.

    Raises:
        TraceError: their operations differ, or a number grows in another way than a power.
    """
    if [op.target for op in small.ops] != [op.target for op in large.ops]:
        raise TraceError(
            f"the model runs other operations for {batch} samples than for {batch + 1}",
            expected="code that takes any number of samples", where="the model", hint=HINT,
        )  # fmt: skip
    merged = _Merge(batch)
    small.ops = [merged.op(a, b) for a, b in zip(small.ops, large.ops, strict=True)]
    for name, value in small.values.items():
        pairs = zip(value.shape, large.values[name].shape, strict=True)
        shape = tuple(merged.size(a.coefficient, b.coefficient, name) for a, b in pairs)
        small.values[name] = dataclasses.replace(value, shape=shape)
    calls = small.recorder.calls
    for run, (name, *trees) in calls.items():
        inputs, outputs = merged.tree(tuple(trees), tuple(large.recorder.calls[run][1:]), run)
        calls[run] = (name, inputs, outputs)


@dataclasses.dataclass(frozen=True)
class _Merge:
    """Reads two nests side by side; the second is of one sample more than ``batch``."""

    batch: int

    def op(self, small: Op, large: Op) -> Op:
        """The operation for any number of samples."""
        args, kwargs = self.tree(
            (small.args, small.kwargs), (large.args, large.kwargs), small.where
        )
        return dataclasses.replace(small, args=args, kwargs=kwargs)

    def tree(self, small: Any, large: Any, where: str) -> Any:
        """A nest in which numbers that differ are sizes."""
        if isinstance(small, (tuple, list)) and type(small) is type(large):
            items = (self.tree(a, b, where) for a, b in zip(small, large, strict=True))
            return type(small)(items) if type(small) in (tuple, list) else small
        if isinstance(small, dict):
            return {key: self.tree(item, large[key], where) for key, item in small.items()}
        if isinstance(small, Size):
            return self.size(small.coefficient, large.coefficient, where)
        if type(small) not in (int, float) or small == large:
            return small
        return self.size(small, large, where)

    def size(self, small: float, large: float, where: str) -> Size:
        """A number as ``coefficient * batch ** power``."""
        if small == large:
            return Size(int(small))
        for power in (1, 2):
            unit, next_unit = self.batch**power, (self.batch + 1) ** power
            if small % unit == 0 and small // unit * next_unit == large:
                return Size(int(small // unit), power)
        raise TraceError(
            f"a number is {small} for {self.batch} samples and {large} for {self.batch + 1}",
            expected="a multiple of the number of samples", where=where, hint=HINT,
        )  # fmt: skip
