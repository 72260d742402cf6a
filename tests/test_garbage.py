import gc
import weakref

import pytest

from autopar.garbage import spare_what_exists


class Cycle:
    """Nothing but a collection removes it."""

    def __init__(self):
        self.own = self


def test_collects_what_is_made_meanwhile_and_nothing_else():
    before = Cycle()
    kept = weakref.ref(before)
    with spare_what_exists():
        del before
        made = weakref.ref(Cycle())
        gc.collect()
        assert made() is None
        assert kept() is not None
    gc.collect()
    assert kept() is None


def test_leaves_what_others_have_frozen():
    gc.freeze()
    try:
        with spare_what_exists():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_thaws_after_an_error():
    with pytest.raises(ValueError, match="no plan"), spare_what_exists():
        raise ValueError("no plan")
    assert not gc.get_freeze_count()
