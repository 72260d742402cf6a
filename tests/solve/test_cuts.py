"""Pinned boundaries: what they leave to each stage, against every division of the layers."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.errors import UsageError
from autopar.solve.cuts import check_stages, narrowed, pinned_cuts

NAMES = ("embedding", "h.0", "h.1", "glue", "h.2", "h.3", "head")
BLOCKS = tuple(name.startswith("h.") for name in NAMES)


def divisions(stages):
    return [(0, *rest) for rest in combinations(range(1, len(NAMES)), stages - 1)]


def spans(starts):
    return list(zip(starts, [*starts[1:], len(NAMES)], strict=True))


def honours(starts, pins):
    """Straight from what the pins say."""
    stage_of = [s for s, (a, b) in enumerate(spans(starts)) for _ in range(a, b)]
    counts = [sum(BLOCKS[a:b]) for a, b in spans(starts)]
    return counts == pins.get("stages", counts) and all(
        stage_of[NAMES.index(name)] == stage for name, stage in pins.get("stage", {}).items()
    )


PINS = st.fixed_dictionaries({}, optional={
    "stages": st.lists(st.integers(0, 3), min_size=1, max_size=4),
    "stage": st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=2),
})  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(pins=PINS, stages=st.integers(1, 4))
def test_cuts_are_those_of_the_divisions_that_honour_the_pins(pins, stages):
    found = pinned_cuts(pins, NAMES, BLOCKS, stages)
    legal = [starts for starts in divisions(stages) if honours(starts, pins)]
    if not pins:
        assert found == ()
    elif not legal:
        assert found is None
    else:
        assert found == tuple(tuple(sorted(set(own))) for own in zip(*legal, strict=True))
        allowed = [s for s in divisions(stages)
                   if all(i in own for i, own in zip(s, found, strict=True))]  # fmt: skip
        assert sorted(allowed) == legal, "nothing else is left"


def test_what_is_no_block_goes_with_either_side():
    assert pinned_cuts({"stages": [2, 2]}, NAMES, BLOCKS, 2) == ((0,), (3, 4))


def test_usual_cuts_give_way_to_pins_that_they_contradict():
    wanted, usual = ((0,), (3, 4)), ((0,), (4, 5))
    assert narrowed(wanted, usual) == ((0,), (4,))
    assert narrowed(((0,), (1,)), usual) == ((0,), (1,))
    assert narrowed((), usual) == usual


@pytest.mark.parametrize("counts", [[4], [2, 2], [1, 0, 3]])
def test_divisions_of_the_blocks_pass(counts):
    check_stages(counts, 4, 7)


@pytest.mark.parametrize("counts", [[2, 3], "4", [True, 3], [5, -1], [], [1, 1, 1, 1, 0, 0, 0, 0]])
def test_other_lists_are_refused(counts):
    with pytest.raises(UsageError, match="stages"):
        check_stages(counts, 4, 7)
