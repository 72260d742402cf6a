from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from autopar.cluster import Cluster
from autopar.cost.compute import gemm_seconds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", ROOT / "calibration/published.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["published"]


def test_writes_the_shipped_models(published, tmp_path):
    published.main(tmp_path)
    for machine in published.MACHINES:
        made = (tmp_path / f"{machine.name}.json").read_text()
        assert made == (ROOT / "cost_models" / f"{machine.name}.json").read_text()
        assert json.loads(made)["calibrated"] is False


def test_every_figure_has_a_source(published):
    rows = published.Figures().rows
    assert len(rows) > 50
    assert all(row["source"] and row["unit"] for row in rows)
    assert all(float(row["value"]) > 0 for row in rows if "step_error" not in row["figure"])


@pytest.mark.parametrize(("name", "best"), [("a100-80g", 271.2e12), ("h100-80g", 794.5e12)])
def test_products_stay_below_the_best_published_one(published, name, best):
    cluster = Cluster.load(name)
    for size in (512, 4096, 16384):
        rate = 2 * size**3 / gemm_seconds(cluster, size, size, size, "bfloat16")
        assert rate < best
    assert rate > 0.8 * best


def test_large_results_fill_the_device_better(published):
    sizes = [published.fill((n, n, 1024), 108) for n in (64, 512, 4096)]
    assert sizes == sorted(sizes)
    assert published.fill((4096, 4096, 64), 108) < published.fill((4096, 4096, 4096), 108)
