"""The raw samples: a CSV file that grows by one row per sample, so that a run can continue."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from autopar.calibration.points import Point
from autopar.errors import CostModelError

HEADER = ("device", "curve", "variant", "shape", "held_out", "seconds")
# Of the samples of a point. Other work on the host only ever adds to one; but that ranks wait for
# each other belongs to a collective, and a step has so many that their middle counts.
PERCENTILE = {"collectives": 0.5}
LOW_PERCENTILE = 0.15


class Rows:
    """Samples by point, read from and appended to ``path``.

    Raises:
        CostModelError: the file holds samples of another device, is no such file, or cannot
            be written.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self._samples: dict[Point, list[float]] = defaultdict(list)
        try:
            self._read() if path.exists() else self._write(HEADER, "w")
        except OSError as error:
            raise _unusable(path, f"the file cannot be used: {error.strerror}") from error

    def add(self, point: Point, seconds: float) -> None:
        """Appends one sample."""
        shape = "x".join(map(str, point.shape))
        held_out = int(point.held_out)
        self._write(
            (self.device, point.curve, point.variant, shape, held_out, f"{seconds:.4g}"), "a"
        )
        self._samples[point].append(seconds)

    def count(self, point: Point) -> int:
        """How many samples there are."""
        return len(self._samples.get(point, ()))

    def points(self) -> list[Point]:
        """Every point that has samples."""
        return [point for point, samples in self._samples.items() if samples]

    def seconds(self, point: Point) -> float:
        """A low percentile of the samples; the median of those of a collective."""
        samples = sorted(self._samples[point])
        share = PERCENTILE.get(point.curve, LOW_PERCENTILE)
        return samples[int(share * len(samples))]

    def _read(self) -> None:
        self._forget_half_a_row()
        with self.path.open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream)):
                if number == 0 and tuple(row) != HEADER:
                    raise _unusable(self.path, f"columns {', '.join(row)}")
                # Files of earlier versions may have half a row in the middle.
                if number and len(row) == len(HEADER):
                    self._keep(row)

    def _forget_half_a_row(self) -> None:
        """Cuts off what a run that was stopped left behind the last whole line.

        Half a number is a number, and the next row would be written behind it.
        """
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        if not whole:
            self._write(HEADER, "w")

    def _keep(self, row: list[str]) -> None:
        device, curve, variant, shape, held_out, seconds = row
        if device != self.device:
            raise _unusable(self.path, f"samples of the device {device}, this is {self.device}")
        sizes = tuple(int(size) for size in shape.split("x"))
        self._samples[Point(curve, variant, sizes, held_out == "1")].append(float(seconds))

    def _write(self, row: tuple[object, ...], mode: str) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerow(row)


def _unusable(path: Path, found: str) -> CostModelError:
    return CostModelError(
        found,
        expected="raw samples that `autopar calibrate` took on this device",
        where=str(path),
        hint="remove the file to measure afresh, or choose another output",
    )
