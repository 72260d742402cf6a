"""Progress on stderr, for work of more than two seconds in front of a person."""

from __future__ import annotations

import threading
from math import inf
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from autopar.show.units import duration, percent

PATIENCE_SECONDS = 2.0


class ProgressDisplay:
    """A bar that appears after two seconds, on a terminal only, and leaves no trace.

    Used as a context manager. ``plan_progress`` and ``labelled`` are the callbacks that
    ``autopar.plan`` and ``autopar.calibration.calibrate`` take.
    """

    def __init__(self, label: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
        self._task = self._bar.add_task(label, total=None)
        self._timer = threading.Timer(PATIENCE_SECONDS, self._bar.start)
        self._timer.daemon = True

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()
        if self._bar.live.is_started:
            self._bar.stop()

    def plan_progress(
        self, done: int, total: int, incumbent: float | None, bound: float | None
    ) -> None:
        """Shows ``done`` of ``total`` configurations, best plan and bound in seconds, and the gap.

        No plan takes less than ``bound`` seconds; it may be infinite where nothing fits.
        """
        text = f"searched {done} of {total} configurations"
        text += f", best {duration(incumbent)}" if incumbent else ", no plan yet"
        if bound and 0 < bound < inf:
            text += f", bound {duration(bound)}"
            text += f", gap {percent(max(0.0, 1 - bound / incumbent))}" if incumbent else ""
        self.labelled(text, done, total)

    def labelled(self, label: str, done: int, total: int) -> None:
        """Shows ``done`` of ``total`` under ``label``."""
        self._bar.update(self._task, description=label, completed=done, total=total)
