"""The verbs against stand-ins for the layers below; the real ones are tested end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from autopar import cli
from autopar.errors import InfeasiblePlanError, TraceError
from autopar.public_plan import load_plan


@pytest.fixture
def saved(sample_plan, tmp_path):
    path = tmp_path / "p.json"
    sample_plan.save(path)
    return str(path)


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module of the given functions in the place of a layer."""

    def put(name, **functions):
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)

    return put


@pytest.fixture
def planner(stand_in, sample_plan):
    """An ``autopar.api`` that returns the sample plan and remembers how it was called."""
    calls = []
    workload = SimpleNamespace(
        model="model",
        example_inputs=("x",),
        loss_fn=None,
        example_target=None,
        global_batch_size=32,
    )

    def plan(model, world_size, **options):
        calls.append((model, world_size, options))
        if "progress" in options:
            options["progress"](1, 2, 0.5, 0.4)
        return sample_plan

    stand_in("autopar.api", plan=plan, load_workload=lambda ref: workload)
    return calls


def fail_with(error):
    def plan(*_, **__):
        raise error

    return plan


def test_plan_passes_every_argument_on(planner, capsys):
    flags = "--precision fp32 --optimizer sgd --memory-limit 40GiB --pin tp=4 --pin schedule=gpipe"
    argv = ["plan", "toy:workload", "--world-size", "8", "--gap", "0.1", *flags.split()]
    assert cli.main([*argv, "--cluster", "cpu", "--time-limit", "5"]) == 0
    ((model, world_size, options),) = planner
    assert (model, world_size) == ("model", 8)
    options.pop("progress")
    assert options == {
        "example_inputs": ("x",),
        "loss_fn": None,
        "example_target": None,
        "cluster": "cpu",
        "global_batch_size": 32,
        "optimizer": "sgd",
        "precision": "fp32",
        "memory_limit": 40 * 1024**3,
        "pin": {"tp": 4, "schedule": "gpipe"},
        "gap": 0.1,
        "time_limit": 5.0,
    }
    captured = capsys.readouterr()
    assert captured.out.startswith("UNCALIBRATED")
    assert captured.err == ""


def test_plan_to_a_file_remembers_the_workload(planner, tmp_path, capsys):
    path = tmp_path / "out.json"
    argv = ["plan", "toy:workload", "--world-size", "8", "-o", str(path)]
    assert cli.main([*argv, "--global-batch-size", "128"]) == 0
    assert json.loads(path.read_text())["workload"] == "toy:workload"
    assert planner[0][2]["global_batch_size"] == 128
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"autopar emit {path}" in captured.err


