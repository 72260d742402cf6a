from __future__ import annotations

import json
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest

from autopar.cluster import OVERHEADS, Cluster, known_clusters
from autopar.errors import CostModelError

SHIPPED = ("a100-40g", "a100-80g", "cpu", "h100-80g", "h100-96g", "h200-141g")


@pytest.fixture
def data():
    return deepcopy(Cluster.load("h100-80g").to_dict())


def test_shipped_models_are_known_and_valid():
    assert known_clusters() == SHIPPED
    for name in SHIPPED:
        cluster = Cluster.load(name)
        assert cluster.name == name
        assert cluster.calibrated == (name == "cpu")
        assert cluster.provenance


def test_loads_a_path_and_keeps_every_figure(tmp_path, data):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    loaded = Cluster.load(path)
    assert loaded == Cluster.load("h100-80g") == Cluster.load(str(path))
    assert hash(loaded) == hash(Cluster.load("h100-80g"))
    assert loaded.to_dict() == data


def test_hash_changes_with_any_figure(data):
    before = Cluster.from_dict(deepcopy(data))
    data["curves"]["gemm"]["float32"]["efficiency"][0][0][0] *= 0.5
    after = Cluster.from_dict(data)
    assert before.sha256 != after.sha256
    assert before != after
    assert len(after.sha256) == 64


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(CostModelError) as caught:
        Cluster.load("h9000")
    assert "h9000" in caught.value.found
    assert all(name in caught.value.expected for name in SHIPPED)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1', "\x00", '{"a": NaN}', '{"a": -Infinity}'])
def test_a_file_that_is_no_model(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(CostModelError, match="JSON"):
        Cluster.load(path)


def remove_curve(data):
    del data["curves"]["collectives"]["all_gather"]


def wrong_unit(data):
    curve = data["curves"]["collectives"]["all_reduce"][0]
    curve["time_us"] = curve.pop("seconds")


def teraflops(data):
    data["curves"]["gemm"]["bfloat16"]["peak_flops"] = 989.0


def gigabytes(data):
    data["memory_bytes"] = 80


def other_units(data):
    data["units"]["time"] = "us"


def negative(data):
    data["curves"]["elementwise"]["softmax"]["launch_seconds"] = -1e-6


def falling_sizes(data):
    data["curves"]["elementwise"]["softmax"]["bytes"].reverse()


def falling_seconds(data):
    data["curves"]["collectives"]["broadcast"][0]["seconds"].reverse()


def ragged(data):
    data["curves"]["gemm"]["float32"]["efficiency"][0][0].pop()


def too_short(data):
    data["curves"]["attention"]["float32"]["full_forward"]["efficiency"].pop()


def newer(data):
    data["schema_version"] = 2


def twice(data):
    curves = data["curves"]["collectives"]["all_reduce"]
    curves.append(curves[0])


def coreless(data):
    data |= {"device": "cpu", "cores_per_node": None}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_curve, "all_gather"),
        (wrong_unit, "time_us"),
        (teraflops, "989.0 is less than the minimum"),
        (gigabytes, "80 is less than the minimum"),
        (other_units, "'us'"),
        (negative, "-1e-06 is less than the minimum"),
        (falling_sizes, "increasing bytes"),
        (falling_seconds, "non-decreasing seconds"),
        (ragged, "shape None"),
        (too_short, "expected: shape"),
        (newer, "schema_version 2"),
        (twice, "2 curves of all_reduce for groups of 2, level node"),
        (coreless, "cores_per_node null"),
    ],
)
def test_damage_is_named(data, damage, said):
    damage(data)
    with pytest.raises(CostModelError) as caught:
        Cluster.from_dict(data, where="my.json")
    assert said in str(caught.value)
    assert caught.value.where.startswith("my.json")
    assert caught.value.hint


def fake_torch(monkeypatch, device):
    cuda = SimpleNamespace(is_available=lambda: device is not None, get_device_name=lambda: device)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (None, "cpu"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H200", "h200-141g"),
    ],
)
def test_default_is_what_this_host_has(monkeypatch, device, name):
    fake_torch(monkeypatch, device)
    assert Cluster.default().name == name


def test_default_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert Cluster.default().name == "cpu"


def test_default_does_not_guess_for_an_unknown_gpu(monkeypatch):
    fake_torch(monkeypatch, "Tesla V100")
    with pytest.raises(CostModelError, match="Tesla V100"):
        Cluster.default()


