"""Variables that take over the names of others that are no longer read."""

from __future__ import annotations

from autopar.emit.rebind import let_go, mentioned, rebind, rebind_blocks, with_names

BASES = {"x_2": "x", "x_3": "x", "y": "y", "y_2": "y"}


def test_a_dead_variables_name_is_used_again():
    lines = ["x_2 = f(x, x=x)  # x_2", "with mode():", "    x_3 = x_2.x_2 + y", "return x_3"]
    found, renamed = rebind(lines, ("x", "y"), BASES)
    assert found == ["x = f(x, x=x)  # x_2", "with mode():", "    x = x.x_2 + y", "return x"]
    assert renamed == {"x_2": "x", "x_3": "x"}


def test_a_variable_that_is_read_later_keeps_its_name():
    lines = ["x_2 = f(x)", "x_3 = g(x_2)", "return x + x_3"]
    assert rebind(lines, ("x",), BASES)[0] == ["x_2 = f(x)", "x_2 = g(x_2)", "return x + x_2"]
    lines = ["x_2 = f(x)", "x_3 = g(x_2)"]
    assert rebind(lines, (), BASES, (), ("x_2",))[0] == ["x = f(x)", "x_2 = g(x)"]


def test_variables_are_deleted_behind_their_last_reader():
    """Not where their name is assigned to there or next, not in front of the return, not unread."""
    lines = ["a = f(x)", "b = g(a, a=a)", "with mode():", "    c = a + b", "x_2 = h(c)",
             "y = x_2 + x", "d = y * 2", "e = d + c", "unread = e", "return e"]  # fmt: skip
    found, renamed = rebind(lines, ("x",), BASES)
    dead = ("a", "b", "c", "d", "x_2", "y", "unread", "elsewhere")
    assert let_go(lines, found, renamed, dead) == [
        "a = f(x)", "b = g(a, a=a)", "with mode():", "    c = a + b", "del a, b", "x_2 = h(c)",
        "y = x_2 + x", "del x_2", "d = y * 2", "del y", "e = d + c", "del c, d", "unread = e",
        "return e",
    ]  # fmt: skip
    lines = ["x_2 = f(x)", "x_3 = g(x_2)", "z = h(x_3)", "return z + x_3"]
    found, renamed = rebind(lines, ("x",), BASES)
    assert let_go(lines, found, renamed, ("x_2", "x_3")) == found


def test_results_of_one_statement_have_names_of_their_own():
    lines = ["x_2, x_3 = f(x)", "return x_3"]
    assert rebind(lines, ("x",), BASES)[0] == ["x, x_2 = f(x)", "return x_2"]


def test_reserved_names_are_not_used():
    assert rebind(["x_2 = f()"], (), BASES, ("x",))[0] == ["x_2 = f()"]


def test_blocks_share_what_several_of_them_mention():
    blocks = [["y_2 = f()", "x_2 = g(y_2)"], ["y = h(x_2)", "out = y"], ["y_2_ = x_2"]]
    assert rebind_blocks(blocks, BASES, ("out",)) == [
        ["y_2 = f()", "x = g(y_2)"], ["y = h(x)", "out = y"], ["y_2_ = x"],
    ]  # fmt: skip


def test_what_goes_from_block_to_block_is_not_overwritten_while_it_is_read():
    """A gathered hidden state, whose own name would be free, beside the residual's shard."""
    blocks = [["h = f()"], ["h_full = gather(h)", "y = g(h_full)", "h = y + h"], ["out = h"]]
    found = rebind_blocks(blocks, {"h_full": "h", "h": "h"}, ("out",))
    assert found == [
        ["h = f()"], ["h_2 = gather(h)", "y = g(h_2)", "h = y + h"], ["out = h"],
    ]  # fmt: skip


def test_names_in_a_line():
    assert mentioned("a.b = f(c, d=e)  # g") == {"a", "f", "c", "e"}
    assert with_names("if a: b = a.a", {"a": "long", "b": "c"}) == "if long: c = long.a"
