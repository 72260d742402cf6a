from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar import plan_file
from autopar.errors import PlanFormatError
from autopar.plan import Plan


@pytest.fixture
def saved(sample_plan, tmp_path):
    path = tmp_path / "p.json"
    sample_plan.save(path)
    return path


def refused(path, match):
    with pytest.raises(PlanFormatError, match=match) as caught:
        Plan.load(path)
    error = caught.value
    assert error.expected
    assert error.hint
    assert str(path) in error.where
    return error


def rewrite(path, **changes):
    """Changes top-level fields and states the right hash, as a careful forger would."""
    data = json.loads(path.read_text()) | changes
    del data["sha256"]
    path.write_text(json.dumps({"sha256": plan_file.content_hash(data), **data}))


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -2, -500])
def test_truncated(saved, keep):
    saved.write_text(saved.read_text()[:keep].rstrip())
    if keep != -1:  # the last character is the line feed
        refused(saved, "not JSON")


@pytest.mark.parametrize("text", ["[]", "3", '"plan"', "null"])
def test_json_that_is_no_object(saved, text):
    saved.write_text(text)
    refused(saved, "a JSON")


def test_binary(saved):
    saved.write_bytes(b"\x80\x04pickle")
    refused(saved, "UTF-8")


def test_deeply_nested(saved):
    saved.write_text("[" * 100_000)
    refused(saved, "not JSON")


def test_missing(tmp_path):
    refused(tmp_path / "none.json", "cannot be read")


def test_directory(tmp_path):
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(saved, number):
    saved.write_text(re.sub(r'"gap": [0-9.]+', f'"gap": {number}', saved.read_text()))
    refused(saved, "not JSON")


def test_newer_schema_asks_for_an_upgrade(saved):
    newer = plan_file.SCHEMA_VERSION + 1
    rewrite(saved, schema_version=newer)
    assert "upgrade" in refused(saved, f"schema_version {newer}").hint


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_other_schema_versions(saved, version):
    rewrite(saved, schema_version=version)
    refused(saved, "schema_version")


def test_wrong_types_are_located(saved):
    data = json.loads(saved.read_text())
    data["layers"][2]["zero"] = "two"
    rewrite(saved, layers=data["layers"])
    assert "$.layers[2].zero" in refused(saved, "'two' is not of type 'integer'").where


def test_missing_and_unknown_fields(saved):
    rewrite(saved, extra=1)
    refused(saved, "extra")
    saved.write_text(json.dumps({"schema_version": plan_file.SCHEMA_VERSION}))
    refused(saved, "required")


def test_whole_floats_are_read_as_integers_where_declared(saved, sample_plan):
    rewrite(saved, world_size=16.0)
    assert Plan.load(saved) == sample_plan


def test_a_hand_edited_decision_is_detected(saved):
    text = saved.read_text()
    assert '"microbatch_size": 2' in text
    saved.write_text(text.replace('"microbatch_size": 2', '"microbatch_size": 4'))
    assert "--pin" in refused(saved, "sha256").hint


def test_reformatting_is_no_edit(saved, sample_plan):
    saved.write_text(json.dumps(json.loads(saved.read_text()), indent=8))
    assert Plan.load(saved) == sample_plan


def test_failed_write_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PlanFormatError, match="No space left"):
        plan_file.write_atomically(saved, "new")
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["p.json"]


def test_files_have_the_usual_mode(saved, tmp_path):
    (tmp_path / "other").write_text("")
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


@given(
    st.recursive(
        st.integers() | st.text(max_size=40),
        lambda child: st.lists(child) | st.dictionaries(st.text(), child),
        max_leaves=30,
    )
)
def test_layout_is_the_same_json(data):
    assert json.loads(plan_file.layout(data)) == data


def test_layout_opens_only_what_does_not_fit():
    text = plan_file.layout({"short": [1, 2], "long": ["x" * 60, "y" * 60]})
    assert '"short": [1, 2]' in text
    assert max(map(len, text.splitlines())) <= plan_file.LINE_LENGTH
