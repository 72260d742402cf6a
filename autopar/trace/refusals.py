"""What stopped a trace, as an error that says where and what to try."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

import torch

from autopar.trace.opaque import HiddenBackwardError, UntraceableError


def explain(error: Exception, stack: Sequence[str]) -> UntraceableError:
    """The error in found / expected / where / hint; ``stack`` are the modules that were running."""
    module = f"module {stack[-1]!r}" if stack and stack[-1] else "the model's own forward"
    module = module if stack else "the loss function"
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    expected, hint = _advice(error)
    found = UntraceableError(
        f"cannot trace the model: {reason}",
        expected=expected,
        where=f"{module}, {_user_line(error)}",
        hint=hint,
    )
    found.path = stack[-1] if stack else ""
    return found


def _advice(error: Exception) -> tuple[str, str]:
    """(expected, hint) for what stopped a trace."""
    if isinstance(error, HiddenBackwardError):
        return (
            "operations of torch, whose backward is known",
            "call it in a module of its own, which takes and returns tensors: it is run whole",
        )
    if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
        return (
            "a forward whose control flow does not depend on tensor values",
            "replace the branch on a tensor's value by torch.where or a fixed choice, or put it"
            " in a module of its own, which takes and returns tensors",
        )
    return (
        "a forward that torch.export can trace",
        "make this call traceable, pass inputs that avoid it, or put it in a module of its own,"
        " which takes and returns tensors",
    )


def _user_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame that is the user's."""
    folders = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
    ours = tuple(folder + os.sep for folder in folders)
    frames = traceback.extract_tb(error.__traceback__)
    named = [f for f in frames if not f.filename.startswith((*ours, "<"))]
    return f"{os.path.basename(named[-1].filename)}:{named[-1].lineno}" if named else "unknown line"
