"""Workloads: their inputs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopar.errors import UsageError
from autopar.workload import (
    Workload,
    as_workload,
    check_planned,
    load_workload,
    parameters_of,
)

X = torch.zeros(3, 4)
MODEL = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("example", "expected"),
    [((X, 1), ((X, 1), {})), ([X], ((X,), {})), (X, ((X,), {})), ({"x": X}, ((), {"x": X}))],
)
def test_examples(example, expected):
    work = Workload(MODEL, example)
    assert work.inputs() == expected
    assert work.batch_size() == 3


def test_nests():
    work = Workload(MODEL, ({"x": X, "scale": 0.5}, (None, X), "mean"))
    assert work.batch_size() == 3
    assert work.constants() == {"0.scale": 0.5, "1.0": None, "2": "mean"}
    assert Workload(MODEL, {"x": X, "flag": True}).constants() == {"flag": True}


@pytest.mark.parametrize("attribute", ["dummy_inputs", "example_input_array"])
def test_example_of_the_model(attribute):
    model = nn.Linear(4, 4)
    setattr(model, attribute, {"x": X} if attribute == "dummy_inputs" else X)
    assert Workload(model).batch_size() == 3


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "no example inputs"),
        ("text", "no example inputs"),
        ((X, torch.zeros(2)), "shapes"),
        ((torch.zeros(()),), "shapes"),
        ((), "shapes"),
        ({"flag": True}, "shapes"),
        ({"x": X, "more": [torch.zeros(2)]}, "shapes"),
    ],
)
def test_refused_examples(example, message):
    with pytest.raises(UsageError, match=message) as caught:
        Workload(MODEL, example).inputs()
    assert caught.value.where == "example_inputs"
    assert caught.value.hint


def test_mappings():
    work = as_workload({"model": MODEL, "example_inputs": (X,), "global_batch_size": 6}, "here")
    assert work == Workload(MODEL, (X,), global_batch_size=6)
    assert as_workload(work, "here") is work


@pytest.mark.parametrize(
    "value", [None, {}, {"example_inputs": (X,)}, {"model": MODEL, "epochs": 3}]
)
def test_refused_mappings(value):
    with pytest.raises(UsageError) as caught:
        as_workload(value, "file.py:make")
    assert caught.value.where == "file.py:make"
    assert "example_inputs" in caught.value.expected


def test_loading_by_module_and_by_file(tmp_path, monkeypatch):
    (tmp_path / "my_workload_module.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return {'model': torch.nn.Linear(2, 2), 'example_inputs': (torch.ones(2, 2),)}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_workload("my_workload_module:make").batch_size() == 2
    assert load_workload(f"{tmp_path}/my_workload_module.py:make").batch_size() == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "names no function"),
        (":make", "names no function"),
        ("no_such_module_anywhere:make", "no module"),
        ("no/such/file.py:make", "no file"),
        ("json:no_such_function", "no function"),
        ("json:decoder", "no function"),
        ("platform:python_version", "returned str"),
    ],
)
def test_refused_paths(path, message):
    with pytest.raises(UsageError, match=message):
        load_workload(path)


def test_check_planned_names_the_first_difference():
    planned = parameters_of(nn.Linear(2, 3))
    check_planned(nn.Linear(2, 3), planned)
    with pytest.raises(UsageError, match=r"parameter weight \[4, 2\] float32") as error:
        check_planned(nn.Linear(2, 4), planned)
    assert "weight [3, 2] float32" in error.value.expected
    with pytest.raises(UsageError, match="parameter nothing"):
        check_planned(nn.Linear(2, 3, bias=False), planned)
