"""Fits the cost models of machines nobody measured to the step times of published runs.

    python calibration/fit_published.py            # about ten minutes; writes fitted.csv
    python calibration/fit_published.py vtrain-single nanotron     # single fits; others stay
    python calibration/fit_published.py reserve    # what plans reserve of a device's memory
    python calibration/published.py                # writes cost_models/*.json from it

Every parameter has a physical meaning, and starts from a published figure or a stated guess, to
which a weak prior ties it. Machines are fitted to runs of PyTorch itself (llm-foundry's FSDP);
what the kernels of an older system, or another host and network, reach relative to that is
fitted to other rows of the same source and kept apart (``autopar/validate/fitted.json``). Which
rows are fitted is decided by model, so that the rest is held out: see ``JUDGED``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import published  # noqa: E402  (the script beside this one)

from autopar.cluster import Cluster  # noqa: E402
from autopar.plan_file import write_atomically  # noqa: E402
from autopar.validate.price import Prices  # noqa: E402
from autopar.validate.runs import InexpressibleError, Run, read_run  # noqa: E402
from autopar.validate.systems import FITTED, Environment  # noqa: E402
from autopar.validate.table import read_table  # noqa: E402

Vector = NDArray[np.float64]
TABLES = ("vtrain", "llmfoundry", "nanotron", "bigscience")
# Largest residual that counts in full: rows beyond it may be wrong, so they pull no harder.
OUTLIER = 0.15
PRIOR = 2e-3


@dataclass(frozen=True)
class Fit:
    """One fit: what is free, where it starts, what it may not exceed, and which rows count.

    ``environment`` names where what is of the source's own kernels, ``KERNELS``, is kept if the
    rest are figures of the machine.
    """

    name: str
    start: Mapping[str, float]
    most: Mapping[str, float]
    rows: Callable[[Run], bool]
    environment: str = ""

    def split(self, values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """The figures of the machine, and those of the source's environment."""
        own = KERNELS if self.environment else tuple(values)
        inside = {name: value for name, value in values.items() if name in own}
        return {name: value for name, value in values.items() if name not in own}, inside


# Relative to FlashAttention-2 as published. llm-foundry adds position biases in the kernel, on
# A100 in one written in Triton.
KERNELS = ("attention_forward", "attention_backward")
MACHINE = {
    "sustained_gemm": 0.87, "gradient_share": 0.85, "rounds_wasted": 0.5, "pipeline_depth": 100.0,
    "attention_forward": 0.7, "attention_backward": 0.7, "attention_half": 400.0,
    "memory_efficiency": 0.85, "network_share": 0.8, "overlap_slowdown": 0.5,
}  # fmt: skip
MOST = {
    "sustained_gemm": 1.0, "gradient_share": 1.0, "attention_forward": 1.0,
    "attention_backward": 1.0, "memory_efficiency": 1.0, "network_share": 1.0,
    "overlap_slowdown": 1.0, "node_links": 1.0, "memory": 1.2,
}  # fmt: skip
SYSTEM = {
    "products": 0.95, "memory": 1.0, "dispatch_seconds": 6e-5, "dispatch_whole_node": 1.0,
    "node_links": 0.8, "network": 0.8,
}  # fmt: skip
# Its gradients are reduced by DistributedDataParallel, behind which nothing waits; forward products
# of its shapes run at the best published rate already.
NANOTRON = {
    "products": 0.95, "memory": 1.0, "node_links": 0.8, "network": 0.8, "overlap_slowdown": 0.5,
}  # fmt: skip


def _model(run: Run) -> str:
    return run.row.text("model")


def _source(run: Run, text: str) -> bool:
    return text in run.row.text("source")


def _foundry(run: Run, gpu: str) -> bool:
    return gpu in run.machine.gpu and _source(run, "llm-foundry")


