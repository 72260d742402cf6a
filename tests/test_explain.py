from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.errors import InfeasiblePlanError, UsageError
from autopar.explain import alternative, check_asked, find_layer, pins_with
from autopar.show.explain import explain_report, reason
from autopar.show.text import to_text


def slower(plan, seconds, part):
    """The plan with more of one kind of time."""
    own = plan.prediction
    breakdown = {**own.breakdown, part: own.breakdown[part] + seconds, "bubble": 0.0}
    step = own.step_seconds + seconds
    return replace(plan, prediction=replace(own, step_seconds=step, breakdown=breakdown))


def test_a_layer_is_found_by_its_name_and_a_wrong_one_answered_with_those_like_it(sample_plan):
    assert find_layer(sample_plan, "blocks.4") is sample_plan.layers[4]
    with pytest.raises(UsageError, match=r"layer 'block\.4'(.|\n)*blocks\.4"):
        find_layer(sample_plan, "block.4")


@pytest.mark.parametrize(
    ("pins", "asked", "expected"),
    [
        ({"tp": 2}, {"tp": 4}, {"tp": 4}),
        ({}, {"zero": 3}, {"zero": {"a": 3}}),
        ({"zero": 2}, {"zero": 3}, {"zero": {"a": 3, "*": 2}}),
        ({"zero": {"b": 0, "a": 2}}, {"zero": 3}, {"zero": {"a": 3, "b": 0}}),
        ({"dp": 2}, {"recompute": "full", "tp": 1},
         {"dp": 2, "recompute": {"a": "full"}, "tp": 1}),
    ],
)  # fmt: skip
def test_what_is_asked_for_comes_before_what_was_pinned(pins, asked, expected):
    found = pins_with(pins, "a", asked)
    assert found == expected
    # The first pattern that fits a layer counts.
    assert [list(v) for v in found.values() if isinstance(v, dict)] == [
        list(v) for v in expected.values() if isinstance(v, dict)
    ]


def test_an_alternative_says_by_what_it_loses(sample_plan):
    pinned = []

    def make(pins):
        pinned.append(pins)
        return slower(sample_plan, 0.07, "tp_comm")

    layer = sample_plan.layers[1]
    other = alternative(sample_plan, layer, {"recompute": "none"}, make)
    assert pinned == [{**sample_plan.pins, "recompute": {"blocks.1": "none"}}]
    assert (other.part, other.seconds) == ("tp_comm", pytest.approx(0.07))
    assert reason(sample_plan, other) == (
        "10 % slower, most by tensor-parallel communication (70.0 ms more)"
    )
    text = to_text(explain_report(sample_plan, layer, [other], "p.json"))
    assert "recompute=none" in text
    assert "3 of 6: blocks.0 to blocks.2" in text
    assert "ranks 0 to 7" in text
    assert "--why-not recompute=full" in text


def test_what_is_faster_is_within_the_gap(sample_plan):
    other = alternative(
        sample_plan,
        sample_plan.layers[0],
        {"tp": 4},
        lambda _: slower(sample_plan, -7e-4, "bubble"),
    )
    assert "faster: the plan is proven within 0.40 % of the optimum" in reason(sample_plan, other)


def test_what_does_not_fit_is_answered_with_the_reason(sample_plan):
    def make(pins):
        raise InfeasiblePlanError("stage 0 is short by 3 GiB", hint="fits with zero=3")

    other = alternative(sample_plan, sample_plan.layers[0], {"zero": 0}, make)
    assert other.plan is None
    assert other.refused == "stage 0 is short by 3 GiB; fits with zero=3"
    text = to_text(explain_report(sample_plan, sample_plan.layers[0], [other], "p.json"), 140)
    assert "short by 3 GiB" in text


@pytest.mark.parametrize("asked", [{"tp": 2}, {"recompute": "selective", "schedule": "1f1b"}])
def test_what_the_plan_does_is_no_alternative(sample_plan, asked):
    with pytest.raises(UsageError, match="does not do"):
        check_asked(sample_plan, sample_plan.layers[0], asked)
