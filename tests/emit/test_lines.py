"""Breaking long lines."""

from __future__ import annotations

import ast

import pytest

from autopar.emit.lines import comment, lay_out, wrap, wrapped

LONG = "name = function(first_argument, second(1, 2), third[3, 4], fourth)"
CASES = {
    "x = y": ["x = y"],
    "x = function(a)  # note": ["# note", "x = function(a)"],
    "value = f(one, two, three)": ["value = f(", "    one, two, three", ")"],
    "value = f(one(1), two(2), three(3))": [
        "value = f(", "    one(1),", "    two(2),", "    three(3),", ")",
    ],
    "value = f((g(one), g(two)), 1)": [
        "value = f(", "    (", "        g(one),", "        g(two),", "    ),", "    1,", ")",
    ],
    "value = f((first_of_one(1),))": [
        "value = f(", "    (", "        first_of_one(", "            1",
        "        ),", "    ),", ")",
    ],
    "value = first * second": ["value = (", "    first * second", ")"],
    "value = first_one * second_one": ["value = (", "    first_one", "    * second_one", ")"],
}  # fmt: skip


@pytest.mark.parametrize("line", CASES)
def test_cases(line):
    assert wrap(line, 20) == CASES[line]


def test_indented_lines_stay_indented():
    assert wrapped(["    x = f(aaa, bbbbbb)", "y = 1"], 20) == [
        "    x = f(", "        aaa, bbbbbb", "    )", "y = 1",
    ]  # fmt: skip


def test_subscripts_stay_behind_a_call():
    assert wrap('x = f(aaaaaaaa, bbbbbbb)[0]["y"]', 20)[-1] == ')[0]["y"]'


@pytest.mark.parametrize(("code", "lines"), [
    ("(A,) * 2 + (B,) * 2", ["(", "    (A,) * 2", "    + (B,) * 2", ")"]),
    ("((1, 2), (3, 4)) * 3", ["(", "    (1, 2),", "    (3, 4),", ") * 3"]),
    ("(1, 2) * 3", ["(1, 2) * 3"]),
])  # fmt: skip
def test_lay_out(code, lines):
    assert lay_out(code, 15) == lines


def test_comment():
    assert comment("x = 1", "") == "x = 1"
    assert comment("x = 1", "why") == "x = 1  # why"


@pytest.mark.parametrize("width", [24, 40, 60, 80])
@pytest.mark.parametrize(
    "line",
    [
        LONG,
        'x = g(text, "a, b", key=(1, 2))',
        "y = (first_factor * second_factor) + f(third_one, fourth_one)",
        "y = x.reshape(1, 2).expand(3, 4, 5).reshape(6, 7, 8, 9, 10, 11)",
        "return layer_norm(hidden, (32,), weight, bias) + other",
        "a, b, c = tensor.split(argument_number_one, dim=argument_number_two)",
    ],
)
def test_breaking_keeps_the_meaning(line, width):
    lines = wrap(line, width)
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(line))
