"""Errors and rank correlation."""

from __future__ import annotations

import numpy as np
import pytest

from autopar.validate.statistics import errors, ordered, spearman, spread


def test_errors_are_relative_to_what_was_measured():
    found = errors([1.1, 1.8], [1.0, 2.0])
    assert found.count == 2
    assert found.mean_absolute == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.0, abs=1e-12)
    assert found.p10 < 0 < found.p90
    assert found.rank is None  # of two runs


def test_rank_correlation_with_ties():
    """By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4."""
    a, b = np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])
    assert spearman(a, b) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(np.ones(4), a) is None


def test_order_counts_for_the_rank_and_scale_does_not():
    measured = [1.0, 2.0, 3.0, 4.0]
    assert errors([10 * m for m in measured], measured).rank == pytest.approx(1)
    assert errors([4.0, 3.0, 2.0, 1.0], measured).rank == pytest.approx(-1)


def test_repeats_differ_by_pairs():
    """2.0 stands twice for one run; 2.0, 2.1 and 2.2 make three pairs."""
    found = spread([[2.0, 2.1, 2.0, 2.2], [7.0]])
    assert found == pytest.approx([2.2 / 2.1 - 1, 0.05, 0.1])
    assert spread([[1.0], [2.0]]) == []


def test_only_pairs_beyond_the_noise_have_an_order():
    measured, predicted = [1.0, 1.05, 2.0, 3.0], [1.0, 0.9, 2.0, 1.9]
    assert ordered(predicted, measured, 0.0) == (6, 4)
    assert ordered(predicted, measured, 0.1) == (5, 4)
    assert ordered(predicted, measured, 9.0) == (0, 0)