# Rows that are held out: whole models, or shapes where a source has only one name.
JUDGED: dict[str, Callable[[Run], bool]] = {
    "llmfoundry": lambda run: _model(run) in ("MPT-350m", "MPT-1b", "MPT-13b", "MPT-70b"),
    "vtrain": lambda run: run.layers in (16, 24) or run.shape.hidden == 8192,
    "bigscience": lambda run: run.layers not in (72, 78),
    "nanotron": lambda run: "3.57B" not in _model(run) and "8.86B" not in _model(run),
}


def is_judged(run: Run) -> bool:
    """Whether a row is held out of every fit."""
    return JUDGED[Path(run.row.table).stem](run)


FITS = (
    Fit("a100-80g", MACHINE, MOST, lambda r: _foundry(r, "A100"), "llm-foundry-a100"),
    Fit("vtrain-single", SYSTEM, MOST, lambda r: _source(r, "ground_truth_single")),
    Fit("vtrain-multi", SYSTEM, MOST, lambda r: _source(r, "ground_truth_multi")),
    Fit("bigscience", SYSTEM, MOST, lambda r: _source(r, "bigscience")),
    Fit("h100-80g", MACHINE, MOST, lambda r: _foundry(r, "H100"), "llm-foundry-h100"),
    Fit("nanotron", NANOTRON, MOST | {"products": 1.0}, lambda r: _source(r, "nanotron")),
)
DEVICE = {"nanotron": "h100-80g", "h100-80g": "h100-80g"}
# Rows of a fit are thinned out to at most this many, evenly along the table.
ROWS = 40


def runs() -> list[Run]:
    """Every row with a step time of ten milliseconds or more that can be expressed."""
    found = []
    for table in TABLES:
        for row in read_table(HERE / "published" / f"{table}.csv"):
            try:
                run = read_run(row)
            except InexpressibleError:
                continue
            if run.measured_seconds and run.measured_seconds >= 0.01:
                found.append(run)
    return found


def fitted_figures() -> dict[str, dict[str, float]]:
    """What the last fit found for each machine."""
    found: dict[str, dict[str, float]] = {}
    for row in published.read_rows(HERE / "published" / "fitted.csv"):
        found.setdefault(row["cluster"], {})[row["figure"]] = float(row["value"])
    return found


