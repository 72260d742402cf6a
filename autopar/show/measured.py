"""A run of a plan as a report: what was predicted against what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from autopar.show.parts import Facts, Section, Table
from autopar.show.report import Report
from autopar.show.units import duration, percent, size


def measured_report(run: Mapping[str, Any], title: str) -> Report:
    """The report of a run.

    Args:
        run: ``step_seconds`` (one figure or one for each step), ``losses``,
            ``peak_memory_bytes`` (one figure or one for each rank),
            ``predicted_step_seconds`` and ``predicted_memory_bytes``; where somebody looked
            inside, ``split`` and ``live_memory_bytes``.
        title: what was run.
    """
    seconds = median(_many(run["step_seconds"]))
    peak_bytes = int(max(_many(run["peak_memory_bytes"]), default=0))
    predicted_seconds, predicted_bytes = (
        run["predicted_step_seconds"],
        run["predicted_memory_bytes"],
    )
    live_bytes = run.get("live_memory_bytes")
    rows = (
        ("step", duration(predicted_seconds), duration(seconds), _off(predicted_seconds, seconds)),
        *(_kind(name, figures) for name, figures in run.get("split", {}).items()),
        *([_memory("live tensors", predicted_bytes, live_bytes)] if live_bytes else []),
        _memory("peak memory", predicted_bytes, peak_bytes),
    )
    table = Table(("", "predicted", "measured", "prediction off by"), rows)
    parts = (table, Facts(_losses(tuple(run["losses"]))))
    verdict = f"A step took {duration(seconds)}; {duration(predicted_seconds)} were predicted."
    return Report(title, verdict, (Section("Predicted against measured", parts),))


def _kind(name: str, figures: Mapping[str, float]) -> tuple[str, str, str, str]:
    predicted, measured = figures["predicted_seconds"], figures["measured_seconds"]
    return f"  {name}", duration(predicted), duration(measured), _off(predicted, measured)


def _memory(name: str, predicted: int, measured: int) -> tuple[str, str, str, str]:
    return name, size(predicted), size(measured), _off(predicted, measured)


def _many(figures: Any) -> tuple[float, ...]:
    return tuple(figures) if isinstance(figures, (list, tuple)) else (figures,)


def _off(predicted: float, measured: float) -> str:
    """Signed error of the prediction in percent of the measurement."""
    if not measured:
        return "not measured"
    error = predicted / measured - 1
    return ("+" if error > 0 else "") + percent(error)


def _losses(losses: tuple[float, ...]) -> tuple[tuple[str, str], ...]:
    if not losses:
        return (("loss", "not reported"),)
    return (("loss", f"{losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)}"),)
