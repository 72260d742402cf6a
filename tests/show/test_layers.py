from __future__ import annotations

from dataclasses import replace

from autopar.plan import LayerPlan
from autopar.show.layers import layer_table, split_parameters


def test_one_deviant_layer_breaks_the_run(sample_plan):
    layers = list(sample_plan.layers)
    layers[1] = replace(layers[1], recompute="full")
    rows = layer_table(replace(sample_plan, layers=tuple(layers))).parts[0].rows
    assert [row[1] for row in rows[:3]] == ["blocks.0", "blocks.1", "blocks.2"]


def test_split_parameters_names_modules_once():
    placements = {"h.q.weight": ("Shard(0)",), "h.q.bias": ("Shard(0)",), "scale": ("Shard(1)",)}
    layer = LayerPlan("h", 0, placements, 0, "none")
    assert split_parameters(layer) == "Shard(0): q; Shard(1): scale"


def test_unsplit_layer_says_nothing():
    layer = LayerPlan("h", 0, {"h.weight": ("Replicate()",)}, 0, "none")
    assert split_parameters(layer) == ""