class Fitter:
    """Prices rows under parameters that are being fitted; traces and shardings are kept."""

    def __init__(self) -> None:
        self.prices = Prices({})
        self.figures = fitted_figures()
        self.machines = {machine.name: machine for machine in published.MACHINES}

    def cluster(self, name: str, fitted: Mapping[str, float]) -> Cluster:
        """A cost model with these figures."""
        figures = published.Figures(fitted=fitted)
        return Cluster.from_dict(published.model(figures, self.machines[name]))

    def residuals(self, fit: Fit, values: Mapping[str, float], rows: Sequence[Run]) -> Vector:
        """Logarithms of predicted over measured seconds."""
        device = DEVICE.get(fit.name, "a100-80g")
        machine, inside = fit.split(values)
        own = self.cluster(device, machine or self.figures[device])
        environment = {fit.environment or fit.name: Environment(**inside)}
        prices = self.prices.on({device: own}, environments=environment)
        seconds = [prices.price(run).seconds for run in rows]
        return np.log(seconds) - np.log([float(run.measured_seconds or 1) for run in rows])

    def solve(
        self, fit: Fit, rows: Sequence[Run], last: Mapping[str, float], rounds: int = 8
    ) -> dict[str, float]:
        """Levenberg and Marquardt on the logarithms of the parameters, robust, with a prior.

        It begins where the last fit ended.
        """
        names = list(fit.start)
        origin = np.log([fit.start[name] for name in names])
        most = np.log([fit.most.get(name, 1e9) for name in names])
        begin = np.log([last.get(name, fit.start[name]) for name in names])
        point, damping = np.minimum(begin, most), 1e-2

        def at(x: Vector) -> dict[str, float]:
            return {name: float(value) for name, value in zip(names, np.exp(x), strict=True)}

        def loss(x: Vector, residual: Vector) -> float:
            size = np.abs(residual)
            robust = np.where(size > OUTLIER, 2 * OUTLIER * size - OUTLIER**2, size**2)
            return float(np.mean(robust) + PRIOR * np.mean((x - origin) ** 2))

        residual = self.residuals(fit, at(point), rows)
        best = loss(point, residual)
        for _ in range(rounds):
            slope = self._slope(fit, at, point, residual, rows)
            weight = np.minimum(1.0, OUTLIER / np.maximum(np.abs(residual), 1e-9)) / len(rows)
            curvature = slope.T @ (weight[:, None] * slope) + PRIOR / len(names) * np.eye(
                len(names)
            )
            gradient = slope.T @ (weight * residual) + PRIOR / len(names) * (point - origin)
            before = best
            for _ in range(6):
                damped = curvature + damping * np.diag(np.diag(curvature))
                step = np.clip(-np.linalg.solve(damped, gradient), -0.7, 0.7)
                trial = np.minimum(point + step, most)
                trial_residual = self.residuals(fit, at(trial), rows)
                value = loss(trial, trial_residual)
                if value < best:
                    point, residual, best, damping = trial, trial_residual, value, damping / 5
                    break
                damping *= 6
            print(f"  {best:.5f}", {k: float(f"{v:.3g}") for k, v in at(point).items()}, flush=True)
            if before - best < 2e-3 * before:
                break
        return at(point)

    def _slope(
        self, fit: Fit, at: Callable[[Vector], dict[str, float]], point: Vector,
        residual: Vector, rows: Sequence[Run],
    ) -> Vector:  # fmt: skip
        columns = []
        for j in range(len(point)):
            moved = point.copy()
            moved[j] -= 0.02
            columns.append((residual - self.residuals(fit, at(moved), rows)) / 0.02)
        return np.array(columns).T


