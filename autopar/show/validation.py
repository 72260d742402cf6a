"""Published runs against predictions as a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from autopar.show.parts import Section, Table
from autopar.show.report import Report
from autopar.show.units import duration, percent

ERRORS = ("runs", "mean error", "bias", "p90", "rank")


def validation_report(found: Mapping[str, Any]) -> Report:
    """What ``autopar validate`` prints; ``found`` is ``validate.summary``'s result."""
    sections = (_tables, _models, _memory, _outliers, _refused)
    built = tuple(s for s in (section(found) for section in sections) if s is not None)
    timed = sum(table["count"] for table in found["tables"].values())
    verdict = (
        f"{timed} step times of {found['rows']} rows priced, {len(found['refused'])} rows "
        f"cannot be expressed, {len(found['outliers'])} are off by more than 20 %."
    )
    return Report("published runs", verdict, built)


def _row(errors: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(errors["count"]), percent(errors["mean_absolute"]), f"{100 * errors['bias']:+.1f} %",
        percent(errors["p90_absolute"]), _rank(errors["rank"]),
    )  # fmt: skip


def _rank(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _tables(found: Mapping[str, Any]) -> Section:
    rows = tuple(
        (name, *_row(table), _rank(table["rank_within_models"]), _repeats(table), _pairs(table))
        for name, table in found["tables"].items()
    )
    note = (
        "error of the step time relative to the measured one; Spearman's rank correlation; by how "
        "much runs of one configuration differ; pairs of a model that differ by more, and are "
        "predicted in their order"
    )
    columns = ("table", *ERRORS, "rank within models", "repeats differ", "pairs in order")
    return Section("Tables", (Table(columns, rows, note),))


def _repeats(table: Mapping[str, Any]) -> str:
    return f"up to {percent(table['repeats_differ'])}" if table["repeats"] else "-"


def _pairs(table: Mapping[str, Any]) -> str:
    return f"{table['pairs_beyond_ordered']} of {table['pairs_beyond']}"


def _models(found: Mapping[str, Any]) -> Section:
    rows = tuple((name, *_row(errors)) for name, errors in found["models"].items())
    return Section("Models", (Table(("model", *ERRORS), rows),))


def _memory(found: Mapping[str, Any]) -> Section:
    columns = ("table", "ran, fits", "ran, said not to", "OOM, said so", "OOM, said to fit",
               "peaks", "mean error", "bias")  # fmt: skip
    rows = []
    for name, memory in found["memory"].items():
        labels = (memory[k] for k in ("fits_right", "fits_wrong", "oom_right", "oom_wrong"))
        peaks = memory["peaks"]
        figures = ("-", "-", "-")
        if peaks:
            figures = (str(peaks["count"]), percent(peaks["mean_absolute"]),
                       f"{100 * peaks['bias']:+.1f} %")  # fmt: skip
        rows.append((name, *map(str, labels), *figures))
    return Section("Memory labels", (Table(columns, tuple(rows)),))


def _outliers(found: Mapping[str, Any]) -> Section | None:
    columns = ("row", "model", "dp x tp x pp", "micro-batches", "measured", "predicted", "error")
    rows = tuple(
        (
            f"{each['table']}:{each['line']}", each["model"],
            f"{each['dp']} x {each['tp']} x {each['pp']}",
            f"{each['num_microbatches']} of {each['mbs']}",
            duration(each["measured_seconds"]), duration(each["predicted_seconds"]),
            f"{100 * each['error']:+.0f} %",
        )
        for each in found["outliers"]
    )  # fmt: skip
    return Section("Off by more than 20 %", (Table(columns, rows),)) if rows else None


def _refused(found: Mapping[str, Any]) -> Section | None:
    counts = Counter((each["table"], each["reason"]) for each in found["refused"])
    lines = {key: [e["line"] for e in found["refused"] if (e["table"], e["reason"]) == key]
             for key in counts}  # fmt: skip
    rows = tuple(
        (table, str(count), reason, _spans(lines[table, reason]))
        for (table, reason), count in counts.items()
    )
    columns = ("table", "rows", "reason", "lines")
    return Section("Not expressible", (Table(columns, rows),)) if rows else None


def _spans(lines: list[int]) -> str:
    """Consecutive lines as one span: 3-5, 9."""
    spans: list[list[int]] = []
    for line in lines:
        if spans and line == spans[-1][-1] + 1:
            spans[-1][-1:] = [line] if len(spans[-1]) > 1 else [spans[-1][0], line]
        else:
            spans.append([line])
    return ", ".join("-".join(map(str, span)) for span in spans)
