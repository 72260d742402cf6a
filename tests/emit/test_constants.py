"""How constants are laid out."""

from __future__ import annotations

from autopar.emit import constants


def test_constants():
    assert constants.runs((0, 0, 3)) == "(0,) * 2 + (3,)"
    assert constants.runs((1, 2, 0, 0, 0, 3, 4)) == "(1, 2) + (0,) * 3 + (3, 4)"
    assert constants.runs(("full", "none")) == '("full", "none")'
    assert constants.runs((None, "Block")) == "(None, Block)"
    assert constants.runs(()) == "()"
    assert constants.names(("h.0", "h.1", "h.2")) == 'tuple(f"h.{i}" for i in range(3))'
    assert constants.names(("a.0", "b.0")) == ("(", ['"a.0"', '"b.0"'], ")")
    two = constants.names(("e.0", "e.1", "e.2", "d.1", "d.2", "d.3", "top"))
    assert two[1] == [
        '*(f"e.{i}" for i in range(3))', '*(f"d.{i}" for i in range(1, 4))', '"top"',
    ]  # fmt: skip
    long = constants.constant("NAMES", constants.words(["x" * 60, "y" * 60]), "two")
    assert long == f'# two\nNAMES = (\n    "{"x" * 60}",\n    "{"y" * 60}",\n)'
