"""The fixture ``ranks(n)``: run a function on n gloo ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    # `tests` is no package, and pytest's importlib mode leaves sys.path alone.
    sys.path.insert(0, str(ROOT))

from tests.multiprocess.pool import Pool  # noqa: E402

# What most programs and models import beside torch. `transformers` alone takes a rank as long as
# its training steps do.
PRELOAD = ("autopar.run.whole", "tests.multiprocess.models", "transformers",
           "transformers.models.gpt2.modeling_gpt2",
           "transformers.models.llama.modeling_llama")  # fmt: skip


class Ranks:
    """``run(function, *args, timeout=60.0, **kwargs)`` gives the list of results by rank."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.run = partial(pool.run, size)


@pytest.fixture(scope="session")
def ranks() -> Callable[[int], Ranks]:
    """``ranks(n)`` for any n."""
    return partial(Ranks, Pool(ROOT, PRELOAD))
