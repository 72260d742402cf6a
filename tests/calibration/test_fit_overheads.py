"""Overheads are recovered from the toys of a machine whose every overhead is known."""

from __future__ import annotations

import pytest

from autopar.calibration.fit_overheads import crowding, overheads
from autopar.calibration.points import CPU, OVERHEAD_PARAMETERS, OVERHEAD_UNITS, Point
from autopar.calibration.rows import Rows
from autopar.cluster import OVERHEADS, Cluster
from autopar.cost.collectives import Group, collective_seconds

DRAFT = Cluster.load("cpu")
FORWARD, BOTH, HOOKS, GATHER, REDUCE, AGAIN = 4e-4, 1e-3, 2e-4, 3e-4, 5e-4, 1e-4
ACTION, MODULE = 3e-4, 2e-4
COPIED = 2e9  # bytes per second


def toy_seconds(toy: str, size: int) -> float:
    """Of one layer, or of one parameter."""
    unit = BOTH + (HOOKS if toy not in ("both", "checkpoint") else 0.0) + size / 1e10
    copies = size / COPIED

    def wire(kind: str) -> float:
        return collective_seconds(DRAFT, kind, size, Group(2, 2))

    if toy.startswith("zero"):
        unit += REDUCE + wire("all_reduce") + copies
        gathers = {"zero0": 0, "zero2": 1, "zero3": 2}[toy]
        unit += gathers * (GATHER + wire("all_gather") + copies)
    own = {
        "forward": FORWARD, "checkpoint": unit + FORWARD + size / 1e10 + AGAIN,
        "read_plain": 1e-6, "read_split": 1e-4, "update_plain": 2e-6, "update_split": 3e-5,
        "clip": 1e-5, **pipelines(BOTH + size / 1e10),
    }  # fmt: skip
    return own.get(toy, unit)


def pipelines(both: float) -> dict[str, float]:
    """Steps of two stages, by hand, as parts of one per micro-batch.

    1f1b: every second micro-batch goes to and fro between the ranks. Zero bubble: the second rank
    is always busy, and its three modules' gradients are made apart.
    """
    m, wire = OVERHEAD_UNITS, collective_seconds(DRAFT, "send_recv", 512, Group(2, 2))
    apart = both + 3 * ACTION + 3 * MODULE
    return {
        "pipeline": ((m + 1) * (both + 2 * ACTION) + m * wire) / m,
        "pipeline_split": (FORWARD + ACTION + wire + m * apart) / m,
    }


@pytest.fixture
def rows(tmp_path):
    rows = Rows(tmp_path / "toys.csv", "ideal")
    for point in CPU.overhead_points():
        many = point.variant in ("clip", "read_plain", "read_split", "update_plain", "update_split")
        count = OVERHEAD_PARAMETERS if many else OVERHEAD_UNITS
        rows.add(point, count * toy_seconds(point.variant, point.shape[0]))
    return rows


def test_recovers_the_machine(rows):
    found = overheads(rows, DRAFT)
    assert set(found) == set(OVERHEADS)
    expected = {
        "shard_forward": HOOKS, "shard_gather": GATHER, "shard_reduce": REDUCE,
        "tp_parameter": 1e-4, "shard_parameter": 3e-5, "clip_parameter": 1e-5,
        "pipeline_action": ACTION, "split_module": MODULE,
    }  # fmt: skip
    for name, seconds in expected.items():
        assert found[name]["seconds"] == pytest.approx(seconds, rel=0.1), name
    assert found["shard_gather"]["bytes_per_second"] == pytest.approx(COPIED, rel=0.1)
    assert found["shard_reduce"]["bytes_per_second"] == pytest.approx(COPIED, rel=0.1)


def test_noise_never_makes_an_overhead_negative(tmp_path):
    rows = Rows(tmp_path / "toys.csv", "ideal")
    for number, point in enumerate(CPU.overhead_points()):
        rows.add(point, 1e-6 * (1 + number % 3))
    assert all(each["seconds"] >= 0 for each in overheads(rows, DRAFT).values())


@pytest.mark.parametrize(
    ("alone", "together", "cores", "expected"),
    [
        (0.08, 0.1, 2, {"slowdown": 0.25}),
        (0.1, 0.09, 2, {"slowdown": 0.0}),  # noise
        (0.08, 0.1, 1, {}),  # they took turns
        (0.08, 0.1, None, {}),  # devices of their own
    ],
)
def test_crowding(tmp_path, alone, together, cores, expected):
    rows = Rows(tmp_path / "toys.csv", "ideal")
    assert crowding(rows, cores) == {}
    for toy, seconds in (("alone", alone), ("together", together)):
        rows.add(Point("overheads", toy, (2048, 2)), seconds)
    assert crowding(rows, cores) == expected


def test_nothing_timed_is_nothing_found(tmp_path):
    assert overheads(Rows(tmp_path / "toys.csv", "ideal"), DRAFT) == {}
