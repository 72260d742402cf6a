"""``validate``: every row of tables of published runs, priced and judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from autopar.cluster import Cluster
from autopar.validate.price import DEVICES, Priced, Prices
from autopar.validate.runs import InexpressibleError, Run, read_run
from autopar.validate.statistics import Errors, errors, ordered, spread
from autopar.validate.table import Row, read_table

# Steps that are shorter are dominated by what no cost model has: the loop, timers, jitter.
SHORTEST_SECONDS = 0.01
OUTLIER = 0.2
Progress = Callable[[int, int], None]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Judged:
    """A run with its price."""

    run: Run
    priced: Priced

    @property
    def error(self) -> float | None:
        """Relative error of the step time, None where none is published."""
        measured = self.run.measured_seconds
        return self.priced.seconds / measured - 1 if measured else None

    @property
    def predicted_to_fit(self) -> bool:
        """Whether the memory model says that it fits on the device."""
        return self.priced.needed_bytes <= self.run.machine.memory_gb * 2**30


@dataclass(frozen=True)
class Refused:
    """A row that could not be priced, and why."""

    row: Row
    reason: str


def validate(
    paths: Sequence[str | os.PathLike[str]], progress: Progress | None = None
) -> tuple[list[Judged], list[Refused]]:
    """Prices every row of the tables.

    Raises:
        UsageError: a table that cannot be read, lacks columns, or holds what is no number.
    """
    rows = [row for path in paths for row in read_table(path)]
    names = dict.fromkeys(name for _, name, _ in DEVICES)
    prices = Prices({name: Cluster.load(name) for name in names})
    judged, refused = [], []
    for number, row in enumerate(rows):
        try:
            run = read_run(row)
            judged.append(Judged(run, prices.price(run)))
        except InexpressibleError as error:
            refused.append(Refused(row, str(error)))
        if progress:
            progress(number + 1, len(rows))
    return judged, refused


def summary(judged: Sequence[Judged], refused: Sequence[Refused]) -> dict[str, Any]:
    """Statistics by table and by model, outliers, memory labels and refused rows: plain data."""
    timed = [j for j in judged if (j.run.measured_seconds or 0.0) >= SHORTEST_SECONDS]
    tables = _grouped(timed, lambda j: Path(j.run.row.table).stem)
    models = _grouped(timed, lambda j: f"{Path(j.run.row.table).stem}: {_model(j.run)}")
    return {
        "tables": {name: _figures(group, models) for name, group in tables.items()},
        "models": {name: asdict(_errors(group)) for name, group in models.items()},
        "memory": {
            name: _memory(group)
            for name, group in _grouped(judged, lambda j: Path(j.run.row.table).stem).items()
        },
        "outliers": [_line(j) for j in timed if abs(j.error or 0.0) > OUTLIER],
        "refused": [
            {"table": r.row.table, "line": r.row.line, "reason": r.reason} for r in refused
        ],
        "rows": len(judged) + len(refused),
    }


def _model(run: Run) -> str:
    """The name of a model, and its shape where the source has none."""
    name = run.row.text("model")
    return name if "?" not in name else f"{run.layers} x {run.shape.hidden}"


def _grouped(judged: Iterable[Judged], key: Callable[[Judged], Key]) -> dict[Key, list[Judged]]:
    found: dict[Key, list[Judged]] = {}
    for each in judged:
        found.setdefault(key(each), []).append(each)
    return found


def _errors(group: Sequence[Judged]) -> Errors:
    return errors([j.priced.seconds for j in group], [_seconds(j) for j in group])


def _figures(group: Sequence[Judged], models: dict[str, list[Judged]]) -> dict[str, Any]:
    """Errors of a table, with the mean rank correlation within its models.

    ``repeats_differ`` is the largest relative difference of ``repeats`` pairs of runs of one
    configuration; ``pairs_beyond`` of one model differ by more, and so have an order.
    """
    table = Path(group[0].run.row.table).stem
    own = [_errors(g) for name, g in models.items() if name.startswith(f"{table}: ")]
    ranked = [e for e in own if e.rank is not None]
    weight = sum(e.count for e in ranked)
    within = sum(e.count * (e.rank or 0.0) for e in ranked) / weight if weight else None
    noise = spread([[_seconds(j) for j in g] for g in _grouped(group, _configuration).values()])
    least = noise[-1] if noise else 0.0
    pairs = [_ordered(g, least) for name, g in models.items() if name.startswith(f"{table}: ")]
    return {
        **asdict(_errors(group)), "rank_within_models": within, "repeats": len(noise),
        "repeats_differ": least, "pairs_beyond": sum(count for count, _ in pairs),
        "pairs_beyond_ordered": sum(right for _, right in pairs),
    }  # fmt: skip


def _seconds(judged: Judged) -> float:
    return float(judged.run.measured_seconds or 0.0)


def _configuration(judged: Judged) -> Hashable:
    """What decides the price of a run."""
    run = judged.run
    return (run.shape, run.layers, run.config, run.zero, run.recompute, run.traffic, run.machine)


def _ordered(group: Sequence[Judged], least: float) -> tuple[int, int]:
    return ordered([j.priced.seconds for j in group], [_seconds(j) for j in group], least)


def _memory(group: Sequence[Judged]) -> dict[str, Any]:
    """Counts of (published, predicted) memory labels, and the error of published peaks."""
    counts = {"fits_right": 0, "fits_wrong": 0, "oom_right": 0, "oom_wrong": 0}
    for each in group:
        right = each.predicted_to_fit == each.run.fits
        counts[f"{'fits' if each.run.fits else 'oom'}_{'right' if right else 'wrong'}"] += 1
    peaks = [j for j in group if j.run.memory_bytes and j.run.fits]
    predicted = [j.priced.memory_bytes for j in peaks]
    measured = [float(j.run.memory_bytes or 0.0) for j in peaks]
    return {**counts, "peaks": asdict(errors(predicted, measured)) if peaks else None}


def _line(judged: Judged) -> dict[str, Any]:
    run, config = judged.run, judged.run.config
    return {
        "table": run.row.table, "line": run.row.line, "model": _model(run),
        "dp": config.dp, "tp": config.tp, "pp": config.pp, "mbs": config.microbatch_size,
        "num_microbatches": config.num_microbatches, "zero": run.zero, "recompute": run.recompute,
        "measured_seconds": run.measured_seconds, "predicted_seconds": judged.priced.seconds,
        "error": judged.error,
    }  # fmt: skip
