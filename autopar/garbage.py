"""Keeps the garbage collector from what is there before a plan is made and stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# What Python 3.12 freezes itself when it starts, 375 objects, is fewer. Whoever freezes has more:
# the modules of the bare interpreter are thousands.
OWN_OBJECTS = 1000


@contextlib.contextmanager
def spare_what_exists() -> Iterator[None]:
    """Collections pass over all objects that exist now, most of them torch's and the model's.

    There are hundreds of thousands, and going through them takes longer than many a search. What
    is made meanwhile is collected as ever. Where somebody has frozen objects before, theirs stay
    frozen and nothing is done.
    """
    if gc.get_freeze_count() > OWN_OBJECTS:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
