"""The two verbs: defaults of ``plan``, and what ``parallelize`` checks first."""

from __future__ import annotations

import inspect

import pytest

import autopar
from autopar.api import parallelize
from autopar.cluster import Cluster
from autopar.errors import CostModelError, UsageError
from tests.zoo import gpt, llama, tokens

NAMES = [
    "model", "world_size", "example_inputs", "loss_fn", "example_target", "cluster",
    "global_batch_size", "optimizer", "precision", "memory_limit", "pin", "gap", "time_limit",
    "progress",
]  # fmt: skip


def test_arguments_in_the_documented_order():
    parameters = inspect.signature(autopar.plan).parameters
    plain = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert plain == NAMES


def test_clusters_by_name_and_by_object_are_the_same():
    inputs = {"input_ids": tokens(), "labels": tokens()}
    named, given = (
        autopar.plan(llama(), 1, inputs, cluster=cluster, global_batch_size=2)
        for cluster in ("h200-141g", Cluster.load("h200-141g"))
    )
    assert named.cluster == given.cluster
    assert named.cluster.name == "h200-141g"
    assert named.prediction == given.prediction
    assert named.precision == "bf16"
    assert named.memory_limit_bytes == Cluster.load("h200-141g").memory_bytes


def test_memory_limit_may_be_a_fraction():
    inputs = {"input_ids": tokens(), "labels": tokens()}
    plan = autopar.plan(llama(), 1, inputs, cluster="h100-80g", memory_limit=0.5)
    assert plan.memory_limit_bytes == Cluster.load("h100-80g").memory_bytes // 2
    assert plan.global_batch_size == 2


def test_unknown_cluster():
    with pytest.raises(CostModelError) as caught:
        autopar.plan(gpt(), 1, (tokens(),), cluster="no-such-cluster")
    assert "h100-80g" in caught.value.expected


def test_progress_is_told_while_the_search_runs():
    seen = []
    inputs = {"input_ids": tokens(), "labels": tokens()}
    autopar.plan(llama(), 2, inputs, cluster="h100-80g", global_batch_size=4,
                 progress=lambda *values: seen.append(values))  # fmt: skip
    assert seen
    done, totals, best, bounds = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert len(set(totals)) == 1
    assert done[-1] <= totals[-1]
    assert bounds[-1] <= best[-1] * (1 + 1e-9)


@pytest.mark.parametrize("ranks", ["3", None])
def test_parallelize_needs_the_planned_number_of_ranks(ranks, sample_plan, monkeypatch):
    if ranks is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(UsageError, match=f"{ranks or 1} ranks") as caught:
        parallelize(gpt(), sample_plan)
    assert "--nproc-per-node 16" in caught.value.hint
    assert caught.value.where == "WORLD_SIZE"
