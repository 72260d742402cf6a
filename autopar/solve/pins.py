"""Pins of single layers: ``{"recompute": {"model.layers.0": "full", "model.layers.1?": "none"}}``.

A key is a layer's name or a shell pattern of names. The first that matches a layer holds for it;
layers that none matches are left to the solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from autopar.errors import UsageError

LAYERED = ("zero", "recompute")


def pin_of(value: Any, layer: str) -> Any:
    """What a pin's value says of a layer, None if nothing; a plain value holds for all of them."""
    if not isinstance(value, dict):
        return value
    return next((v for pattern, v in value.items() if fnmatchcase(layer, pattern)), None)


def check_layer_pins(
    pins: dict[str, Any], names: Sequence[str], parts: Sequence[str], allowed: dict[str, Any]
) -> None:
    """Refuses pins of layers that do not exist, or that contradict what the layers can do.

    Args:
        pins: all pins; only those of single layers are looked at.
        names: every layer.
        parts: those that are no block.
        allowed: values that each kind of pin may have.

    Raises:
        UsageError: names the pins and the rule that they break.
    """
    for kind in LAYERED:
        value = pins.get(kind)
        for pattern, mode in value.items() if isinstance(value, dict) else ():
            _check_one(kind, pattern, mode, names, allowed[kind])
    _check_zero(pins, parts)
    _check_recompute(pins.get("recompute"), parts)


def _check_one(kind: str, pattern: str, mode: Any, names: Sequence[str], allowed: Any) -> None:
    if mode not in allowed or isinstance(mode, bool):
        raise UsageError(
            f"pin {kind}@{pattern}={mode!r}", expected=", ".join(map(str, allowed)), where="pin",
            hint=f"choose one of these, or leave {pattern} to the solver",
        )  # fmt: skip
    if not any(fnmatchcase(name, pattern) for name in names):
        raise UsageError(
            f"pin {kind}@{pattern}={mode!r} matches no layer",
            expected=f"a name or a pattern of {', '.join(names[:4])}, ... {names[-1]}",
            where="pin",
            hint=f"a pattern may hold * and ?, as in {names[0].rpartition('.')[0] or 'h'}.*",
        )


def _check_zero(pins: dict[str, Any], parts: Sequence[str]) -> None:
    """Parts outside the blocks share one zero mode."""
    modes = {part: pin_of(pins.get("zero"), part) for part in parts}
    given = {part: mode for part, mode in modes.items() if mode is not None}
    if len(set(given.values())) > 1:
        raise UsageError(
            " and ".join(f"zero@{part}={mode}" for part, mode in given.items()),
            expected="one zero mode for all that is no block: they may share parameters",
            where="pin",
            hint="give these the same mode, or pin one of them",
        )


def _check_recompute(pinned: Any, parts: Sequence[str]) -> None:
    """Parts outside the blocks are never recomputed; a pattern may match them beside blocks."""
    for part in parts if isinstance(pinned, dict) else ():
        if pinned.get(part, "none") != "none":
            raise UsageError(
                f"pin recompute@{part}={pinned[part]}", where="pin",
                expected="none: only blocks are computed again",
                hint=f"leave {part} to the solver",
            )  # fmt: skip
