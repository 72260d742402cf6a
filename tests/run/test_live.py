"""Bytes of live tensors."""

from __future__ import annotations

import torch

from autopar.run.live import PeakBytes


def test_every_storage_counts_once_while_it_lives():
    known = torch.empty(100)
    with PeakBytes([known, known[:50]]) as seen:
        assert seen.current == 400
        large = torch.empty(1000)
        view = large[10:]
        del large
        assert seen.current == 4400
        del view
        torch.empty(10)
    assert (seen.peak, seen.current) == (4400, 400)


def test_gradients_and_saved_activations_are_seen():
    """Forward keeps the result of exp, backward makes a gradient of x and one of the result."""
    x = torch.ones(1000, requires_grad=True)
    with PeakBytes([x]) as seen:
        y = x.exp()
        held = seen.current
        y.backward(torch.ones(1000))
    assert held == 8000
    assert 12000 <= seen.peak <= 20000
    assert x.grad is not None


def test_memory_that_is_taken_away_from_a_storage_is_gone():
    with PeakBytes([]) as seen:
        gathered = torch.empty(1000)
        gathered.untyped_storage().resize_(0)
        assert seen.current == 0
    assert seen.peak == 4000


def test_what_stands_for_another_device_counts_apart():
    seen = PeakBytes([])
    far = seen.elsewhere(torch.zeros)
    with seen:
        away, here = far(100), torch.zeros(25)
    assert (seen.peak, seen.away_peak) == (4 * len(here), 4 * len(away))
