from __future__ import annotations

import pytest

from autopar.errors import UsageError
from autopar.public_plan import Plan, load_plan


def test_wraps_the_same_data(sample_plan, tmp_path):
    public = Plan.of(sample_plan)
    assert public.plan_id == sample_plan.plan_id
    public.save(tmp_path / "p.json")
    assert load_plan(tmp_path / "p.json") == public
    assert public.mesh.tp == 2


def test_prints_as_a_table(sample_plan):
    text = str(Plan.of(sample_plan))
    assert text.startswith("UNCALIBRATED")
    assert "blocks.0 .. blocks.2 (3)" in text


def test_represents_itself_shortly(sample_plan):
    public = Plan.of(sample_plan)
    assert repr(public) == f"<Plan {public.plan_id} of Toy: pp=2, dp=4, tp=2, 1f1b>"


def test_html_for_notebooks(sample_plan):
    html = Plan.of(sample_plan)._repr_html_()
    assert html.startswith("<div")
    assert "<table>" in html


def test_emit_needs_a_model(sample_plan, tmp_path):
    from dataclasses import replace

    with pytest.raises(UsageError, match="no model"):
        Plan.of(replace(sample_plan, workload="")).emit(tmp_path / "train.py")
