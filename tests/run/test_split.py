"""How recorded time divides into computing and communication."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.profiler import profile

from autopar.run.split import Split, split, total, union


def event(name, start, end, thread=1, device="CPU"):
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, time_range=span, thread=thread, device_type=SimpleNamespace(name=device)
    )


def test_spans_that_touch_or_overlap_are_one():
    assert union([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert total(union([(0, 2), (1, 3)])) == 3


def test_on_a_cpu_operators_of_the_main_thread_compute():
    """2 s of products, a collective of 3 s of which they hide one, gloo's own copies, 1 s idle."""
    second = 1_000_000
    events = [
        event("aten::mm", 0, 2 * second),
        event("aten::resolve_conj", 0, second),
        event("autograd::engine::evaluate_function: X", 0, 4 * second),
        event("c10d::allreduce_", 2 * second, 4 * second),
        event("gloo:all_reduce", second, 4 * second, thread=7),
        event("aten::copy_", 3 * second, 4 * second, thread=7),
    ]
    assert split(events, 5.0) == Split(2.0, 2.0, 1.0)


def test_on_a_gpu_kernels_count():
    gpu = "CUDA"
    events = [
        event("aten::mm", 0, 100_000),
        event("sm90_gemm", 0, 1_000_000, device=gpu),
        event("ncclDevKernel_AllReduce", 500_000, 2_000_000, device=gpu),
    ]
    assert split(events, 2.5) == Split(1.0, 1.0, 0.5)


def test_what_the_profiler_records_of_a_product():
    """Most of a step of nothing but products is computing; nothing communicates."""
    x = torch.rand(600, 600)
    with profile() as profiler:
        for _ in range(5):
            x @ x
    events = profiler.events()
    seconds = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
    found = split(events, seconds * 1e-6)
    assert found.communicating == 0
    assert found.computing > 0.5 * seconds * 1e-6
    assert found.computing + found.rest == pytest.approx(seconds * 1e-6)


def test_nothing_recorded_is_all_rest():
    assert split([], 1.0) == Split(0.0, 0.0, 1.0)
