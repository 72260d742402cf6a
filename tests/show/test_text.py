from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.show.report import report
from autopar.show.text import to_text


@pytest.mark.parametrize("width", [60, 100, 160])
def test_keeps_to_the_width_except_for_commands(sample_plan, width):
    lines = to_text(report(sample_plan), width).splitlines()
    body = lines[: next(i for i, line in enumerate(lines) if line == "Next")]
    assert max(map(len, body)) <= width


def test_has_every_section_and_no_escape_codes(sample_plan):
    built = report(sample_plan)
    text = to_text(built)
    assert all(section.title in text for section in built.sections)
    assert built.commands[-1] in text
    assert "\x1b" not in text


def test_brackets_in_names_are_no_markup(sample_plan):
    assert "[bold]Toy[/]" in to_text(report(replace(sample_plan, model="[bold]Toy[/]")))
