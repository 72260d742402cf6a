"""How planning time grows: with layers at 64 devices, and with devices for 32 layers.

    python benchmarks/bench_growth.py [--runs 1] [--svg docs/growth.svg]

A Llama of 8B's width is planned with 12 to 192 layers on 64 H100, and with 32 layers on 8 to
16,384; the exponent is the slope of a straight line through the logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import llama, on_meta, tokens
from benchmarks.processes import in_fresh_process

LAYERS = (12, 24, 48, 96, 192)
DEVICES = (8, 32, 128, 512, 2048, 16384)
DEPTH, WORLD, SEQUENCES = 32, 64, 16
Point = tuple[int, float, float]


def measure(layers: int, devices: int) -> dict[str, Any]:
    """Seconds of a plan, and of its trace."""
    import autopar
    from autopar import planner
    from benchmarks.bench_planning import _timed

    model = on_meta(lambda: llama(layers, 4096, 32, 8, 14336, 2048))
    traced = _timed(planner, "trace")
    started = time.perf_counter()
    plan = autopar.plan(model, devices, tokens(2048), cluster="h100-80g",
                        global_batch_size=SEQUENCES * devices)  # fmt: skip
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "trace": sum(traced), "gap": plan.solver.gap}


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    x, y = ([math.log(p[k]) for p in points] for k in (0, 1))
    middle, level = statistics.mean(x), statistics.mean(y)
    covariance = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - middle) ** 2 for a in x)


def series(pairs: Sequence[tuple[int, int]], runs: int, column: int) -> list[Point]:
    """(x, seconds of the plan, seconds of the trace) for each (layers, devices)."""
    points = []
    for pair in pairs:
        found = [in_fresh_process(__file__, *map(str, pair)) for _ in range(runs)]
        if "error" in found[0]:
            print(f"{pair[0]} layers on {pair[1]} devices: {found[0]['error']}", flush=True)
            continue
        plan, trace = (statistics.median(f[key] for f in found) for key in ("seconds", "trace"))
        points.append((pair[column], plan, trace))
        print(f"{pair[0]} layers on {pair[1]} devices: {plan:.2f} s, of which the trace"
              f" {trace:.2f} s, gap {100 * found[0]['gap']:.2f} %", flush=True)  # fmt: skip
    return points


# ---- plot

WIDTH, HEIGHT, MARGIN = 420, 300, 50
STYLES = (("#1f5fa8", "plan"), ("#c05a1c", "trace"))


def plot(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Two logarithmic panels side by side as SVG."""
    body = [line for k, (title, points) in enumerate(panels) for line in _panel(title, points, k)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *body,
        "</svg>",
        "",
    ])  # fmt: skip


def _panel(title: str, points: Sequence[Point], index: int) -> Iterator[str]:
    xs = [p[0] for p in points]
    left, right = WIDTH * index + MARGIN, WIDTH * (index + 1) - 20
    low, high = 0.5, 2.0 * max(p[1] for p in points)

    def across(x: float) -> float:
        return left + (right - left) * math.log(x / xs[0]) / math.log(xs[-1] / xs[0])

    def up(y: float) -> float:
        share = math.log(max(y, low) / low) / math.log(high / low)
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    yield f'<text x="{left}" y="20" font-size="14">{title}</text>'
    for x in xs:
        yield f'<text x="{across(x):.1f}" y="{HEIGHT - 30}" text-anchor="middle">{x}</text>'
    for y in (t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= high):
        yield f'<path d="M{left} {up(y):.1f}H{right}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g} s</text>'
    for k, (color, name) in enumerate(STYLES, start=1):
        spots = [(across(p[0]), up(p[k])) for p in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in spots)
        slope = exponent([(p[0], p[k]) for p in points])
        yield (f'<text x="{left + 8}" y="{24 + 15 * k}" fill="{color}">'
               f"{name}: exponent {slope:.2f}</text>")  # fmt: skip


def main() -> None:
    """Measures both series, prints the exponents and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    depth = series([(n, WORLD) for n in LAYERS], args.runs, 0)
    width = series([(DEPTH, n) for n in DEVICES], args.runs, 1)
    for name, points in (("layers", depth), ("devices", width)):
        slopes = (exponent([(p[0], p[k]) for p in points]) for k in (1, 2))
        print("exponent over {}: {:.2f}, of the trace {:.2f}".format(name, *slopes))
    if args.svg:
        panels = [(f"layers, on {WORLD} devices", depth), (f"devices, {DEPTH} layers", width)]
        args.svg.write_text(plot(panels))


if __name__ == "__main__":
    main()
