"""Graphs that several tests plan on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from autopar.graph import Graph
from autopar.trace import trace

GRAPHS: dict[tuple[str, str], Graph] = {}


@contextmanager
def traced_once(name: str) -> Iterator[None]:
    """Inside, ``autopar.plan`` takes the graph that an earlier plan under ``name`` has traced.

    Tracing takes three quarters of a small model's plan, and plans that differ in devices, pins or
    cost model start from equal graphs, which are frozen. Model, inputs, loss and target are to be
    the same under one name; precisions may differ.
    """

    def once(*args: Any, precision: str, **kwargs: Any) -> Graph:
        key = name, precision
        if key not in GRAPHS:
            GRAPHS[key] = trace(*args, precision=precision, **kwargs)
        return GRAPHS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopar.planner.trace", once)
        yield
