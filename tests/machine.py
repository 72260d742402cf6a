"""A machine that stays as it is: what tests choose must not follow the calibration of a host."""

from __future__ import annotations

from pathlib import Path

# A CPU host of two cores, as it was calibrated on 2026-11-29.
HOST = str(Path(__file__).with_suffix(".json"))
