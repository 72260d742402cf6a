"""How the tensors that a module returns are taken out of what it returns."""

from __future__ import annotations

import pytest

from autopar.emit.modules import assignments, function_of


@pytest.mark.parametrize(
    ("results", "lines"),
    [
        (0, ["a = f(x)"]),
        ((0,), ["(a,) = f(x)"]),
        ((0, None, (1, 2)), ["a, _, (b, _) = f(x)"]),
        ({'["y"]': 0, ".z": (1, {"[3]": 2})}, ["r = f(x)", 'a = r["y"]', "b = r.z[0]"]),
        ((0, (), 1), ["r = f(x)", "a = r[0]", "b = r[2]"]),
    ],
)
def test_assignments(results, lines):
    assert assignments(results, ["a", "b", "_"], "f(x)", "r") == lines


def test_functions_have_the_names_that_users_write():
    assert function_of("function torch.nn.functional.ctc_loss") == "F.ctc_loss"
    assert function_of("function torch.unique") == "torch.unique"
    assert function_of("blocks.0.inner") == ""
