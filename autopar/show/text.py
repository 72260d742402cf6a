"""Lowers a report to text, for terminals and logs."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from autopar.show.parts import Facts, Table
from autopar.show.report import Report

WIDTH = 100


def to_text(report: Report, width: int = WIDTH) -> str:
    """The report as plain text of at most ``width`` columns, without colours."""
    stream = StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False)
    print_report(report, console)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def print_report(report: Report, console: Console) -> None:
    """Writes the report to a console, in colour where the console has any."""
    console.print(Text(report.verdict, style="bold"))
    console.print(Text(report.title, style="dim"))
    for section in report.sections:
        console.print()
        console.print(Text(section.title, style="bold cyan"))
        for part in section.parts:
            console.print(Padding(_lower(part), (0, 0, 0, 2), expand=False))
    if report.commands:
        console.print(Text("\nNext", style="bold cyan"))
        for command in report.commands:
            # A command is to be copied: it may be longer than the line, never broken.
            console.print(Text("  " + command), soft_wrap=True)


def _lower(part: Table | Facts) -> RenderableType:
    return _table(part) if isinstance(part, Table) else _facts(part)


def _table(part: Table) -> RenderableType:
    table = RichTable(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption=part.note or None,
        caption_justify="left",
    )
    for column in part.columns:
        table.add_column(column, overflow="fold")
    for row in part.rows:
        table.add_row(*map(Text, row))
    return table


def _facts(part: Facts) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in part.rows:
        grid.add_row(*map(Text, row))
    return grid
