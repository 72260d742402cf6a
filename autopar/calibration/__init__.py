"""Measures this host into a cost model: the programs behind ``autopar calibrate``."""

from autopar.calibration.calibrate import calibrate

__all__ = ["calibrate"]
