"""The command line: one verb each, data on stdout with ``--json``, errors without tracebacks.

Exit codes: 0 ok, 1 infeasible or different, 2 usage or unreadable input, 3 internal error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from autopar import __version__
from autopar import cli_arguments as arguments
from autopar.errors import AutoparError, InfeasiblePlanError, UsageError
from autopar.plan_file import layout, write_atomically
from autopar.public_plan import Plan, load_plan
from autopar.show import diff, report, to_html
from autopar.show.clusters import clusters_report
from autopar.show.diff import diff_report
from autopar.show.measured import measured_report
from autopar.show.progress import ProgressDisplay
from autopar.show.report import Report, launch_command
from autopar.show.text import print_report
from autopar.show.trace import to_trace

OK, DIFFERS, USAGE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130


# --- verbs ---


def plan_verb(args: Namespace) -> int:
    """``autopar plan``: the plan as a table on stdout, or in the file given with ``-o``."""
    from autopar import api  # here: torch takes seconds to import, and most verbs do without

    workload = api.load_workload(args.workload)
    with ProgressDisplay(f"planning {args.workload}") as display:
        found = api.plan(
            workload.model,
            args.world_size,
            example_inputs=workload.example_inputs,
            loss_fn=workload.loss_fn,
            example_target=workload.example_target,
            cluster=args.cluster,
            global_batch_size=args.global_batch_size or workload.global_batch_size,
            optimizer=args.optimizer,
            precision=args.precision,
            memory_limit=args.memory_limit,
            pin=arguments.pins(args.pin) or None,
            gap=args.gap,
            time_limit=args.time_limit,
            progress=display.plan_progress,
        )
    _deliver(replace(Plan.of(found), workload=args.workload), args)
    return OK


def _deliver(plan: Plan, args: Namespace) -> None:
    if args.output:
        plan.save(args.output)
    table = report(plan, args.output or "plan.json")
    _say(table, to_stdout=not (args.json or args.output))
    if args.json:
        print(plan.to_json(), end="")


def show_verb(args: Namespace) -> int:
    """``autopar show``: a plan file as a table, as JSON, as a page or as a trace of its step."""
    plan = load_plan(args.plan)
    table = report(plan, args.plan)
    if args.html:
        write_atomically(args.html, to_html(table))
        _tell(f"wrote {args.html}")
    if args.trace:
        write_atomically(args.trace, json.dumps(to_trace(plan)) + "\n")
        _tell(f"wrote {args.trace}\nnext:  open it in ui.perfetto.dev or chrome://tracing")
    if args.json:
        print(plan.to_json(), end="")
    elif not (args.html or args.trace):
        _say(table, to_stdout=True)
    return OK


def explain_verb(args: Namespace) -> int:
    """``autopar explain``: why a layer is as it is, and what something else would cost."""
    from autopar.explain import alternative, check_asked, find_layer
    from autopar.show.explain import explain_report

    plan = load_plan(args.plan)
    layer = find_layer(plan, args.layer)
    questions = [dict(asked) for asked in args.why_not]
    for asked in questions:
        check_asked(plan, layer, asked)
    make = _replanner(plan, args) if questions else None
    others = [alternative(plan, layer, asked, make) for asked in questions if make]
    if args.json:
        plans = [other.plan.prediction if other.plan else None for other in others]
        answers = [
            {"asked": other.asked, "refused": other.refused, "prediction": found and asdict(found)}
            for other, found in zip(others, plans, strict=True)
        ]
        _dump({"layer": asdict(layer), "why_not": answers})
    else:
        _say(explain_report(plan, layer, others, args.plan), to_stdout=True)
    return OK


def _replanner(plan: Plan, args: Namespace) -> Callable[[dict[str, Any]], Plan]:
    """A function that plans the same again under other pins."""
    from autopar import api
    from autopar.workload import check_planned

    if plan.kinds:
        raise UsageError("a plan for devices of two kinds", expected="devices of one kind",
                         where="--why-not", hint="autopar plan ... --pin KEY=VALUE")  # fmt: skip
    workload = api.load_workload(_workload_of(plan, args, "explain"))
    optimizer: Any = arguments.optimizer(plan.optimizer)
    check_planned(workload.model, plan.parameters)

    def make(pins: dict[str, Any]) -> Plan:
        found = Plan.of(api.plan(
            workload.model, plan.world_size, example_inputs=workload.example_inputs,
            loss_fn=workload.loss_fn, example_target=workload.example_target,
            cluster=args.cluster or plan.cluster.name, global_batch_size=plan.global_batch_size,
            optimizer=optimizer, precision=plan.precision,
            memory_limit=plan.memory_limit_bytes, pin=pins, time_limit=args.time_limit,
        ))  # fmt: skip
        if found.cluster.sha256 != plan.cluster.sha256:
            raise UsageError(
                f"cost model {found.cluster.name} with hash {found.cluster.sha256[:12]}",
                expected=f"that of the plan, {plan.cluster.sha256[:12]}", where="--cluster",
                hint="make the plan again, or name the file that it was made with",
            )  # fmt: skip
        return found

    return make


def _workload_of(plan: Plan, args: Namespace, verb: str) -> str:
    """What the command names, or the plan.

    Raises:
        UsageError: neither does.
    """
    workload: str = args.workload or plan.workload
    if not workload:
        raise UsageError(
            "a plan that does not know its model",
            expected="--workload MODULE:FUNCTION",
            where=args.plan,
            hint=f"autopar {verb} {args.plan} --workload MODULE:FUNCTION",
        )
    return workload


def diff_verb(args: Namespace) -> int:
    """``autopar diff``: what differs between two plans; the exit code is 1 if anything does."""
    differences = diff(load_plan(args.first), load_plan(args.second))
    if args.json:
        _dump([vars(difference) for difference in differences])
    else:
        _say(diff_report(differences, (args.first, args.second)), to_stdout=True)
    return DIFFERS if differences else OK


def emit_verb(args: Namespace) -> int:
    """``autopar emit``: the stand-alone program of a plan."""
    plan = load_plan(args.plan)
    plan.emit(args.output, model=args.model)
    if args.json:
        _dump({"program": args.output, "plan_id": plan.plan_id, "world_size": plan.world_size})
    _tell(f"wrote {args.output}\nnext:  {launch_command(plan, args.output)}")
    return OK


def run_verb(args: Namespace) -> int:
    """``autopar run``: trains a few steps on this host, predicted against measured."""
    plan = load_plan(args.plan)
    workload = _workload_of(plan, args, "run")
    from autopar.run.launch import run_plan
    from autopar.workload import check_planned, load_workload

    check_planned(load_workload(workload).model, plan.parameters)
    result = run_plan(
        plan,
        workload=workload,
        steps=args.steps,
        data=args.data,
        checkpoint=args.checkpoint,
        checkpoint_every=args.checkpoint_every,
        restarts=args.restarts,
        learning_rate=args.lr,
        nodes=args.nodes,
        timeout_seconds=args.timeout,
        observe=args.observe,
    ).as_dict()
    if args.json:
        _dump(result)
    else:
        _say(measured_report(result, f"{plan.model}, plan {plan.plan_id}"), to_stdout=True)
    beside = Path(args.plan).with_suffix(".measured.json")
    write_atomically(beside, layout({"plan_id": plan.plan_id, **result}) + "\n")
    return OK


def calibrate_verb(args: Namespace) -> int:
    """``autopar calibrate``: measures this host and writes its cost model."""
    from autopar.calibration import calibrate

    with ProgressDisplay("calibrating") as display:
        calibrate(
            args.output,
            budget_seconds=args.budget,
            ranks=args.ranks,
            progress=display.labelled,
        )
    if args.json:
        print(args.output.read_text(encoding="utf-8"), end="")
    _tell(f"wrote {args.output}\nnext:  autopar plan ... --cluster {args.output}")
    return OK


def validate_verb(args: Namespace) -> int:
    """``autopar validate``: published runs against predictions."""
    from autopar.show.validation import validation_report
    from autopar.validate.validate import summary, validate

    label = "pricing published runs"
    with ProgressDisplay(label) as display:
        judged, refused = validate(
            args.tables, lambda done, total: display.labelled(label, done, total)
        )
    found = summary(judged, refused)
    if args.json:
        _dump(found)
    else:
        _say(validation_report(found), to_stdout=True)
    return OK


def clusters_verb(args: Namespace) -> int:
    """``autopar clusters``: the cost models known by name."""
    from autopar.cluster import Cluster, known_clusters

    fields = (
        "name", "device", "memory_bytes", "devices_per_node", "calibrated", "description",
    )  # fmt: skip
    found = map(Cluster.load, known_clusters())
    rows = [{field: getattr(cluster, field) for field in fields} for cluster in found]
    if args.json:
        _dump(rows)
    else:
        _say(clusters_report(rows), to_stdout=True)
    return OK


# --- the table of verbs ---

Verb = tuple[Callable[[Namespace], int], str, Callable[[ArgumentParser], None]]
VERBS: dict[str, Verb] = {
    "plan": (plan_verb, "find the fastest plan that fits", arguments.plan_arguments),
    "show": (show_verb, "print a plan", arguments.show_arguments),
    "explain": (
        explain_verb,
        "say why a layer is as it is, and why not otherwise",
        arguments.explain_arguments,
    ),
    "diff": (diff_verb, "compare two plans", arguments.diff_arguments),
    "emit": (emit_verb, "write the training program of a plan", arguments.emit_arguments),
    "run": (run_verb, "train a few steps, predicted against measured", arguments.run_arguments),
    "calibrate": (
        calibrate_verb,
        "measure this host into a cost model",
        arguments.calibrate_arguments,
    ),
    "validate": (
        validate_verb,
        "price published runs and print how wrong the prices are",
        arguments.validate_arguments,
    ),
    "clusters": (clusters_verb, "list the cost models known by name", arguments.clusters_arguments),
}


def build_parser() -> ArgumentParser:
    """The parser of all verbs; each sets ``verb`` to its function."""
    parser = ArgumentParser(
        prog="autopar",
        description="Plans how to train a PyTorch model on many devices and writes the program.",
        epilog="AUTOPAR_DEBUG=1 shows the traceback of every error.",
    )
    parser.add_argument("--version", action="version", version=f"autopar {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, (verb, summary, add_arguments) in VERBS.items():
        child = verbs.add_parser(name, help=summary, description=summary[:1].upper() + summary[1:])
        add_arguments(child)
        child.add_argument("--json", action="store_true", help="data on stdout, text on stderr")
        child.set_defaults(verb=verb)
    return parser


# --- output and errors ---


def _say(table: Report, *, to_stdout: bool) -> None:
    console = Console(stderr=not to_stdout)
    # A pipe has no width: wide enough for every table, so that lines stay whole for grep.
    print_report(
        table, console if console.is_terminal else Console(stderr=not to_stdout, width=160)
    )


def _tell(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(text))


def _dump(data: Any) -> None:
    print(json.dumps(data, indent=2, default=str))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        code: int = args.verb(args)
        sys.stdout.flush()
        return code
    except AutoparError as error:
        _show_traceback()
        print(f"autopar: {error}", file=sys.stderr)
        return DIFFERS if isinstance(error, InfeasiblePlanError) else USAGE
    except KeyboardInterrupt:
        print("autopar: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough; keep the exit from flushing once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # the boundary of the program
        return _internal(error)


def _show_traceback() -> bool:
    debug = os.environ.get("AUTOPAR_DEBUG", "") not in ("", "0")
    if debug:
        traceback.print_exc()
    return debug


def _internal(error: Exception) -> int:
    hint = "" if _show_traceback() else "; AUTOPAR_DEBUG=1 shows the traceback"
    lines = str(error).splitlines() or [""]
    print(f"autopar: internal error: {type(error).__name__}: {lines[0]}{hint}", file=sys.stderr)
    return INTERNAL
