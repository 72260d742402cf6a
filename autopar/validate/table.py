"""Tables of published training runs: one header, SI-like units in the column names."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autopar.errors import UsageError

# What a row must say; other columns of the format may be empty or missing.
REQUIRED = (
    "source", "model", "layers", "hidden", "heads", "ffn", "vocab", "seq", "gpu", "n_gpus",
    "dp", "tp", "pp", "mbs", "gbs", "sharding", "recompute", "precision", "framework",
    "iter_time_s",
)  # fmt: skip
# Units that people write into a header and that would be misread by a factor of a thousand.
_WRONG_UNITS = {
    "iter_time_ms": "iter_time_s", "iter_time": "iter_time_s", "mem_mib": "mem_gib",
    "mem_mb": "mem_gib", "mem_bytes": "mem_gib",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published run: the texts of its cells and where it stands."""

    table: str
    line: int
    cells: Mapping[str, str]

    def text(self, name: str) -> str:
        """The cell, "" where the table has no such column."""
        return (self.cells.get(name) or "").strip()

    def number(self, name: str) -> float | None:
        """The cell as a number, None where nothing is published.

        Raises:
            UsageError: the cell holds something else, or a negative number.
        """
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UsageError(
                f"{name} = {text!r}", expected="a number of at least 0, or nothing",
                where=f"{self.table}, line {self.line}",
            )  # fmt: skip
        return value

    def count(self, name: str) -> int | None:
        """The cell as a whole number, None where nothing is published.

        Raises:
            UsageError: it is not one.
        """
        value = self.number(name)
        if value is None:
            return None
        if value != int(value):
            raise UsageError(
                f"{name} = {self.text(name)!r}", expected="a whole number",
                where=f"{self.table}, line {self.line}",
            )  # fmt: skip
        return int(value)


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a table.

    Raises:
        UsageError: there is no such file, it is no such table, or a column is missing.
    """
    file = Path(path)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return list(_rows(csv.DictReader(stream), file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{file}: {reason}", expected="a CSV file of published runs", where="autopar validate"
        ) from error


def _rows(reader: csv.DictReader[str], file: Path) -> Iterator[Row]:
    names = reader.fieldnames or ()
    wrong = [f"{name} (write {_WRONG_UNITS[name]})" for name in names if name in _WRONG_UNITS]
    missing = [name for name in REQUIRED if name not in names]
    if wrong or missing:
        raise UsageError(
            f"columns in other units: {', '.join(wrong)}" if wrong
            else f"no column {', '.join(missing)}",
            expected=f"the columns {', '.join(REQUIRED)}", where=str(file),
            hint="calibration/README.md describes the format",
        )  # fmt: skip
    for cells in reader:
        if None in cells or None in cells.values():
            raise UsageError(
                f"{sum(v is not None for v in cells.values())} cells",
                expected=f"{len(names)}, one per column",
                where=f"{file}, line {reader.line_num}",
            )
        yield Row(file.name, reader.line_num, cells)
