"""Pins of single layers."""

from __future__ import annotations

import pytest

from autopar.cli_arguments import pins
from autopar.errors import UsageError
from autopar.solve.pins import check_layer_pins, pin_of

NAMES = ("embedding", "h.0", "h.1", "h.2", "head")
PARTS = ("embedding", "head")
ALLOWED = {"zero": (0, 1, 2, 3), "recompute": ("none", "selective", "full")}


def test_the_first_pattern_that_matches_holds():
    value = {"h.0": "full", "h.?": "none"}
    assert [pin_of(value, name) for name in NAMES] == [None, "full", "none", "none", None]
    assert pin_of("full", "h.7") == "full"
    assert pin_of(None, "h.7") is None


def test_what_is_possible_passes():
    check_layer_pins({"zero": {"*": 3}, "recompute": {"h.*": "full"}}, NAMES, PARTS, ALLOWED)
    check_layer_pins({"recompute": {"*": "full"}, "tp": 2}, NAMES, PARTS, ALLOWED)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recompute": {"h.7": "full"}}, ("recompute@h.7", "matches no layer")),
        ({"recompute": {"h.0": "some"}}, ("recompute@h.0", "selective")),
        ({"zero": {"h.0": True}}, ("zero@h.0", "0, 1, 2, 3")),
        ({"zero": {"embedding": 0, "head": 3}}, ("zero@embedding=0 and zero@head=3",)),
        ({"recompute": {"head": "full"}}, ("recompute@head", "only blocks")),
    ],
)
def test_contradictions_name_the_pins(given, words):
    with pytest.raises(UsageError) as caught:
        check_layer_pins(given, NAMES, PARTS, ALLOWED)
    for word in words:
        assert word in str(caught.value)


def test_command_line():
    assert pins([("tp", 4), ("recompute@h.0", "full"), ("recompute@h.1", "none")]) == {
        "tp": 4, "recompute": {"h.0": "full", "h.1": "none"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="zero"):
        pins([("zero", 3), ("zero@h.0", 2)])