def test_plan_json_is_the_file(planner, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main(["plan", "toy:w", "--world-size", "8", "--json", "-o", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InfeasiblePlanError("short by 3 GiB"), 1), (TraceError("no graph"), 2), (ValueError("x"), 3)],
)
def test_exit_codes(planner, monkeypatch, capsys, error, code):
    monkeypatch.setattr(sys.modules["autopar.api"], "plan", fail_with(error))
    monkeypatch.delenv("AUTOPAR_DEBUG", raising=False)
    assert cli.main(["plan", "toy:w", "--world-size", "8"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(error) in captured.err
    assert "Traceback" not in captured.err
    assert ("AUTOPAR_DEBUG=1" in captured.err) == (code == 3)


def test_debug_shows_the_traceback(planner, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["autopar.api"], "plan", fail_with(ValueError("x")))
    monkeypatch.setenv("AUTOPAR_DEBUG", "1")
    assert cli.main(["plan", "toy:w", "--world-size", "8"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(planner, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["autopar.api"], "plan", fail_with(KeyboardInterrupt()))
    assert cli.main(["plan", "toy:w", "--world-size", "8"]) == 130
    assert capsys.readouterr().err == "autopar: interrupted\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["plan", "toy:w"],
        ["plan", "toy:w", "--world-size", "0"],
        ["plan", "toy:w", "--world-size", "8", "--memory-limit", "lots"],
        ["plan", "toy:w", "--world-size", "8", "--pin", "tp"],
        ["emit", "p.json"],
    ],
)
def test_usage_errors_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: autopar" in capsys.readouterr().err


def test_show(saved, capsys):
    assert cli.main(["show", saved]) == 0
    assert f"autopar emit {saved}" in capsys.readouterr().out


def test_show_json_and_html(saved, tmp_path, capsys):
    page = tmp_path / "r.html"
    assert cli.main(["show", saved, "--json", "--html", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "Toy"
    assert page.read_text().startswith("<!doctype html>")


def test_show_trace(saved, tmp_path, capsys):
    trace = tmp_path / "t.json"
    assert cli.main(["show", saved, "--trace", str(trace)]) == 0
    assert {"X", "C", "s", "f"} <= {e["ph"] for e in json.loads(trace.read_text())["traceEvents"]}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {trace}" in captured.err


def test_unreadable_plan(tmp_path, capsys):
    assert cli.main(["show", str(tmp_path / "none.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(word in captured.err for word in ("expected:", "where:", "try:"))


def test_explain_plans_again_under_the_pins(planner, stand_in, saved, capsys):
    stand_in("autopar.workload", check_planned=lambda model, parameters: None)
    argv = [
        "explain",
        saved,
        "blocks.1",
        "--why-not",
        "recompute=full",
        "tp=4",
        "--why-not",
        "pp=4",
    ]
    assert cli.main([*argv, "--json"]) == 0
    assert [options["pin"] for _, _, options in planner] == [
        {"tp": 4, "sequence_parallel": False, "recompute": {"blocks.1": "full"}},
        {"tp": 2, "sequence_parallel": False, "pp": 4},
    ]
    found = json.loads(capsys.readouterr().out)
    assert found["layer"]["name"] == "blocks.1"
    assert [answer["asked"] for answer in found["why_not"]] == [
        {"recompute": "full", "tp": 4}, {"pp": 4},
    ]  # fmt: skip


def test_explain_without_a_question_plans_nothing(saved, capsys):
    assert cli.main(["explain", saved, "blocks.1"]) == 0
    assert "--why-not recompute=none" in capsys.readouterr().out
    assert cli.main(["explain", saved, "blocks.9"]) == 2


def test_diff(saved, sample_plan, tmp_path, capsys):
    other = tmp_path / "other.json"
    replace(sample_plan, microbatch_size=1).save(other)
    assert cli.main(["diff", saved, saved]) == 0
    assert "equal" in capsys.readouterr().out
    assert cli.main(["diff", saved, str(other), "--json"]) == 1
    expected = {"kind": "decision", "path": "microbatch_size", "first": 2, "second": 1}
    assert json.loads(capsys.readouterr().out) == [expected]


@pytest.mark.parametrize(
    ("flags", "model"), [([], "toy.py:workload"), (["--model", "other:f"], "other:f")]
)
def test_emit(saved, stand_in, capsys, flags, model):
    written = []
    stand_in(
        "autopar.emit",
        write_program=lambda plan, path, *, model: written.append((plan.plan_id, path, model)),
    )
    assert cli.main(["emit", saved, "-o", "train.py", "--json", *flags]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert written == [(data["plan_id"], "train.py", model)]
    assert "--nproc-per-node 8 train.py" in captured.err


def test_run(saved, stand_in, capsys):
    figures = {
        "step_seconds": 0.2,
        "losses": [2.0, 1.0],
        "peak_memory_bytes": 1024,
        "predicted_step_seconds": 0.1,
        "predicted_memory_bytes": 2048,
    }
    calls, checked = [], []

    def run_plan(plan, **options):
        calls.append(options)
        return SimpleNamespace(as_dict=lambda: figures)

    stand_in("autopar.run.launch", run_plan=run_plan)
    stand_in(
        "autopar.workload",
        load_workload=lambda path: SimpleNamespace(model=path),
        check_planned=lambda model, parameters: checked.append(model),
    )
    assert cli.main(["run", saved, "--steps", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == figures
    kept = json.loads(Path(saved).with_suffix(".measured.json").read_text(encoding="utf-8"))
    assert kept == {"plan_id": load_plan(saved).plan_id, **figures}
    assert calls[0] == {
        "workload": "toy.py:workload",
        "steps": 3,
        "data": None,
        "checkpoint": None,
        "checkpoint_every": None,
        "restarts": 0,
        "learning_rate": None,
        "nodes": 1,
        "timeout_seconds": 600.0,
        "observe": True,
    }
    assert cli.main(["run", saved, "--no-observe", "--restarts", "3"]) == 0
    assert not calls[1]["observe"]
    assert calls[1]["restarts"] == 3
    assert "Predicted against measured" in capsys.readouterr().out
    assert checked == ["toy.py:workload"] * 2


def test_run_needs_a_workload(sample_plan, tmp_path, capsys):
    replace(sample_plan, workload="").save(tmp_path / "p.json")
    assert cli.main(["run", str(tmp_path / "p.json")]) == 2
    assert "--workload" in capsys.readouterr().err


def test_calibrate(stand_in, tmp_path, capsys):
    path = tmp_path / "host.json"

    def calibrate(output, *, budget_seconds, ranks, progress):
        progress("gemm", 1, 2)
        output.write_text(json.dumps([budget_seconds, ranks]))

    stand_in("autopar.calibration", calibrate=calibrate)
    assert cli.main(["calibrate", "-o", str(path), "--budget", "5", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [5.0, None]
    assert "--cluster" in captured.err


def test_clusters(stand_in, capsys):
    cpu = SimpleNamespace(
        name="cpu",
        device="gloo",
        memory_bytes=2**30,
        devices_per_node=8,
        calibrated=True,
        description="this host",
    )
    stand_in(
        "autopar.cluster",
        known_clusters=lambda: ("cpu",),
        Cluster=SimpleNamespace(load=lambda name: cpu),
    )
    assert cli.main(["clusters", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [vars(cpu)]
    assert cli.main(["clusters"]) == 0
    assert "this host" in capsys.readouterr().out


def test_module_runs_and_stays_quiet_when_the_reader_leaves(saved):
    command = [sys.executable, "-m", "autopar", "show", saved]
    shell = f"{' '.join(command)} | head -n 1"
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        shell, shell=True, capture_output=True, text=True, timeout=60, env=env, check=False
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("autopar 0.")
