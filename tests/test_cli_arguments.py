from __future__ import annotations

import argparse

import pytest

from autopar.cli_arguments import memory_limit, optimizer, pin, pins, positive
from autopar.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tp=4", ("tp", 4)),
        ("schedule=1f1b", ("schedule", "1f1b")),
        ("sequence_parallel=False", ("sequence_parallel", False)),
        ("tp=-1", ("tp", -1)),
    ],
)
def test_pin(text, value):
    assert pin(text) == value


@pytest.mark.parametrize("text", ["tp", "tp=", "=4", ""])
def test_pin_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="KEY=VALUE"):
        pin(text)


def test_pins_of_models_and_layers():
    pairs = [("tp", 4), ("zero@*.0", 3), ("zero@*", 0), ("tp", 4)]
    assert pins(pairs) == {"tp": 4, "zero": {"*.0": 3, "*": 0}}


@pytest.mark.parametrize(
    "pairs",
    [
        [("pp", 1), ("pp", 2)],
        [("stages", [3, 1]), ("stages", [1, 3])],
        [("zero@*.0", 3), ("zero@*.0", 2)],
        [("zero", 3), ("zero@*.0", 2)],
        [("zero@*.0", 3), ("zero", 3)],
    ],
    ids=str,
)
def test_pins_that_contradict_each_other_are_named(pairs):
    with pytest.raises(UsageError, match=rf"--pin {pairs[0][0].partition('@')[0]}.* and --pin"):
        pins(pairs)


def test_positive():
    assert positive(int)("3") == 3
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="above zero"):
            positive(int)(text)
    with pytest.raises(argparse.ArgumentTypeError):
        positive(float)("nan")
    with pytest.raises(ValueError, match="invalid literal"):
        positive(int)("x")


def test_optimizer_is_a_name_or_bytes():
    assert optimizer("sgd") == "sgd"
    assert optimizer("12") == 12.0


def test_memory_limit_error_names_what_is_expected():
    assert memory_limit("0.8") == 0.8
    with pytest.raises(argparse.ArgumentTypeError, match="40GiB"):
        memory_limit("lots")
