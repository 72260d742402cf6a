"""Pins, whole and by name: ``{"tp": 2, "recompute": {"model.layers.0": "full", "*": "none"}}``.

A key of a pin by name is the name of a layer (of a parameter for ``placement``) or a shell pattern
of names. The first that matches holds; what none matches is left to the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from autopar.errors import UsageError

LAYERED = ("zero", "recompute")
# Those that are pinned by name alone.
NAMED = ("stage", "placement")


@dataclass(frozen=True)
class Entry:
    """One pinned decision; ``name`` is the layer or parameter of a pin by name, "" otherwise."""

    kind: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind}@{self.name}={self.value}" if self.name else f"{self.kind}={self.value}"


def entries(pins: dict[str, Any]) -> Iterator[Entry]:
    """The decisions that are pinned, one by one."""
    for kind, value in pins.items():
        if isinstance(value, dict):
            yield from (Entry(kind, name, own) for name, own in value.items())
        else:
            yield Entry(kind, "", value)


def joined(found: Sequence[Entry]) -> dict[str, Any]:
    """The inverse of ``entries``."""
    pins: dict[str, Any] = {}
    for entry in found:
        if entry.name:
            pins.setdefault(entry.kind, {})[entry.name] = entry.value
        else:
            pins[entry.kind] = entry.value
    return pins


def plain(pins: dict[str, Any]) -> dict[str, Any]:
    """Pins as plain JSON data: lists for tuples, text for torch's placements."""
    return joined([Entry(e.kind, e.name, _plain(e.kind, e.value)) for e in entries(pins)])


def _plain(kind: str, value: Any) -> Any:
    if kind == "placement":
        return (value if isinstance(value, str) else repr(value)).replace("dim=", "")
    return list(value) if isinstance(value, tuple) else value


def conflict(pins: dict[str, Any], possible: Callable[[dict[str, Any]], bool]) -> list[Entry]:
    """Pins that contradict each other, without any one of which the others do not.

    Of several such sets one with few pins by name: those of the whole model say more.

    Args:
        pins: all pins, which are not possible together.
        possible: whether some plan could honour these pins.
    """
    left = list(entries(pins))
    for entry in sorted(left, key=lambda entry: not entry.name):
        rest = [other for other in left if other is not entry]
        if not possible(joined(rest)):
            left = rest
    return left


def contradiction(found: Sequence[Entry], rules: str) -> UsageError:
    """The error for the result of ``conflict``; ``rules`` say what holds between the pins."""
    names = [str(entry) for entry in found]
    several = len(names) > 1
    return UsageError(
        " and ".join(names) + (" contradict each other" if several else ": no plan can have that"),
        expected=rules,
        where="pin",
        hint=f"change one of them, or leave {names[-1].partition('=')[0]} to the solver",
    )


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
    for kind in allowed:
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
    check_name(f"{kind}@{pattern}={mode!r}", pattern, names, "layer")


def check_name(pin: str, pattern: str, names: Sequence[str], what: str) -> None:
    """Refuses a pattern that matches no name.

    Raises:
        UsageError: shows some names that there are.
    """
    if not any(fnmatchcase(name, pattern) for name in names):
        raise UsageError(
            f"pin {pin} matches no {what}",
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