def test_peak_by_precision_and_by_dtype():
    cluster = Cluster.load("h100-80g")
    assert cluster.peak_flops("bf16") == cluster.peak_flops("bfloat16") == 989e12
    assert cluster.peak_flops("fp32") == 67e12
    with pytest.raises(CostModelError, match="int8"):
        cluster.peak_flops("int8")


def test_ranks_share_the_cores_of_a_cpu_host_only():
    cpu = Cluster.load("cpu")
    cores = cpu.cores_per_node
    assert cpu.oversubscription(1) == cpu.oversubscription(cores) == 1
    assert cpu.oversubscription(3 * cores) == 3
    assert cpu.contention(cores, 2 * cores) == 2
    assert cpu.contention(4 * cores, 4 * cores) == 1
    assert Cluster.load("h100-80g").oversubscription(512) == 1


def test_ranks_beside_others_compute_slower():
    data = deepcopy(Cluster.load("cpu").to_dict())
    data["cores_per_node"] = 4
    data["curves"]["crowding"] = {"slowdown": 0.25}
    cpu = Cluster.from_dict(data)
    assert cpu.computing_slowdown(1) == 1
    assert cpu.computing_slowdown(2) == cpu.computing_slowdown(4) == 1.25
    assert cpu.computing_slowdown(8) == 2.5
    del data["curves"]["crowding"]
    assert Cluster.from_dict(data).computing_slowdown(2) == 1
    assert Cluster.load("h100-80g").computing_slowdown(512) == 1


def test_fit_errors_are_those_of_measured_curves():
    assert Cluster.load("h100-80g").fit_error() == {}
    errors = Cluster.load("cpu").fit_error()
    assert {"gemm.float32", "attention.float32", "collectives.all_reduce"} <= errors.keys()
    assert all(0 <= error < 1 for error in errors.values())


def test_is_shown_in_a_line():
    shown = repr(Cluster.load("a100-80g"))
    assert "DGX A100" in shown
    assert len(shown) < 500


def test_overheads_are_a_fixed_part_and_what_is_copied(data):
    data["curves"]["overheads"] = {
        "shard_gather": {"seconds": 1e-3, "bytes_per_second": 1e9},
        "checkpoint": {"seconds": 2e-3},
    }
    cluster = Cluster.from_dict(data)
    assert cluster.overhead_seconds("shard_gather", 1e6) == pytest.approx(2e-3)
    assert cluster.overhead_seconds("checkpoint", 1e6) == pytest.approx(2e-3)
    assert cluster.overhead_seconds("op_forward") == 0.0
    with pytest.raises(KeyError):
        cluster.overhead_seconds("step")


@pytest.mark.parametrize("name", OVERHEADS)
def test_every_overhead_may_stand_in_a_file(data, name):
    data["curves"]["overheads"] = {name: {"seconds": 1e-3}}
    assert Cluster.from_dict(data).overhead_seconds(name) == 1e-3


@pytest.mark.parametrize(
    "found", [{"steps": {"seconds": 1e-3}}, {"checkpoint": {"seconds": 5.0}}, {"checkpoint": {}}]
)
def test_overheads_are_known_and_plausible(data, found):
    data["curves"]["overheads"] = found
    with pytest.raises(CostModelError, match="overheads"):
        Cluster.from_dict(data)


def test_step_errors_come_from_the_provenance(data):
    data["provenance"].pop("step_time", None)
    assert Cluster.from_dict(deepcopy(data)).step_error() == {}
    error = {"p10": -0.1, "p90": 0.08, "points": 20}
    data["provenance"]["step_time"] = {
        "source": "fitted to published runs", "date": "2026-11-24", "detail": "held out",
        "fit_error": None, "step_error": error,
    }  # fmt: skip
    assert Cluster.from_dict(data).step_error() == error


TILE = {"rows": 128, "columns": 128, "share": 1.0}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("overlap",), {"slowdown": 1.5}),
        (("overlap",), {}),
        (("dispatch",), {"op_us": 3}),
        (("dispatch",), {"op_seconds": -1e-6}),
        (("gemm", "bfloat16", "gradient_share"), 0),
        (("gemm", "bfloat16", "rounds"), {"multiprocessors": 100, "wasted": 0.5, "tiles": []}),
        (("gemm", "bfloat16", "rounds"), {"multiprocessors": 100, "wasted": 2, "tiles": [TILE]}),
        (("gemm", "bfloat16", "alignment"), {"elements": [8, 4], "efficiency": [0.5, 0.8]}),
        (("gemm", "bfloat16", "alignment"), {"elements": [4, 8], "efficiency": [0.5]}),
    ],
)
def test_bad_values_of_optional_curves(data, path, value):
    node = data["curves"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(CostModelError):
        Cluster.from_dict(data)