def main() -> None:
    """Fits everything in turn and writes the results."""
    everything = runs()
    fitter = Fitter()
    environments = json.loads(FITTED.read_text())
    only = set(sys.argv[1:])
    for fit in FITS:
        if only and fit.name not in only:
            continue
        own = [run for run in everything if fit.rows(run)]
        rows = [run for run in own if not is_judged(run)]
        rows = rows[:: -(-len(rows) // ROWS)]
        print(f"{fit.name}: {len(rows)} rows of {len(own)}", flush=True)
        last = environments.get(fit.environment or fit.name, {}) | fitter.figures.get(fit.name, {})
        values = fitter.solve(fit, rows, last)
        machine, environments[fit.environment or fit.name] = fit.split(values)
        if machine:
            fitter.figures[fit.name] = machine
        rest = [run for run in own if is_judged(run)]
        if fit.name in published.CLUSTERS:
            fitter.figures[fit.name] |= step_error(fitter.residuals(fit, values, rest))
        for text, judged in (("fitted", rows), ("held out", rest)):
            error = np.expm1(fitter.residuals(fit, values, judged)) if judged else np.zeros(1)
            print(
                f"  {text}: {len(judged)} rows, mean absolute error {np.abs(error).mean():.1%},"
                f" bias {error.mean():+.1%}, p90 {np.quantile(np.abs(error), 0.9):.1%}"
            )
    clusters = {name: fitter.cluster(name, fitter.figures[name]) for name in published.CLUSTERS}
    plain = fitter.prices.on(clusters)
    if not only or "reserve" in only:
        fitter.figures["all"] = plan_reserve(plain, everything)
    for source in (source for source, _ in RESERVES if not only or source in only):
        environments[source] = environments[source] | fit_reserve(plain, everything, source)
    write(fitter.figures, environments)


# Runs whose peaks of nvidia-smi are published; those in fp16 are fitted, those in bf16 held out.
RESERVES = (("bigscience", lambda run: "fp16" in run.row.text("precision")),)


def fit_reserve(prices: Prices, everything: Sequence[Run], source: str) -> dict[str, float]:
    """What a source's ranks held beyond live tensors: a fixed part, and one of activations."""
    fitted = dict(RESERVES)[source]
    own = [r for r in everything if _source(r, source) and r.memory_bytes and r.fits]
    priced = [prices.price(run) for run in own]
    terms = np.array([[1.0, p.activation_bytes] for p in priced])
    live = np.array([p.memory_bytes for p in priced])
    measured = np.array([float(run.memory_bytes or 0.0) for run in own])
    rows = np.array([fitted(run) for run in own])
    factors = np.linalg.lstsq(terms[rows], (measured - live)[rows], rcond=None)[0]
    error = np.abs((live + terms @ factors) / measured - 1)
    print(f"{source}, memory: {error[rows].mean():.1%} of {rows.sum()} rows fitted,"
          f" {error[~rows].mean():.1%} of {(~rows).sum()} held out")  # fmt: skip
    return {"reserve_bytes": float(factors[0]), "reserve_share": float(factors[1])}


# Part of the published peaks above live tensors that the margin of plans does not cover: a tenth.
COVERED = 0.9


def plan_reserve(prices: Prices, everything: Sequence[Run]) -> dict[str, float]:
    """What plans reserve beside contexts and communicators.

    The margin covers nine of ten errors of live tensors, by the peaks that nanotron publishes of
    torch's allocator. The allocator's share of the activations is the largest under which every
    run of llm-foundry, which trains with PyTorch's FSDP as emitted programs do, still fits.
    """
    peaks = [r for r in everything if _source(r, "nanotron") and r.memory_bytes and r.fits]
    missed = [float(r.memory_bytes or 0.0) - prices.price(r).memory_bytes for r in peaks]
    margin = max(0.0, float(np.quantile(missed, COVERED)))
    filled = [r for r in everything if _source(r, "llm-foundry") and r.fits]
    # Rounded down: the run that it is from shall fit.
    share = math.floor(1e4 * max(0.0, min(_room(prices, run, margin) for run in filled))) / 1e4
    print(f"reserve: margin {margin / 1e6:.0f} MB, {share:.2%} of the activations")
    return {"reserve_margin": margin, "reserve_share": share}


def _room(prices: Prices, run: Run, margin: float) -> float:
    """The share of its activations that a run has left on the device."""
    priced, figures = prices.price(run), published.Figures()
    name = prices.plain(run.machine).name
    groups = run.config.communicators * figures.value(name, "communicator")
    taken = priced.memory_bytes + figures.value(name, "context") + groups + margin
    return (run.machine.memory_gb * 2**30 - taken) / priced.activation_bytes


def step_error(residuals: Vector) -> dict[str, float]:
    """What the cost model says about its own errors: relative, on rows that were held out."""
    error = np.expm1(residuals)
    p10, p90 = (float(np.quantile(error, q)) for q in (0.1, 0.9))
    return {"step_error_p10": p10, "step_error_p90": p90, "step_error_points": len(error)}


def write(
    figures: Mapping[str, Mapping[str, float]], environments: Mapping[str, Mapping[str, float]]
) -> None:
    """Writes the figures of the machines and the environments of the sources."""
    lines = ["cluster,figure,size,bytes,value,unit,source"]
    lines += [
        f"{cluster},{name},,,{value:.4g},1,fitted to published runs (calibration/fit_published.py)"
        for cluster, values in figures.items()
        for name, value in values.items()
    ]
    if figures:
        write_atomically(HERE / "published" / "fitted.csv", "\n".join(lines) + "\n")
    rounded = {
        name: {key: float(f"{value:.4g}") for key, value in values.items()}
        for name, values in environments.items()
    }
    if environments:
        write_atomically(FITTED, json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
