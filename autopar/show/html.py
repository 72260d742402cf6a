"""Lowers a report to HTML that needs nothing but itself: no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from autopar.show.parts import Facts, Section, Table
from autopar.show.report import Report

STYLE = """
.autopar { font: 14px/1.45 system-ui, sans-serif; color: #1c2430; max-width: 72rem; }
.autopar .verdict { font-size: 1.15em; font-weight: 600; margin: 0; }
.autopar .title, .autopar .note { color: #5b6675; margin: 0.2em 0; }
.autopar h2 { font-size: 1em; margin: 1.4em 0 0.3em; }
.autopar table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.autopar th, .autopar td { padding: 0.2em 0.9em 0.2em 0; text-align: left; vertical-align: top; }
.autopar thead th { border-bottom: 1px solid #aab3bf; }
.autopar tbody th { color: #5b6675; font-weight: 400; }
.autopar pre { background: #f2f4f7; padding: 0.6em; overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  .autopar { color: #e4e8ee; background: #14181f; }
  .autopar .title, .autopar .note, .autopar tbody th { color: #9aa5b4; }
  .autopar pre { background: #20262f; }
}
""".strip()

PAGE = """<!doctype html>
<html lang="en">
<head>{head}</head>
<body>
{body}
</body>
</html>
"""


def to_fragment(report: Report) -> str:
    """The report as one element with its style, for a notebook cell."""
    parts = [
        f"<style>{STYLE}</style>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        f'<p class="title">{escape(report.title)}</p>',
        *map(_section, report.sections),
        _commands(report.commands),
    ]
    return '<div class="autopar">\n' + "\n".join(filter(None, parts)) + "\n</div>"


def to_html(report: Report) -> str:
    """The report as a whole page."""
    head = f'<meta charset="utf-8"><title>{escape(report.title)}</title>'
    return PAGE.format(head=head, body=to_fragment(report))


def _section(section: Section) -> str:
    return f"<h2>{escape(section.title)}</h2>\n" + "\n".join(map(_part, section.parts))


def _part(part: Table | Facts) -> str:
    return _table(part) if isinstance(part, Table) else _facts(part)


def _table(part: Table) -> str:
    head = _row("th", part.columns)
    body = "\n".join(_row("td", row) for row in part.rows)
    note = f'\n<p class="note">{escape(part.note)}</p>' if part.note else ""
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>{note}"


def _facts(part: Facts) -> str:
    rows = (
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value in part.rows
    )
    return "<table>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _commands(commands: tuple[str, ...]) -> str:
    if not commands:
        return ""
    return "<h2>Next</h2>\n<pre>" + escape("\n".join(commands)) + "</pre>"
