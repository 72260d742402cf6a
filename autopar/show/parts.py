"""What a report is made of: titled sections of tables and key figures, all of them text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; ``note`` explains the columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Key figures: (label, value) pairs."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A titled group of tables and facts."""

    title: str
    parts: tuple[Table | Facts, ...]
