"""The arguments of each verb, and how their text is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autopar.errors import UsageError
from autopar.show.units import parse_memory


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number of the given kind above zero."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    parse.__name__ = kind.__name__
    return parse


def pin(text: str) -> tuple[str, Any]:
    """An argparse type: "tp=4" is ("tp", 4), "sequence_parallel=false" is (..., False).

    "stages=13,13,6" is ("stages", [13, 13, 6]).
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as in tp=4")
    words = {"true": True, "false": False}
    if value.lower() in words:
        return key, words[value.lower()]
    numbers = value.strip("[]").split(",")
    if all(number.strip().lstrip("-").isdigit() for number in numbers):
        found = [int(number) for number in numbers]
        return key, found if key == "stages" or len(found) > 1 else found[0]
    return key, value


def pins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """All pins of a command line; "recompute@model.layers.3" is one for these layers alone.

    Raises:
        UsageError: a decision is pinned both for the whole model and for single layers, or twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        kind, at, layer = key.partition("@")
        if isinstance(found.get(kind, {} if at else value), dict) != bool(at):
            raise UsageError(f"--pin {kind}=... and --pin {kind}@...", where="--pin",
                             expected="one for the whole model, or those for single layers",
                             hint=f"--pin '{kind}@*=...' behind the others")  # fmt: skip
        known, name = (found.setdefault(kind, {}), layer) if at else (found, kind)
        first = known.setdefault(name, value)
        if first != value:
            raise UsageError(f"--pin {key}={first} and --pin {key}={value}", where="--pin",
                             expected="one of them", hint="remove the other")  # fmt: skip
    return found


def optimizer(text: str) -> str | float:
    """An argparse type: an optimizer's name, or the bytes of state that it keeps per parameter."""
    try:
        return float(text)
    except ValueError:
        return text


def memory_limit(text: str) -> int | float:
    """An argparse type: "40GiB" and "42949672960" are bytes, "0.8" is a fraction."""
    try:
        return parse_memory(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.found}; expected {error.expected}") from error


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar plan``."""
    parser.add_argument("workload", metavar="MODULE:FUNCTION", help="or FILE.py:FUNCTION")
    parser.add_argument("--world-size", type=positive(int), required=True, metavar="N")
    parser.add_argument("--cluster", help="name or file of a cost model (default: this host)")
    parser.add_argument("--global-batch-size", type=positive(int), metavar="SAMPLES")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--optimizer", type=optimizer, default="adamw", help="or bytes/parameter")
    parser.add_argument(
        "--memory-limit", type=memory_limit, metavar="SIZE", help="bytes, 40GiB, or a fraction 0.8"
    )
    parser.add_argument(
        "--pin",
        type=pin,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as in tp=4, stages=13,13,6, recompute@model.layers.3=full, stage@model.layers.7=1"
        " or 'placement@*.up_proj.weight=Shard(0)'",
    )
    parser.add_argument("--gap", type=positive(float), default=0.01, help="stop when this close")
    parser.add_argument("--time-limit", type=positive(float), default=60.0, metavar="SECONDS")
    parser.add_argument("-o", "--output", metavar="PLAN.json")


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar show``."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("--html", metavar="PAGE.html", help="write a self-contained page")
    parser.add_argument(
        "--trace", metavar="TRACE.json", help="write the simulated step, for Perfetto"
    )


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar explain``."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("layer", metavar="LAYER", help="its name, as in `autopar show`")
    parser.add_argument(
        "--why-not",
        type=pin,
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="plan again with these; recompute, zero and stage are the layer's. May be repeated",
    )
    parser.add_argument("--workload", metavar="MODULE:FUNCTION", help="default: the plan's own")
    parser.add_argument("--cluster", help="name or file of the cost model, if it has moved")
    parser.add_argument("--time-limit", type=positive(float), default=60.0, metavar="SECONDS")


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar diff``."""
    parser.add_argument("first", metavar="A.json")
    parser.add_argument("second", metavar="B.json")


def emit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar emit``."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("-o", "--output", required=True, metavar="PROGRAM.py")
    parser.add_argument("--model", default="", metavar="MODULE:FUNCTION")


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar run``."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("--workload", default="", metavar="MODULE:FUNCTION")
    parser.add_argument(
        "--steps", type=positive(int), default=10, help="trained up to, a checkpoint's included"
    )
    parser.add_argument("--data", metavar="MODULE:FUNCTION", help="makes the batch of a step")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="resumed from, and saved in at the end"
    )
    parser.add_argument(
        "--checkpoint-every", type=positive(int), metavar="STEPS", help="saved in this often, too"
    )
    parser.add_argument(
        "--restarts", type=positive(int), default=0, metavar="N",
        help="when a rank fails start all again from the last checkpoint, N times at most",
    )  # fmt: skip
    parser.add_argument("--lr", type=positive(float), help="learning rate of AdamW")
    parser.add_argument(
        "--nodes", type=positive(int), default=1, help="torchrun agents on this host"
    )
    parser.add_argument("--timeout", type=positive(float), default=600.0, metavar="SECONDS")
    parser.add_argument(
        "--no-observe", dest="observe", action="store_false",
        help="time the steps only, and do not look into five more of them",
    )  # fmt: skip


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar calibrate``."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL.json")
    parser.add_argument("--budget", type=positive(float), default=180.0, metavar="SECONDS")
    parser.add_argument("--ranks", type=positive(int), default=None)


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``autopar validate``."""
    parser.add_argument("tables", metavar="TABLE.csv", nargs="+", type=Path)


def clusters_arguments(parser: argparse.ArgumentParser) -> None:
    """``autopar clusters`` takes none."""
